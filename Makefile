# From a fresh clone, `make quickstart` or `make test` does everything. Needs git, make and Python 3.11 or later.

UV := tools/uv
NOX := $(UV) run --no-sync nox -s

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test tier1 tier2 tier3 coverage packages docs bench mutants fuzz nightly clean

help:  ## Show this list.
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

setup:  ## Install the workspace, its tools and the real models into .venv (about 1.5 GB without CUDA).
	@$(UV) --version >/dev/null
	@$(UV) sync --check -qq || $(UV) sync --compile-bytecode  # else every process compiles what it imports where Python may not write

quickstart: setup  ## Distil a small text classifier from a real teacher, in a few minutes.
	@$(UV) run --no-sync entrenar-distill run configs/quickstart.yaml --force

test: setup  ## Run what CI runs: lint, and every test but the nightly ones.
	@$(NOX) lint tests

tier1: setup  ## Before every commit: format, lint, the tests of what changed. Under 5 s.
tier2: setup  ## Tier 1, and the packages together on tiny models. Under 30 s.
tier3: setup  ## Properties with many examples, and real models. Under 5 min.
coverage: setup  ## Every test but the nightly ones, failing under 90 % in any package.
packages: setup  ## Wheels and source archives, each in an empty environment.
docs: setup  ## The links and commands of the documentation.
bench: setup  ## The benchmarks.
mutants: setup  ## Mutation testing of the pure modules, failing under 80 %. Takes an hour.
fuzz: setup  ## 100,000 model files changed at random. Takes half an hour.
nightly: setup  ## What takes minutes or hours: the tests marked so, and 200,000 examples of each property.
tier1 tier2 tier3 coverage packages docs bench mutants fuzz nightly:
	@$(NOX) $@

clean:  ## Remove what was installed, built and cached; results in runs/ stay.
	@rm -rf .venv .uv .nox uv.lock build dist mutants .coverage* .*_cache .hypothesis .cache

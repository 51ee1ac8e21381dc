"""The checks of the workspace, each by name. `make test` runs what CI runs; CONTRIBUTING.md says which limit is where.

Every session uses the workspace's own environment, which `make setup` fills.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]

ROOT = Path(__file__).parent
PACKAGES = sorted(path.name for path in (ROOT / "packages").iterdir() if (path / "pyproject.toml").is_file())
MODULES = [package.replace("-", "_") for package in PACKAGES]
FAST = "not slow and not real_models and not nightly and not pages"
COVERAGE_PERCENT = 90
MUTATION_PERCENT = 80
# Modules whose tests are quick and alone decide what they do: changed by `mutants`, tried at length by `nightly`.
PURE = [
    "packages/entrenar-core/src/entrenar_core/units.py",
    "packages/entrenar-core/src/entrenar_core/references.py",
    "packages/entrenar-core/src/entrenar_core/architectures/__init__.py",
    "packages/entrenar-core/src/entrenar_core/config/loss_rules.py",
    "packages/entrenar-core/src/entrenar_core/config/rules.py",
    "packages/entrenar-core/src/entrenar_core/config/wording.py",
    "packages/entrenar-core/src/entrenar_core/config/yaml_source.py",
    "packages/entrenar-core/src/entrenar_core/data/ordering.py",
    "packages/entrenar-core/src/entrenar_core/data/packing.py",
    "packages/entrenar-core/src/entrenar_core/diagnosis/distributions.py",
    "packages/entrenar-core/src/entrenar_core/diagnosis/troubles.py",
    "packages/entrenar-core/src/entrenar_core/losses/attention.py",
    "packages/entrenar-core/src/entrenar_core/losses/by_row.py",
    "packages/entrenar-core/src/entrenar_core/losses/divergence.py",
    "packages/entrenar-core/src/entrenar_core/losses/embedding.py",
    "packages/entrenar-core/src/entrenar_core/losses/grouping.py",
    "packages/entrenar-core/src/entrenar_core/losses/head.py",
    "packages/entrenar-core/src/entrenar_core/losses/hidden.py",
    "packages/entrenar-core/src/entrenar_core/losses/kernel.py",
    "packages/entrenar-core/src/entrenar_core/losses/layer_mapping.py",
    "packages/entrenar-core/src/entrenar_core/losses/logit_differences.py",
    "packages/entrenar-core/src/entrenar_core/losses/minilm.py",
    "packages/entrenar-core/src/entrenar_core/losses/relations.py",
    "packages/entrenar-core/src/entrenar_core/losses/selection.py",
    "packages/entrenar-core/src/entrenar_core/models/layer_rules.py",
    "packages/entrenar-core/src/entrenar_core/teachers/signals.py",
    "packages/entrenar-common/src/entrenar_common/tables.py",
    "packages/entrenar-common/src/entrenar_common/plots.py",
    "packages/entrenar-distill/src/entrenar_distill/views.py",
]
COGNITIVE_COMPLEXITY = 15
PACKAGING = "tests/integration/test_packaging.py"  # a session of its own
NOTHING_SELECTED = 5  # pytest's status where all tests of what changed belong to later tiers


def run(session: nox.Session, program: str, *arguments: str, also: int = 0, **environment: str) -> None:
    """Runs a program of the workspace's environment, whether or not it is active. Status `also` is a success too."""
    command = [str(Path(sys.executable).parent / program), *arguments]
    session.run(*command, env=environment or None, external=True, success_codes=[0, also])


def pytest(session: nox.Session, *arguments: str, parallel: bool = True, also: int = 0, **environment: str) -> None:
    """Runs tests; with `parallel` on all cores, each worker with one torch thread (tests/profiles.py)."""
    workers = ["--numprocesses=auto", "--maxprocesses=8", "--dist=worksteal"] if parallel else []
    run(session, "pytest", *workers, *arguments, *session.posargs, also=also, **environment)


@contextmanager
def limit(session: nox.Session, seconds: int) -> Iterator[None]:
    """Fails a session whose work took longer than its limit, so that it stays what people run that often."""
    start = time.monotonic()
    yield
    taken = time.monotonic() - start
    if taken > seconds:
        session.error(f"{session.name} took {taken:.1f} s; its limit is {seconds} s")
    session.log(f"{session.name}: {taken:.1f} of {seconds} s")


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style, cyclomatic complexity up to 10, cognitive up to 15, types, which way imports point, and links."""
    run(session, "ruff", "format", "--check", "--quiet")
    run(session, "ruff", "check", "--quiet")
    run(session, "mypy")
    run(session, "lint-imports", "--no-logo")
    run(session, "complexipy", "packages", "--failed", "--plain", f"--max-complexity-allowed={COGNITIVE_COMPLEXITY}")
    docs(session)


def tests_of(*files: str) -> list[str]:
    """The unit tests of some files; without any, of those that changed since the last commit."""
    command = [sys.executable, "tools/tests_of.py", *files]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def changed_units(session: nox.Session) -> None:
    run(session, "ruff", "format", "--check", "--quiet")
    run(session, "ruff", "check", "--quiet")
    tests = tests_of()
    if tests:
        pytest(session, "-m", FAST, *tests, parallel=False, also=NOTHING_SELECTED)
    else:
        session.log("nothing changed since the last commit that has unit tests")


@nox.session
def tier1(session: nox.Session) -> None:
    """Format, lint, and the unit tests of the files changed since the last commit."""
    with limit(session, 5):
        changed_units(session)


@nox.session
def tier2(session: nox.Session) -> None:
    """Tier 1, then the packages together, on tiny models."""
    with limit(session, 30):
        changed_units(session)
        pytest(session, "-m", FAST, "tests/integration")


@nox.session
def tier3(session: nox.Session) -> None:
    """Properties with many examples, and real models."""
    with limit(session, 5 * 60):
        chosen = "(hypothesis or slow or real_models) and not long and not nightly and not pages"
        pytest(session, "-m", chosen, f"--ignore={PACKAGING}", HYPOTHESIS_PROFILE="thorough")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test but the nightly ones. The aim is 20 minutes on 2 cores; slower machines get half as long again."""
    with limit(session, 30 * 60):
        pytest(session, "-m", "not nightly")


@nox.session
def coverage(session: nox.Session) -> None:
    """Every test but the nightly ones, and the share of each package's lines that they run."""
    run(session, "coverage", "erase")
    pytest(session, "-m", "not nightly", "--cov", "--cov-report=")
    for package in PACKAGES:
        session.log(f"coverage of {package}")
        only = f"--include=packages/{package}/src/*"
        run(session, "coverage", "report", only, "--skip-covered", f"--fail-under={COVERAGE_PERCENT}")


@nox.session
def packages(session: nox.Session) -> None:
    """The wheel and the source archive of every package, each in an empty environment."""
    pytest(session, PACKAGING, parallel=False)


@nox.session
def mutants(session: nox.Session) -> None:
    """Small changes to the pure modules: how many do their tests notice?"""
    run(session, "python", "tools/mutation.py", str(MUTATION_PERCENT), *PURE)


@nox.session
def nightly(session: nox.Session) -> None:
    """The tests that take minutes, and 200,000 examples of each property of the pure modules."""
    pytest(session, "-m", "nightly", "--timeout=3600")
    pytest(session, "-m", "hypothesis", "--timeout=14400", *tests_of(*PURE), HYPOTHESIS_PROFILE="nightly")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Model files with bytes changed at random, 10,000 of each of some sound ones: read or refused, never worse."""
    pytest(session, "tests/inspect/test_fuzz.py", "--timeout=7200", HYPOTHESIS_PROFILE="fuzz")


@nox.session
def docs(session: nox.Session) -> None:
    """Every link of the documentation leads somewhere, and its reference is what the program says of itself."""
    run(session, "python", "tools/check_links.py")
    run(session, "python", "tools/reference.py", "--check")


@nox.session
def bench(session: nox.Session) -> None:
    """Every benchmark, one after the other, on an otherwise idle machine; installs the peers that they compare with."""
    session.run("tools/uv", "sync", "--quiet", "--group", "peers", external=True)
    for script in sorted(Path("benchmarks").glob("*.py")):
        run(session, "python", str(script), *session.posargs)

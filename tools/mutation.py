"""Changes the code of some modules in small ways and says which share of the changes their tests notice.

    python tools/mutation.py 80 packages/entrenar-core/src/entrenar_core/units.py …

prints the changes that no test noticed and the score of every module, and fails where a package's is under 80 %.
mutmut expects one source folder, so the packages are laid out side by side in `.nox/mutants/`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tests_of import tests_of

FOLDER = Path(".nox/mutants")
NOTICED = ("killed", "timeout")
SETTINGS = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {modules}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-m", "not slow and not real_models and not nightly and not pages"]
use_git_change_detection = false
"""


def lay_out(modules: list[str]) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for source in Path("packages").glob("*/src"):
        shutil.copytree(source, FOLDER / "src", dirs_exist_ok=True)
    shutil.copytree("tests", FOLDER / "tests")
    inside = ["src/" + module.partition("/src/")[2] for module in modules]
    settings = SETTINGS.format(modules=inside, tests=tests_of(modules))
    (FOLDER / "pyproject.toml").write_text(Path("pyproject.toml").read_text() + settings)


def mutmut(*arguments: str) -> str:
    """Runs mutmut in the laid out tree. What it writes as it goes is one line redrawn, so only a failure shows it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "ci"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=FOLDER, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        sys.exit(f"mutmut failed:\n{output[-4000:]}")
    return output


def main() -> int:
    required, modules = float(sys.argv[1]), sys.argv[2:]
    lay_out(modules)
    mutmut("run")
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, outcome in re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", mutmut("results", "--all", "true"), re.MULTILINE):
        outcomes[name.rsplit(".", 1)[0]][outcome] += 1
        if outcome not in NOTICED:
            sys.stdout.write(f"  {name}: {outcome}\n")
    packages: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for module, counts in sorted(outcomes.items()):
        packages[module.split(".")[0]] += counts
        sys.stdout.write(f"{module}: {score(counts):.0f} % of {counts.total()} changes noticed\n")
    for package, counts in packages.items():
        sys.stdout.write(
            f"{package}: {score(counts):.1f} % of {counts.total()}; at least {required:.0f} % are required\n"
        )
    return int(len(outcomes) < len(modules) or any(score(counts) < required for counts in packages.values()))


def score(counts: Counter[str]) -> float:
    return 100 * sum(counts[outcome] for outcome in NOTICED) / counts.total()


if __name__ == "__main__":
    sys.exit(main())

"""What a user gets from an index: the wheel and the source archive of every package, built, installed, run.

Each kind is installed with its real dependencies, in their pinned versions, into an environment of its own, outside
of the workspace.
"""

import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = sorted(path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml"))
MODULES = [name.replace("-", "_") for name in PACKAGES]

# Runs inside the installed environment: every public name is there, and comes from there.
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.prefix), module.__file__
    assert module.__all__, f"{name} has no public API"
    for public in module.__all__:
        getattr(module, public)
"""
# Every console script that a distribution of ours declares.
SCRIPTS = """
from importlib.metadata import entry_points
for script in entry_points(group="console_scripts"):
    if script.dist.name.startswith("entrenar"):
        print(script.name)
"""


def uv(*arguments: str | Path) -> str:
    done = subprocess.run([ROOT / "tools/uv", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    uv("build", "--all-packages", "--quiet", "--no-sources", "--out-dir", folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("*.whl", id="wheels"),
        pytest.param("*.tar.gz", id="source archives", marks=pytest.mark.nightly),
    ],
)
def installed(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds nothing but the built distributions and what they need."""
    folder = tmp_path_factory.mktemp("installed")
    pins = folder / "pins.txt"
    pins.write_text("\n".join(WORKSPACE["tool"]["uv"]["constraint-dependencies"]))
    uv("venv", "--quiet", folder / "env")
    archives = sorted(built.glob(request.param))
    assert len(archives) == len(PACKAGES) + 1
    uv("pip", "install", "--quiet", "--python", folder / "env", "--constraint", pins, *archives)
    return folder / "env" / "bin"


def run(folder: Path, program: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    done = subprocess.run([program, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_can_be_imported(installed: Path, tmp_path: Path) -> None:
    run(tmp_path, installed / "python", "-c", IMPORT_ALL, *MODULES)


def test_every_program_answers(installed: Path, tmp_path: Path) -> None:
    scripts = run(tmp_path, installed / "python", "-c", SCRIPTS).split()
    assert "entrenar-distill" in scripts
    for script in scripts:
        assert "Usage" in run(tmp_path, installed / script, "--help")
        assert WORKSPACE["project"]["version"] in run(tmp_path, installed / script, "--version")


def test_the_lines_of_the_readme_install_all_of_it(tmp_path: Path) -> None:
    """As far as finding everything that would be installed; `--no-sources` is how pip sees the packages."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"(uv )?pip install ", line)]
    assert len(lines) == 2
    uv("venv", "--quiet", tmp_path / "env")
    for line in lines:
        as_pip = ["--no-sources"] if line.startswith("pip") else []
        told = uv(
            "pip", "install", "--dry-run", "--python", tmp_path / "env", *as_pip, *line.split("install ")[1].split()
        )
        found = {re.split(r"==| @ ", row.removeprefix(" + "))[0] for row in told.splitlines()}
        assert {"entrenar", "torch", *PACKAGES} <= found


@pytest.mark.parametrize("module", MODULES)
def test_a_wheel_holds_the_package_and_nothing_else(built: Path, module: str) -> None:
    (wheel,) = built.glob(f"{module}-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "packages" / module.replace("_", "-") / "src"
    expected = {
        str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".py", ".toml", ".typed")
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert f"{module}/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not any("test" in name for name in names)


@pytest.mark.parametrize("module", [*MODULES, "entrenar"])
def test_a_source_archive_has_its_licence_and_readme(built: Path, module: str) -> None:
    (archive,) = built.glob(f"{module}-[0-9]*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"} <= names
    assert not any(name.startswith(("tests/", "runs/")) for name in names)


def test_the_root_distribution_brings_every_package(built: Path) -> None:
    (wheel,) = built.glob("entrenar-[0-9]*.whl")
    opened = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in opened.namelist() if name.endswith("/METADATA"))
    required = [
        x.partition(": ")[2] for x in opened.read(metadata).decode().splitlines() if x.startswith("Requires-Dist")
    ]
    release = version("entrenar")
    extras = [f"entrenar-core[{extra}]=={release}; extra == '{extra}'" for extra in ("onnx", "quantized", "xllamacpp")]
    assert required == [*(f"{package}=={release}" for package in PACKAGES), *extras]

"""What holds the workspace together: the pins, the settings that name every package, and the scripts of tools/."""

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

ROOT = Path(__file__).parents[2]
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text())
MANIFESTS = {
    path.parent.name: tomllib.loads(path.read_text()) for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
MODULES = {name.replace("-", "_") for name in MANIFESTS}


def setting(path: str) -> Any:
    value: Any = WORKSPACE
    for key in path.split("."):
        value = value[key]
    return value


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)


# The packages


def test_every_installed_package_is_pinned_to_its_version() -> None:
    pins = dict(pin.split("==") for pin in setting("tool.uv.constraint-dependencies"))
    installed = {
        x.name.lower().replace("_", "-").replace(".", "-"): x.version.partition("+")[0] for x in distributions()
    }
    brought_by_hand = {"pip", "uv", "entrenar", *MANIFESTS}
    assert {name: version for name, version in installed.items() if name not in brought_by_hand} == {
        name: pins.get(name) for name in installed if name not in brought_by_hand
    }


def test_the_packages_have_one_version_and_ask_for_exactly_it() -> None:
    version = setting("project.version")
    for manifest in (WORKSPACE, *MANIFESTS.values()):
        assert manifest["project"]["version"] == version
        ours = [x for x in manifest["project"]["dependencies"] if x.startswith("entrenar")]
        assert all(x.endswith(f"=={version}") for x in ours), ours
    assert {x.partition("==")[0] for x in setting("project.dependencies")} == set(MANIFESTS)


def test_the_settings_of_every_tool_name_every_package() -> None:
    assert set(setting("tool.uv.sources")) == set(MANIFESTS)
    assert set(setting("tool.mypy.packages")) == MODULES
    assert set(setting("tool.mypy.mypy_path").split(":")) == {f"packages/{name}/src" for name in MANIFESTS}
    assert set(setting("tool.coverage.run.source_pkgs")) == MODULES
    assert set(setting("tool.importlinter.root_packages")) == MODULES
    layers = {name for contract in setting("tool.importlinter.contracts") for name in contract.get("layers", [])}
    assert {name.strip() for layer in layers for name in layer.split("|")} == MODULES


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_package_carries_its_licence_and_says_that_it_is_typed(name: str) -> None:
    folder = ROOT / "packages" / name
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (folder / "src" / name.replace("-", "_") / "py.typed").is_file()


# The commands


def test_the_list_of_targets_is_whole() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = run("make", "--no-print-directory", "help", cwd=ROOT).stdout
    assert {line.split()[0] for line in shown.splitlines()} == targets


def test_every_session_is_explained_to_contributors() -> None:
    sessions = re.findall(r"^@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for name in sessions if f"`{name}`" not in page] == []


def test_the_workflow_runs_targets_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    targets = set(re.findall(r"^([a-z0-9 ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    sessions = [
        name
        for job in workflow["jobs"].values()
        for name in job.get("strategy", {}).get("matrix", {}).get("session", [])
    ]
    commands = [step["run"] for step in steps if "run" in step]
    assert set(commands) == {".ci/run", "make ${{ matrix.session }}"}
    assert set(sessions) <= {name for target in targets for name in target.split()}
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


def test_ci_runs_the_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert script.rstrip().endswith("\nmake test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("branches", "refused"), [(9, False), (10, True)])
def test_a_function_of_more_than_ten_paths_is_refused(branches: int, refused: bool, tmp_path: Path) -> None:
    body = "".join(f"    if x == {i}:\n        return {i * i}\n" for i in range(branches))
    (tmp_path / "paths.py").write_text(f"def paths(x: int) -> int:\n{body}    return x\n")
    done = run(sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "paths.py", cwd=tmp_path)
    assert ("C901" in done.stdout) is refused


def test_a_run_in_ci_tries_the_same_examples_each_time() -> None:
    assert settings.get_profile("ci").derandomize
    assert settings.get_profile("nightly").max_examples == 200_000


# tools/


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small workspace in git, with a package that has a module and its tests."""
    for name in (
        "packages/entrenar-core/src/entrenar_core/losses/kernel.py",
        "packages/entrenar-core/src/entrenar_core/units.py",
        "tests/core/test_losses.py",
        "tests/core/test_kernel.py",
        "tests/core/test_kernel_speed.py",
        "tests/core/test_units.py",
        "tests/common/test_units.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message=one"]):
        assert run("git", *command, cwd=tmp_path).returncode == 0
    return tmp_path


def found_for(checkout: Path, *files: str) -> list[str]:
    done = run(sys.executable, ROOT / "tools" / "tests_of.py", *files, cwd=checkout)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_tests_of_what_changed_are_found(checkout: Path) -> None:
    assert found_for(checkout) == []
    (checkout / "packages/entrenar-core/src/entrenar_core/losses/kernel.py").write_text("x = 1\n")
    assert found_for(checkout) == [f"tests/core/test_{name}.py" for name in ("kernel", "kernel_speed", "losses")]
    (checkout / "tests/common/test_new.py").write_text("")
    assert "tests/common/test_new.py" in found_for(checkout)
    assert found_for(checkout, "tests/integration/test_runs.py") == [], "tier 2 runs them all"


def test_the_tests_of_a_named_module_are_found(checkout: Path) -> None:
    assert found_for(checkout, "packages/entrenar-core/src/entrenar_core/units.py") == ["tests/core/test_units.py"]


def test_a_module_without_tests_of_its_own_has_those_of_its_folder(checkout: Path) -> None:
    for name in ("test_data_files.py", "test_data_files_packed.py", "test_data_order.py", "test_database.py"):
        (checkout / "tests/core" / name).write_text("")
    data = "packages/entrenar-core/src/entrenar_core/data"
    files, order = "tests/core/test_data_files.py", "tests/core/test_data_order.py"
    assert found_for(checkout, f"{data}/files.py") == [files, "tests/core/test_data_files_packed.py"]
    assert found_for(checkout, f"{data}/chance.py") == [files, "tests/core/test_data_files_packed.py", order]


@pytest.mark.slow
def test_tier_1_fails_when_the_tests_of_what_changed_are_slow(checkout: Path) -> None:
    for name in ("noxfile.py", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "tools", checkout / "tools")
    slow = "import time\n\n\ndef test_that_takes_its_time() -> None:\n    time.sleep(5.1)\n"
    (checkout / "tests/core/test_units.py").write_text(slow)
    done = run(sys.executable, "-m", "nox", "-s", "tier1", cwd=checkout)
    assert "1 passed" in done.stdout
    assert done.returncode == 1
    assert "its limit is 5 s" in done.stderr


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "losses.md").write_text("# Which loss, and `why`?\n```\n# no heading\n```\n")
    (tmp_path / "README.md").write_text(
        "[a](docs/losses.md) [b](docs/losses.md#which-loss-and-why) [c](https://example.org/x) `[d](nothing.md)`\n"
        "[e](docs/gone.md) [f](docs/losses.md#no-heading) [g](#absent)\n"
    )
    done = run(sys.executable, ROOT / "tools" / "check_links.py", cwd=tmp_path)
    assert done.returncode == 1
    assert re.findall(r"README.md: (\S+)", done.stdout) == ["docs/gone.md", "docs/losses.md#no-heading", "#absent"]


# tools/uv


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A workspace of its own that needs the package `pebble`, and knows uv only from its folder .uv."""
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    if not Path(uv).is_file():
        pytest.skip("uv is neither on PATH nor in .uv")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "uv", tmp_path / "tools")
    (tmp_path / ".uv" / "bin").mkdir(parents=True)
    (tmp_path / ".uv" / "bin" / "uv").symlink_to(uv)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "w"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["pebble"]\n'
    )
    return tmp_path


def folder_of_wheels(path: Path, version: str) -> Path:
    path.mkdir(parents=True)
    info = f"pebble-{version}.dist-info"
    with zipfile.ZipFile(path / f"pebble-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pebble.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: pebble\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"pebble.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served; the page of a folder links to the files in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def sync(workspace: Path, flag: str = "--offline", **environment: str) -> str:
    """The version of `pebble` that is installed after `tools/uv sync`."""
    ours = {name: "" for name in os.environ if name.startswith(("UV_", "PIP_"))}
    ours |= {"PATH": "/usr/bin:/bin", "UV_CACHE_DIR": str(workspace / "cache"), "UV_PYTHON": sys.executable}
    done = run(workspace / "tools" / "uv", "sync", flag, cwd=workspace, env=ours | environment)
    assert done.returncode == 0, done.stderr
    (found,) = (workspace / ".venv").rglob("pebble-*.dist-info")
    return found.name.removeprefix("pebble-").removesuffix(".dist-info")


def test_a_folder_of_wheels_that_pip_was_told_of_reaches_uv(elsewhere: Path) -> None:
    one, two = (folder_of_wheels(elsewhere / version, version) for version in ("1.0", "2.0"))
    assert sync(elsewhere, PIP_FIND_LINKS=f"{elsewhere / 'absent'} {one} {two}") == "2.0"


def test_a_page_that_links_to_wheels_will_do(elsewhere: Path, site: tuple[Path, str]) -> None:
    folder, address = site
    folder_of_wheels(folder / "cpu", "1.0")
    assert sync(elsewhere, "--no-index", UV_FIND_LINKS=f"{address}/cpu/") == "1.0"


def test_the_indexes_that_pip_was_told_of_reach_uv(elsewhere: Path, site: tuple[Path, str]) -> None:
    folder, address = site
    for index, version in (("mirror", "2.0"), ("extra", "1.0"), ("newer", "3.0")):
        folder_of_wheels(folder / index / "pebble", version)
    mirror, extra, newer = f"{address}/mirror", f"{address}/extra", f"{address}/newer"
    assert sync(elsewhere, "--quiet", PIP_INDEX_URL=mirror) == "2.0"
    assert sync(elsewhere, "--quiet", PIP_INDEX_URL=mirror, PIP_EXTRA_INDEX_URL=extra) == "2.0"
    assert sync(elsewhere, "--quiet", PIP_INDEX_URL=mirror, PIP_EXTRA_INDEX_URL=f"{extra} {newer}") == "3.0"


def test_what_is_set_for_uv_wins_over_what_is_set_for_pip(elsewhere: Path) -> None:
    one, two = (folder_of_wheels(elsewhere / version, version) for version in ("1.0", "2.0"))
    assert sync(elsewhere, UV_FIND_LINKS=str(one), PIP_FIND_LINKS=str(two)) == "1.0"


def test_a_lock_made_from_other_sources_is_made_anew(elsewhere: Path) -> None:
    one, two = (folder_of_wheels(elsewhere / version, version) for version in ("1.0", "2.0"))
    assert sync(elsewhere, UV_FIND_LINKS=str(one)) == "1.0"
    before = (elsewhere / "uv.lock").read_text()
    assert sync(elsewhere, UV_FIND_LINKS=str(one)) == "1.0"
    assert (elsewhere / "uv.lock").read_text() == before
    assert sync(elsewhere, UV_FIND_LINKS=str(two)) == "2.0"


def test_a_uv_on_the_path_that_is_too_old_is_passed_over(elsewhere: Path) -> None:
    with (elsewhere / "pyproject.toml").open("a") as manifest:
        manifest.write('[tool.uv]\nrequired-version = ">=0.9"\n')
    old = elsewhere / "old" / "uv"
    old.parent.mkdir()
    old.write_text(
        "#!/bin/sh\necho 'error: Required uv version `>=0.9` does not match the running version' >&2\nexit 2\n"
    )
    old.chmod(0o755)
    wheels = folder_of_wheels(elsewhere / "wheels", "1.0")
    assert sync(elsewhere, PATH=f"{old.parent}:/usr/bin:/bin", UV_FIND_LINKS=str(wheels)) == "1.0"

"""References: what each spelling means, and that what cannot be meant is refused with what is accepted."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import NotFoundError, UsageError
from entrenar_core.references import HubReference, PackageReference, PathReference, parse_reference


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubReference("org/name")),
        ("gpt2", HubReference("gpt2")),
        ("org/name.v2_x-1", HubReference("org/name.v2_x-1")),
        ("org/name@v1.0", HubReference("org/name", "v1.0")),
        ("org/name@refs/pr/4", HubReference("org/name", "refs/pr/4")),
        ("org/name@feature/a@b", HubReference("org/name", "feature/a@b")),
        ("./folder", PathReference("./folder")),
        ("../x", PathReference("../x")),
        ("/abs/model", PathReference("/abs/model")),
        ("~/models/x", PathReference("~/models/x")),
        (".", PathReference(".")),
        ("model.gguf", PathReference("model.gguf")),
        ("runs/one/model.safetensors", PathReference("runs/one/model.safetensors")),
        ("config.json", PathReference("config.json")),
        ("runs/one/weights.ckpt", PathReference("runs/one/weights.ckpt")),
        ("org/name.json@v1", HubReference("org/name.json", "v1")),
        ("pkg://some_package/inner/model", PackageReference("some_package", "inner/model")),
        ("pkg://some_package", PackageReference("some_package", "")),
        ("pkg://a.b/model", PackageReference("a.b", "model")),
    ],
)
def test_each_spelling_means_one_thing_and_is_given_back(text: str, expected: object) -> None:
    reference = parse_reference(text)
    assert reference == expected
    assert str(reference) == text


def test_an_existing_folder_wins_over_the_hub_unless_a_revision_is_named(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_reference("org/name") == PathReference("org/name")
    assert parse_reference("org/name", revision="main") == HubReference("org/name", "main")
    assert parse_reference("org/other") == HubReference("org/other")


def test_a_revision_is_given_in_either_place() -> None:
    assert parse_reference("org/name", revision="v1") == HubReference("org/name", "v1")
    assert parse_reference("org/name@v1", revision="v1") == HubReference("org/name", "v1")
    with pytest.raises(UsageError, match="v1"):
        parse_reference("org/name@v1", revision="v2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a/b/c",
        "org/",
        "org/na me",
        "org--x/name",
        "org/..",
        "-org/name",
        "org/.hidden",
        "x" * 97,
        "x" * 5000,
        "org/name@",
        "org/name@a..b",
        "org/name@../../etc",
        "org/name@a b",
        "org/name@/abs",
        "https://example.org/org/name",
        "hf://org/name",
        "pkg://",
        "pkg://not-a-module/x",
        "pkg://package/../../secret",
        "pkg://package//abs",
        "a\0b",
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_reference(text)
    assert refused.value.hint


@pytest.mark.parametrize("text", ["./folder", "model.gguf", "pkg://package/model"])
def test_only_the_hub_has_revisions(text: str) -> None:
    with pytest.raises(UsageError, match="no revision main"):
        parse_reference(text, revision="main")


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert str(parse_reference(text)) in (text, text.rstrip("/"))


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"\./missing does not exist"):
        PathReference("./missing").locate()
    (tmp_path / "here.gguf").touch()
    assert PathReference("here.gguf").locate() == Path("here.gguf")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported, with a model inside."""
    folder = tmp_path / "site" / "carrier_of_models"
    (folder / "inner" / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "inner" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "inner" / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


@pytest.mark.parametrize("text", ["pkg://carrier_of_models/inner/model", "pkg://carrier_of_models.inner/model"])
def test_a_package_is_located_without_importing_it(package: Path, text: str) -> None:
    reference = parse_reference(text)
    assert isinstance(reference, PackageReference)
    assert reference.locate() == package / "inner" / "model"
    assert "carrier_of_models" not in sys.modules


def test_a_link_out_of_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (package / "inner" / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="leads out"):
        PackageReference("carrier_of_models", "inner/out").locate()


def test_a_missing_package_says_how_to_install_it(package: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        PackageReference("no_such_package", "model").locate()
    assert "uv pip install no-such-package" in str(missing.value.hint)
    with pytest.raises(NotFoundError, match="has no such file") as absent:
        PackageReference("carrier_of_models", "elsewhere").locate()
    assert str(package) in str(absent.value.hint)
    with pytest.raises(NotFoundError):
        PackageReference("__main__", "x").locate()


def test_reading_references_imports_nothing_heavy() -> None:
    code = (
        "import sys; from entrenar_core.references import parse_reference; parse_reference('org/name');"
        "print({'torch', 'transformers', 'huggingface_hub', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

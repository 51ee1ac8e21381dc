"""Shards that no index lists, and what an index and settings beside them say wrongly: told, and the tensors read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from entrenar_core.errors import ModelError, UnsoundFileError
from entrenar_core.formats import choose_weights
from entrenar_core.formats.shards import shards_by_name
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from tiny_models import tiny_llama

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sharded"), max_shard_size="40KB")


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def faults_of(folder: Path) -> tuple[str, ...]:
    with open_model(parse_reference(str(folder))) as model:
        assert len(model.tensors) > 10
        return tuple(fault.message for fault in model.faults)


def test_shards_without_an_index_are_one_model(folder: Path, sharded: Path) -> None:
    (folder / INDEX).unlink()
    with open_model(parse_reference(str(folder))) as model, open_model(parse_reference(str(sharded))) as listed:
        assert set(model.tensors) == set(listed.tensors)
        assert [file.name for file in model.files] == sorted(file.name for file in model.files)
        (fault,) = model.faults
        missing = f"the index of its {len(model.files)} shards is missing, without which programs do not load them"
        assert (fault.about, fault.message, fault.harmless) == ("shards", missing, False)


def test_the_shards_that_are_missing_are_named(folder: Path) -> None:
    (folder / INDEX).unlink()
    shards = sorted(folder.glob("*.safetensors"))
    for shard in shards[1:]:
        shard.unlink()
        with pytest.raises(UnsoundFileError, match=f"has .* of {len(shards)} shards, and lacks .*{shard.name}"):
            faults_of(folder)


def test_programs_that_load_weights_want_an_index() -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    with pytest.raises(ModelError, match="holds 2 safetensors files"):
        choose_weights(names, where="here")
    assert choose_weights(names, where="here", unlisted=True).names == tuple(names)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["model.safetensors"],
        ["a-1-of-2.bin", "b-2-of-2.bin"],
        ["a-1-of-2.bin", "a-2-of-3.bin"],
        ["a-0-of-2.bin", "a-1-of-2.bin"],
        ["a-1-of-2.bin", "a-3-of-2.bin"],
        ["a-1-of-2.bin", "a-01-of-2.bin"],
        ["a-1-of-0.bin"],
        ["a-1-of-1.bin", "other.bin"],
    ],
)
def test_other_names_are_no_shards(names: list[str]) -> None:
    assert shards_by_name(names, "here") == ()


def test_of_many_that_are_missing_the_first_are_named() -> None:
    with pytest.raises(
        UnsoundFileError, match=r"has 1 of 999,999 shards, and lacks a-1-.*a-6-of-999999\.bin and 999,993"
    ):
        shards_by_name(["a-3-of-999999.bin"], "here")


def test_the_size_in_an_index_is_that_of_the_tensors(folder: Path) -> None:
    listing: dict[str, Any] = json.loads((folder / INDEX).read_text())
    total = listing["metadata"]["total_size"]
    with open_model(parse_reference(str(folder))) as model:
        largest = max(tensor.size_bytes for tensor in model.tensors.values())
        assert sum(tensor.size_bytes for tensor in model.tensors.values()) == total

    def said(value: object) -> tuple[str, ...]:
        (folder / INDEX).write_text(json.dumps({**listing, "metadata": {"total_size": value}}))
        return faults_of(folder)

    for fine in (total, float(total), total + largest, None, "many", [total]):
        assert said(fine) == ()
    for wrong in (total - 1, total + largest + 1, 10**400, -1, float("nan")):
        (fault,) = said(wrong)
        assert fault.startswith("the index says that its tensors take ")
        assert fault.endswith(f"and they take {total:,}")
        assert len(fault) < 300


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff", b'{"a":' * 9999, b'{"a":[' + b"0," * 5_000_000])
def test_settings_that_are_broken_are_a_fault(name: str, text: bytes, folder: Path) -> None:
    (folder / name).write_bytes(text)
    (fault,) = faults_of(folder)
    assert f"{name} " in fault

"""Opening models as they are stored: which files are meant, what their headers say together, what is not followed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_core.errors import EntrenarError, ModelError, NotFoundError, UnsoundFileError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import StoredModel, open_model
from tiny_models import tiny_gguf, tiny_llama


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sharded"), max_shard_size="40KB")


@pytest.fixture
def copied(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def opened(path: Path | str, **how: object) -> StoredModel:
    return open_model(parse_reference(str(path)), **how)  # type: ignore[arg-type]


def index_of(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def changed_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    listing = json.loads(index_of(folder).read_text())
    change(listing["weight_map"])
    index_of(folder).write_text(json.dumps(listing))


def test_shards_are_one_model(sharded: Path) -> None:
    expected = {name: tensor for file in sharded.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert len(list(sharded.glob("*.safetensors"))) > 2
    with opened(sharded) as model:
        assert {name: tensor.shape for name, tensor in model.tensors.items()} == {
            name: tuple(tensor.shape) for name, tensor in expected.items()
        }
        for name, tensor in model.tensors.items():
            data = model.sources[tensor.file].read(tensor.offset, tensor.size_bytes)
            assert data == expected[name].numpy().tobytes()
        assert model.faults == ()
        assert model.config is not None
        assert model.config["model_type"] == "llama"
        assert model.is_here


def test_a_shard_an_index_or_a_folder_can_be_named(sharded: Path) -> None:
    shard = next(sharded.glob("*-00001-*.safetensors"))
    with opened(shard) as one, opened(index_of(sharded)) as named, opened(sharded) as folder:
        assert set(one.tensors) == set(load_file(shard))
        assert named.tensors == folder.tensors
    with opened(sharded, file=shard.name) as one:
        assert set(one.tensors) == set(load_file(shard))


def test_a_format_is_found_by_content(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "weights.gguf")
    tiny_gguf(tmp_path / "other.safetensors")
    with opened(tmp_path / "weights.gguf") as model:
        assert model.format is WeightFormat.SAFETENSORS
    with opened(tmp_path / "other.safetensors") as model:
        assert model.format is WeightFormat.GGUF


def test_another_format_than_the_one_asked_for_is_refused(sharded: Path) -> None:
    file = next(sharded.glob("*.safetensors"))
    for path, how in ((file, {}), (sharded, {"file": file.name})):
        with pytest.raises(ModelError, match="is of the format safetensors, not gguf"):
            opened(path, format=WeightFormat.GGUF, **how)
        opened(path, format=WeightFormat.SAFETENSORS, **how).close()


def test_an_adapter_is_what_is_there(tmp_path: Path) -> None:
    save_file({"base_model.model.q.lora_A.weight": torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    with opened(tmp_path) as model:
        assert list(model.tensors) == ["base_model.model.q.lora_A.weight"]
        assert model.adapter_config == {"r": 2}
        assert model.config is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda placed: placed.update({"ghost": "model-00001-of-00004.safetensors"}),
            "lists ghost, which no shard has",
        ),
        (lambda placed: placed.pop("model.norm.weight"), "does not list model.norm.weight"),
        (
            lambda placed: placed.update({"model.norm.weight": placed["model.embed_tokens.weight"]}),
            "has model.norm.weight in",
        ),
    ],
)
def test_what_an_index_and_headers_do_not_agree_on_is_a_fault(
    copied: Path, change: Callable[[dict[str, str]], object], fault: str
) -> None:
    names = sorted(file.name for file in copied.glob("*.safetensors"))
    changed_index(copied, change)
    listing = index_of(copied).read_text().replace("model-00001-of-00004.safetensors", names[0])
    index_of(copied).write_text(listing)
    with opened(copied) as model:
        assert [fault in said.message for said in model.faults] == [True]


def test_a_tensor_in_two_shards_is_a_fault(copied: Path) -> None:
    first, second, *_ = sorted(copied.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    with opened(copied) as model:
        assert f"tensor {name} is in {first.name} and in {second.name}" in [fault.message for fault in model.faults]


def test_a_missing_shard_is_named(copied: Path) -> None:
    gone = sorted(copied.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UnsoundFileError, match=f"lacks 1 of the 3 files that its index lists: {gone.name}"):
        opened(copied)


@pytest.mark.parametrize(
    "place", ["../stolen.safetensors", "/etc/stolen.safetensors", "a\\b.safetensors", "x\0.safetensors"]
)
def test_an_index_does_not_lead_out_of_its_folder(copied: Path, place: str) -> None:
    save_file({"secret": torch.zeros(1)}, copied.parent / "stolen.safetensors")
    changed_index(copied, lambda placed: placed.update({"model.norm.weight": place}))
    with pytest.raises(ModelError, match="no weight file of its folder"):
        opened(copied)


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_does_not_lead_out_of_its_folder(copied: Path) -> None:
    shard = sorted(copied.glob("*.safetensors"))[0]
    shard.rename(copied.parent / "stolen.safetensors")
    shard.symlink_to(copied.parent / "stolen.safetensors")
    with pytest.raises(ModelError, match="lies outside of its folder"):
        opened(copied)
    with opened(shard) as model:  # what is named itself is meant
        assert model.tensors


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="is no plain file"):
        opened(tmp_path / "model.safetensors")


SUCH = {
    "a pointer of Git LFS and not the file itself of 3.0 GB": b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:1234\nsize 3000000000\n",
    "a page of the web": b"<!DOCTYPE html><html><body>Log in</body></html>",
    "empty": b"",
    "compressed by gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "an APR file of version 1": b"APRN" + b"\0" * 60,
    "a bare pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.",
    "in no format of weights": b"hello world, this is a text",
}


@pytest.mark.parametrize("what", SUCH)
def test_what_is_no_model_is_told_by_what_it_is(what: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(SUCH[what])
    with pytest.raises(ModelError, match=rf"model\.safetensors is {what}") as refused:
        opened(tmp_path / "model.safetensors")
    assert refused.value.hint


def test_a_pickle_is_read_only_where_that_is_allowed(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    for place in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ModelError, match="is a pickle") as refused:
            opened(place)
        assert "--allow-pickle" in (refused.value.hint or "") or "allow_pickle" in (refused.value.hint or "")
    with opened(tmp_path, allow_pickle=True) as model:
        assert model.tensors["w"].shape == (3,)


def test_what_is_not_clear_is_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match=r"2 safetensors files: a\.safetensors, b\.safetensors"):
        opened(tmp_path)
    with opened(tmp_path, file="b.safetensors") as model:
        assert list(model.tensors) == ["w"]
    with pytest.raises(NotFoundError, match="has no file c"):
        opened(tmp_path, file="c.safetensors")
    with pytest.raises(EntrenarError):
        opened(tmp_path / "nothing")

"""Tensors as arrays of numpy: views of their file where numpy has the dtype, decoded where it has not."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from entrenar_core.errors import ModelError
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import StoredModel, open_model
from hub_server import HubServer
from tiny_models import tiny_gguf

PLAIN = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


def opened(path: Path) -> StoredModel:
    return open_model(parse_reference(str(path)), allow_pickle=True)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_what_numpy_has_is_a_view_of_the_file(suffix: str, tmp_path: Path) -> None:
    tensors = {str(dtype): (torch.randn(3, 4) * 5).to(dtype) for dtype in PLAIN}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    path = tmp_path / f"x.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    with opened(path) as model:
        for name, tensor in tensors.items():
            found = model.array(name)
            assert found.dtype == tensor.numpy().dtype
            np.testing.assert_array_equal(found, tensor.numpy())
            assert not found.flags.owndata or not found.size
            assert not found.flags.writeable


def test_what_lies_in_another_order_is_viewed_in_it(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    torch.save({"t": base.t(), "part": base[1:3, 2:5]}, tmp_path / "x.pt")
    with opened(tmp_path / "x.pt") as model:
        np.testing.assert_array_equal(model.array("t"), base.t().numpy())
        np.testing.assert_array_equal(model.array("part"), base[1:3, 2:5].numpy())


def test_what_numpy_lacks_is_decoded(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(5, 3).bfloat16(), "f": torch.randn(8).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "x.safetensors")
    with opened(tmp_path / "x.safetensors") as model:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(model.array(name), tensor.float().numpy())
    with opened(tiny_gguf(tmp_path / "x.gguf")) as model:
        assert all(model.array(name).shape == tensor.shape for name, tensor in model.tensors.items())


@pytest.mark.skipif(sys.platform != "linux", reason="how memory is counted")
def test_a_large_tensor_takes_no_memory_before_it_is_looked_at(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write((80).to_bytes(8, "little") + header.ljust(80))
        file.truncate(88 + 4_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with opened(tmp_path / "big.safetensors") as model:
        assert model.array("w")[123_456_789] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_what_is_not_there_is_named(hub: HubServer, llama_folder: Path, tmp_path: Path) -> None:
    hub.add("org/llama", llama_folder)
    with opened(tiny_gguf(tmp_path / "x.gguf")) as model, pytest.raises(ModelError, match="has no tensor w"):
        model.array("w")
    with open_model(parse_reference("org/llama")) as remote, pytest.raises(ModelError, match="are not here"):
        remote.array("model.norm.weight")

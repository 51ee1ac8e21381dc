"""Stored tensors in blocks, wherever their values lie."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.measuring.reading import InMemory, content_of
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model
from stored_tensors import Part, floats, model_of


def test_a_tensor_that_lies_in_another_order_is_read_row_by_row(tmp_path: Path) -> None:
    base = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    views = {"permuted": base.permute(2, 0, 1), "sliced": base[:, ::2, 1:3], "plain": base}
    torch.save(views, tmp_path / "model.bin")
    with open_model(PathReference(str(tmp_path / "model.bin")), allow_pickle=True) as model:
        assert model.tensors["permuted"].strides is not None
        for name, view in views.items():
            content = content_of(model, model.tensors[name])
            raw = content.bytes_at(0, np.empty(content.size_bytes, np.uint8))
            assert content.decode(0, raw).tolist() == view.flatten().tolist()


def test_a_tensor_in_a_header_is_read_from_it(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4")
    with model_of(tmp_path / "x", {"held": Part("F32", (2, 3), values.tobytes(), inline=True)}) as model:
        content = content_of(model, model.tensors["held"])
        assert isinstance(content.source, InMemory)
        raw = content.bytes_at(8, np.empty(8, np.uint8))
        assert content.decode(8, raw).tolist() == [2, 3]
        content.source.close()


def test_values_beyond_the_last_are_left_out_of_its_block(tmp_path: Path) -> None:
    raw = bytes(range(36))  # two blocks, of which three values are of a third dozen
    with model_of(tmp_path / "x", {"t": Part("APR_Q4", (5, 7), raw)}) as model:
        content = content_of(model, model.tensors["t"])
        assert len(content.decode(18, content.bytes_at(18, np.empty(18, np.uint8)))) == 3
        assert content.cut(32) == [(0, 18), (18, 18)]


def test_a_scale_in_front_is_no_value(tmp_path: Path) -> None:
    raw = np.float32(0.25).tobytes() + np.arange(5, dtype=np.int8).tobytes()
    with model_of(tmp_path / "x", {"t": Part("APR_Q8", (5,), raw)}) as model:
        content = content_of(model, model.tensors["t"])
        found = content.decode(2, content.bytes_at(2, np.empty(3, np.uint8)))
        assert (content.size_bytes, content.scale, found.tolist()) == (5, 0.25, [0.5, 0.75, 1])


def test_a_file_that_is_cut_short_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with model_of(path, {"t": floats(np.ones(100))}) as model:
        content = content_of(model, model.tensors["t"])
        path.write_bytes(bytes(100))
        with pytest.raises(ModelError, match="ends"):
            content.bytes_at(0, np.empty(400, np.uint8))


def test_a_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    part = Part(Dtype("ggml type 99", "quantised", 1, 0), (4,), b"abcd")
    with (
        model_of(tmp_path / "x", {"odd": part}) as model,
        pytest.raises(ModelError, match="tensor odd is of the type ggml type 99"),
    ):
        content_of(model, model.tensors["odd"])


def test_what_shows_figures_needs_no_numpy() -> None:
    script = "import sys, entrenar_core.measuring; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

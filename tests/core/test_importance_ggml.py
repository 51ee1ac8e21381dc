"""Importance matrices where they are used: ggml reads what is written, and quantises better with them."""

import ctypes
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from entrenar_core.importance import ImportanceMatrix, Inputs, write_importance

pytestmark = pytest.mark.real_models
Values = NDArray[np.float32]
ROWS, COLUMNS = 32, 512
KINDS = {"Q4_0": 2, "Q5_1": 7, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q6_K": 14, "IQ4_XS": 23}


@functools.cache
def ggml() -> Any:
    """The library that llama.cpp quantises with, or the test is skipped."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("the package xllamacpp is not installed; `make setup` brings it")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library


def quantised(weights: Values, kind: str, importance: Values | None) -> Values:
    """What is left of weights that ggml quantised."""
    rows, columns = weights.shape
    room = np.empty(weights.nbytes, np.uint8)
    pointer = None if importance is None else np.ascontiguousarray(importance).ctypes.data
    size = ggml().ggml_quantize_chunk(KINDS[kind], weights.ctypes.data, room.ctypes.data, 0, rows, columns, pointer)
    number = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(room[:size].reshape(rows, -1), number)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_lowers_the_error_of_what_a_matrix_puts_out(kind: str) -> None:
    random = np.random.default_rng(3)
    weights = random.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    inputs = (random.normal(size=(4000, COLUMNS)) * random.lognormal(sigma=1.0, size=COLUMNS)).astype(np.float32)
    sums = (inputs.astype(np.float64) ** 2).sum(0, keepdims=True).astype(np.float32)
    matrix = ImportanceMatrix({"blk.0.ffn_up.weight": Inputs(sums, np.asarray([len(inputs)]))}, 1, len(inputs))
    unseen = (random.normal(size=(500, COLUMNS)) * np.sqrt(sums / len(inputs))).astype(np.float32)

    def error(importance: Values | None) -> float:
        change = quantised(weights, kind, importance) - weights
        return float(((unseen @ change.T) ** 2).mean())

    without, with_it = error(None), error(matrix.means("blk.0.ffn_up.weight", COLUMNS))
    assert with_it < 0.97 * without


def test_the_scale_of_an_importance_matrix_does_not_matter() -> None:
    random = np.random.default_rng(4)
    weights = random.normal(size=(4, COLUMNS)).astype(np.float32)
    importance = random.exponential(size=COLUMNS).astype(np.float32)
    first, second = (quantised(weights, "Q4_K", importance * np.float32(scale)) for scale in (1, 1024))
    np.testing.assert_array_equal(first, second)


def test_ggml_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    sums = np.asarray([[1.0, 2.5, 0.0]], np.float32)
    write_importance(path, ImportanceMatrix({"blk.0.attn_q.weight": Inputs(sums, np.asarray([3]))}, 2, 64, ("x",)))

    class Settings(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))

    def call(name: str, *given: Any, gives: Any = ctypes.c_int64) -> Any:
        function = ggml()[f"gguf_{name}"]  # an own object for each call
        function.restype = gives
        return function(*given)

    opened = ctypes.c_void_p(call("init_from_file", str(path).encode(), Settings(True, None), gives=ctypes.c_void_p))
    assert opened.value, "ggml refuses the file"

    def key(name: bytes) -> ctypes.c_int64:
        return ctypes.c_int64(call("find_key", opened, name))

    numbers = [ctypes.c_int64(number) for number in range(call("get_n_tensors", opened))]
    names = [call("get_tensor_name", opened, number, gives=ctypes.c_char_p) for number in numbers]
    assert names == [b"blk.0.attn_q.weight.in_sum2", b"blk.0.attn_q.weight.counts"]
    assert call("get_val_u32", opened, key(b"imatrix.chunk_count"), gives=ctypes.c_uint32) == 2
    assert call("get_val_u32", opened, key(b"imatrix.chunk_size"), gives=ctypes.c_uint32) == 64
    assert call("get_val_str", opened, key(b"general.type"), gives=ctypes.c_char_p) == b"imatrix"
    assert call("get_arr_n", opened, key(b"imatrix.datasets"), gives=ctypes.c_size_t) == 1
    place = call("get_data_offset", opened) + call("get_tensor_offset", opened, numbers[0])
    assert path.read_bytes()[place : place + sums.nbytes] == sums.tobytes()
    call("free", opened, gives=None)

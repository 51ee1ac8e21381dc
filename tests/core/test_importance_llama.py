"""What llama.cpp's own matrices read, watched while it runs, against what is computed with transformers."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest

from entrenar_core.artifact import inspect_folder
from entrenar_core.importance import compute_importance
from entrenar_core.models.tokenizers import load_tokenizer
from llama_server import real_gguf, shallow_gguf, shallow_llama

pytestmark = [pytest.mark.real_models, pytest.mark.nightly]
TEXT = "Two tanks of water stand at the same height; <|im_end|> is spelled in letters here. " * 12
CHUNK, CHUNKS, OTHER_LAYOUT = 64, 2, 7
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# Asks llama.cpp's scheduler to show every product before it is computed, as its imatrix tool does, and adds up squares.
# The structures are those of llama.h and ggml.h; that the settings lie where they are looked for shows in their
# defaults. They are longer than any of its versions: only their start is looked at.
_PROGRAM = f"""
import ctypes, sys
import numpy as np

class Settings(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 64)]

class Tensor(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32), ("buffer", ctypes.c_void_p), ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4), ("op", ctypes.c_int32), ("params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32), ("sources", ctypes.c_void_p * 10), ("view", ctypes.c_void_p),
        ("view_offset", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    ]

class Batch(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int32), ("tokens", ctypes.POINTER(ctypes.c_int32)), ("embeddings", ctypes.c_void_p),
        ("positions", ctypes.POINTER(ctypes.c_int32)), ("sequences", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("outputs", ctypes.POINTER(ctypes.c_int8)),
    ]

library, pointer, number = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p, ctypes.c_int32

def function(name, gives, *takes):
    found = library[name]
    found.restype, found.argtypes = gives, takes
    return found

op_name = function("ggml_op_name", ctypes.c_char_p, number)
sums = {{}}

@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Tensor), ctypes.c_bool, pointer)
def watch(tensor, asks, _):
    tensor = tensor.contents
    if op_name(tensor.op) != b"MUL_MAT":
        return not asks
    weight, reads = (Tensor.from_address(tensor.sources[at]) for at in range(2))
    if not weight.name.startswith(b"blk."):
        return not asks
    if not asks:
        shape = reads.sizes[1], reads.sizes[0]
        values = np.ctypeslib.as_array(ctypes.cast(reads.data, ctypes.POINTER(ctypes.c_float)), shape)
        name = weight.name.decode()
        sums[name] = sums.get(name, 0) + (values.astype(np.float64) ** 2).sum(0)
    return True

context = function("llama_context_default_params", Settings)()
words = context.words
known = {{0: 512, 1: 2048, 2: 512, 3: 1, 13: 2**32 - 1, 16: 0xBF800000, 22: 0, 23: 0, 26: 1, 27: 1}}
if any(words[at] != value for at, value in known.items()):
    sys.exit({OTHER_LAYOUT})
place = ctypes.cast(watch, pointer).value
words[0] = words[1] = words[2] = {CHUNK}
words[13], words[26], words[27] = 0, 0, 0  # no flash attention, keys and values in 32 bits
words[22], words[23] = place & 0xFFFFFFFF, place >> 32
library.llama_backend_init()
settings = function("llama_model_default_params", Settings)()
model = function("llama_model_load_from_file", pointer, ctypes.c_char_p, Settings)(sys.argv[2].encode(), settings)
running = function("llama_init_from_model", pointer, pointer, Settings)(model, context)
vocabulary = function("llama_model_get_vocab", pointer, pointer)(model)
text, room = sys.argv[3].encode(), (number * 4096)()
tokenize = function("llama_tokenize", number, pointer, ctypes.c_char_p, number, pointer, number, *[ctypes.c_bool] * 2)
found = tokenize(vocabulary, text, len(text), room, 4096, True, False)
assert found >= {CHUNK * CHUNKS}
memory = function("llama_get_memory", pointer, pointer)(running)
clear = function("llama_memory_clear", None, pointer, ctypes.c_bool)
decode = function("llama_decode", number, pointer, Batch)
for chunk in range({CHUNKS}):
    clear(memory, True)
    batch = function("llama_batch_init", Batch, number, number, number)({CHUNK}, 0, 1)
    batch.count = {CHUNK}
    for at in range({CHUNK}):
        batch.tokens[at], batch.positions[at] = room[chunk * {CHUNK} + at], at
        batch.sequences[at], batch.sequence[at][0], batch.outputs[at] = 1, 0, 1
    assert decode(running, batch) == 0
np.savez(sys.argv[4], **sums)
"""


def test_sums_are_those_of_llama_cpp(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(real_gguf())
    path, output = shallow_gguf(reader, tmp_path / "shallow.gguf", layers=1), tmp_path / "sums.npz"
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    library = next(Path(spec.origin).parent.glob("*.so"))
    command = [sys.executable, "-c", _PROGRAM, str(library), str(path), TEXT, str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == OTHER_LAYOUT:
        pytest.skip("the settings of this llama.cpp lie elsewhere")
    assert done.returncode == 0, done.stderr
    sums = np.load(output)
    names = {f"model.layers.0.{ours}.weight": f"blk.0.{stored}.weight" for ours, stored in NAMES.items()}
    tokenizer = load_tokenizer(inspect_folder(real_gguf()))
    matrix = compute_importance(
        shallow_llama(reader, layers=1), tokenizer, TEXT, names=names, chunk=CHUNK, chunks=CHUNKS
    )
    assert set(sums) == matrix.inputs.keys()
    for name, inputs in matrix.inputs.items():
        np.testing.assert_allclose(inputs.sums_MI[0], sums[name], rtol=1e-4)

"""The token ids of real llama.cpp, from its shared library: it loads the vocabulary of a file and nothing else."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import pytest

from entrenar_core.formats.gguf_values import Value, text, u32
from entrenar_core.formats.gguf_writer import write

# That the vocabulary alone is loaded is the first of the booleans.
_PROGRAM = """
import ctypes, glob, json, sys
lib = ctypes.CDLL(glob.glob(sys.argv[1] + "/*.so")[0])
class Parameters(ctypes.Structure):
    _fields_ = [("pointers", ctypes.c_ubyte * 72), ("flags", ctypes.c_bool * 8)]
class Opaque(ctypes.c_void_p):
    pass
log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    lambda level, said, _: sys.stderr.write(said.decode(errors="replace")) if level == 4 else None)
lib.llama_log_set(log, None)
lib.llama_backend_init()
lib.llama_model_default_params.restype = Parameters
lib.llama_model_load_from_file.restype = lib.llama_model_get_vocab.restype = Opaque
parameters = lib.llama_model_default_params()
assert list(parameters.flags)[:3] == [False, False, True], "llama.cpp has other parameters now"
parameters.flags[0] = True
vocabularies = []
for path in sys.argv[2:]:
    model = lib.llama_model_load_from_file(path.encode(), parameters)
    assert model, "llama.cpp does not load " + path
    vocabularies.append(lib.llama_model_get_vocab(model))
for line in sys.stdin:
    which, texts = json.loads(line)
    found = []
    for text in texts:
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        count = lib.llama_tokenize(vocabularies[which], raw, len(raw), ids, len(ids), True, True)
        found.append(ids[:count])
    print(json.dumps(found), flush=True)
"""


def vocabulary_file(path: Path, metadata: Mapping[str, Value], *, architecture: str = "llama") -> Path:
    """A GGUF that has a tokenizer and nothing else."""
    keys = {"general.architecture": text(architecture), f"{architecture}.context_length": u32(512)}
    write(path, [], {**keys, **metadata})
    return path


class LlamaTokens:
    """Real llama.cpp in a process of its own, with the vocabularies of some files; a context manager."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._places = {name: place for place, name in enumerate(files)}
        self._paths = list(map(str, files.values()))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        spec = find_spec("xllamacpp")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("xllamacpp is not installed; `make setup` brings it")
        command = [sys.executable, "-c", _PROGRAM, spec.submodule_search_locations[0], *self._paths]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate(timeout=60)

    def ids(self, name: str, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text by the file of this name: with what stands at its ends, special tokens found in it."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([self._places[name], list(texts)]) + "\n")
        self._process.stdin.flush()
        found: list[list[int]] = json.loads(self._process.stdout.readline() or "null")
        assert found is not None, "llama.cpp has ended"
        return found

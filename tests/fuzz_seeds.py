"""Sound files that fuzzing starts from: one of every format, and what is checked before the rest of it is read, which
is made right again after a change, so that the rest is reached too.
"""

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from malformed_folders import llama
from malformed_parts import (
    APR_HEADER,
    LLAMA,
    apr,
    apr_json,
    apr_row,
    array,
    entry,
    gguf,
    pair,
    row,
    safetensors,
    text,
)
from onnx_bytes import message, varint
from torch_files import CENTRAL, END, LOCAL, dict_of, pickled, storage, tensor, zipped
from torch_files import text as pickled_text


@dataclass(frozen=True, slots=True)
class Seed:
    """What is changed, and how it becomes a model: `write` gives what is to be opened.

    `marks` are the places of numbers in it that say how long, how many, or where.
    """

    content: bytes
    write: Callable[[Path, bytes], Path]
    marks: tuple[int, ...] = ()

    @property
    def is_text(self) -> bool:
        return self.content.startswith(b"{")


def _file(name: str) -> Callable[[Path, bytes], Path]:
    def write(folder: Path, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _made(name: str, make: Callable[[bytes], bytes]) -> Callable[[Path, bytes], Path]:
    return lambda folder, content: _file(name)(folder, make(content))


def _beside(name: str, files: Mapping[str, bytes]) -> Callable[[Path, bytes], Path]:
    """Writes the content beside other files, and gives the folder."""

    def write(folder: Path, content: bytes) -> Path:
        for other, data in files.items():
            if not (folder / other).exists():
                (folder / other).write_bytes(data)
        (folder / name).write_bytes(content)
        return folder

    return write


def _around(content: bytes, *names: bytes, before: int = 8, after: tuple[int, ...] = (0, 4, 8)) -> tuple[int, ...]:
    """Where numbers stand around names: as far before each, and as far after it."""
    places = []
    for name in names:
        at = content.index(name)
        places += [at - before, *(at + len(name) + distance for distance in after)]
    return tuple(places)


_WEIGHTS = llama()
_HEADER = _WEIGHTS[8 : 8 + struct.unpack("<Q", _WEIGHTS[:8])[0]]
_DATA = _WEIGHTS[8 + len(_HEADER) :]

_GGUF = gguf(
    (
        LLAMA,
        pair("llama.block_count", 4, struct.pack("<I", 1)),
        pair("llama.embedding_length", 10, struct.pack("<Q", 4)),
        pair("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        pair("tokenizer.ggml.model", 8, text("gpt2")),
        pair("tokenizer.ggml.tokens", 9, array(8, 3, text("a") + text("b") + text("c"))),
        pair("lists", 9, array(9, 2, array(4, 2, bytes(8)) + array(7, 1, b"\1"))),
    ),
    (row("token_embd.weight", (4, 8)), row("blk.0.attn_q.weight", (32, 1), 8, 128), row("norm", (8,), 1, 192)),
    bytes(256),
)
_APR = apr(rows=(apr_row(b"a"), apr_row(b"b", (2, 2), offset=64)), data=bytes(128))
_PICKLE = pickled(
    {
        "state_dict": dict_of({"a": tensor(), "b": tensor(storage(), shape=(2, 2), strides=(1, 2))}),
        "epoch": pickled_text("3"),
    }
)
_ZIP = zipped(_PICKLE)
_ENTRIES = tuple(_ZIP.index(magic, at) for magic in (LOCAL, CENTRAL, END) for at in (0, _ZIP.index(magic) + 1)
                 if magic in _ZIP[at:])  # fmt: skip


def _onnx_tensor(name: bytes, kind: int, more: bytes, shape: tuple[int, ...] = (2, 2)) -> bytes:
    dims = b"".join(b"\x08" + varint(size) for size in shape)
    return dims + b"\x10" + varint(kind) + message(8, name) + more


_ONNX = b"\x08\x08" + message(2, b"maker") + message(8, message(1, b"") + b"\x10\x11") + message(
    7,
    message(2, b"g")
    + message(5, _onnx_tensor(b"raw", 1, message(9, bytes(16))))
    + message(5, _onnx_tensor(b"packed", 7, message(7, b"\1\2\3\x80\1")))
    + message(5, _onnx_tensor(b"far", 1, message(13, message(1, b"location") + message(2, b"w.bin")) + b"\x70\1"))
    + message(1, message(2, b"c") + message(4, b"Constant")
              + message(5, message(1, b"value") + message(5, _onnx_tensor(b"", 1, message(4, bytes(16))))))
    + message(11, message(1, b"x") + message(2, message(1, b"\x08\1" + message(2, message(1, b"\x08\2"))))),
)  # fmt: skip
_SHARDS = {f"model-0000{n}-of-00002.safetensors": safetensors({name: entry()}) for n, name in ((1, "a"), (2, "b"))}
_INDEX = {"metadata": {"total_size": 16}, "weight_map": dict(zip("ab", _SHARDS, strict=True))}
_CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 2, "intermediate_size": 4, "vocab_size": 6,
    "tie_word_embeddings": False, "rope_parameters": {"rope_theta": 1e4}, "dtype": "float32",
    "quantization_config": {"bits": 4, "quant_method": "awq"}, "num_experts_per_tok": 2,
}  # fmt: skip
_TOKENIZER = {
    "added_tokens": [{"id": 2, "content": "<s>"}], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}  # fmt: skip
_ADAPTER = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": "org/name", "rank_pattern": {},
            "use_rslora": True, "target_modules": ["q"]}  # fmt: skip
_LORA = safetensors(
    {"q.lora_A.weight": entry("F32", (1, 2)), "q.lora_B.weight": entry("F32", (2, 1), (8, 16))}, bytes(16)
)


def resummed(content: bytes) -> bytes:
    """An APR file whose checksums are right."""
    if len(content) < APR_HEADER.size + 4:
        return content
    head = content[: APR_HEADER.size]
    head = head[:40] + zlib.crc32(head[44:], zlib.crc32(head[:40])).to_bytes(4, "little") + head[44:]
    body = head + content[APR_HEADER.size : -4]
    return body + zlib.crc32(body).to_bytes(4, "little")


_APR_MARKS = (4, 6, 8, 12, 20, 24, 32, 40, *_around(_APR, b"\1\0a", b"\1\0b", before=0, after=(0, 1, 2, 10, 18)))

SEEDS: Mapping[str, Seed] = {
    "safetensors": Seed(_WEIGHTS, _file("model.safetensors"), (0, 0, 8)),
    "safetensors-header": Seed(
        _HEADER, _made("model.safetensors", lambda raw: struct.pack("<Q", len(raw)) + raw + _DATA)
    ),
    "gguf": Seed(
        _GGUF, _file("model.gguf"),
        (4, 8, 16, *_around(_GGUF, b"general.architecture", b"llama.block_count", b"tokenizer.ggml.tokens", b"lists",
                            b"token_embd.weight", b"blk.0.attn_q.weight", b"norm", after=(0, 4, 8, 12, 20, 24))),
    ),
    "apr": Seed(_APR, _file("model.apr"), _APR_MARKS),
    "apr-resummed": Seed(_APR, _made("model.apr", resummed), _APR_MARKS),
    "apr-json": Seed(apr_json(), _file("model.apr.json")),
    "pytorch": Seed(
        _ZIP,
        _file("pytorch_model.bin"),
        tuple(at + by for at in _ENTRIES for by in (6, 8, 10, 12, 16, 18, 20, 22, 24, 42)),
    ),
    "pickle": Seed(_PICKLE, _made("pytorch_model.bin", zipped)),
    "onnx": Seed(_ONNX, lambda folder, raw: _beside("model.onnx", {"w.bin": bytes(16)})(folder, raw) / "model.onnx"),
    "index": Seed(json.dumps(_INDEX).encode(), _beside("model.safetensors.index.json", _SHARDS)),
    "config": Seed(json.dumps(_CONFIG).encode(), _beside("config.json", {"model.safetensors": _WEIGHTS})),
    "tokenizer": Seed(json.dumps(_TOKENIZER).encode(), _beside("tokenizer.json", {"model.safetensors": _WEIGHTS})),
    "adapter": Seed(
        json.dumps(_ADAPTER).encode(), _beside("adapter_config.json", {"adapter_model.safetensors": _LORA})
    ),
}  # fmt: skip

"""Folders that are malformed: shard indexes, links, and the settings, adapters and tokenizers beside weights."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from malformed_parts import ESCAPES, Case, Content, entry, gguf, nested, safetensors, write_sparse

_INDEX = "model.safetensors.index.json"
_ONE, _TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
_SHARDS: Mapping[str, Content] = {_ONE: safetensors({"a": entry()}), _TWO: safetensors({"b": entry()})}


def _write(path: Path, content: Content) -> None:
    path.write_bytes(content() if callable(content) else content)


def _folder(files: Mapping[str, Content], says: str, *, links: Mapping[str, str] | None = None, odd: bool = False,
            model: str = "") -> Case:  # fmt: skip
    """Files, and links by where they lead."""

    def fill(folder: Path) -> None:
        for name, content in files.items():
            _write(folder / name, content)
        for name, target in (links or {}).items():
            (folder / name).symlink_to(target)

    return Case(fill, says, model, odd)


def _sparse(name: str, head: bytes, says: str, files: Mapping[str, Content], *, odd: bool = False) -> Case:
    """A folder with a file of 99 MB that takes no room."""

    def fill(folder: Path) -> None:
        for other, content in files.items():
            _write(folder / other, content)
        write_sparse(folder / name, head, 99_000_000)

    return Case(fill, says, odd=odd)


def _index(weight_map: Any, says: str, *, shards: Mapping[str, Content] | None = None, **how: Any) -> Case:
    """Two shards and an index that says this of them."""
    listing = json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}).encode()
    return _folder({**(_SHARDS if shards is None else shards), _INDEX: listing}, says, **how)


def _placed(shard: str, says: str, **how: Any) -> Case:
    """An index that puts one tensor into a shard of this name."""
    return _index({"a": _ONE, "b": shard}, says, **how)


_HOSTILE = "no weight file of its folder"

INDEXES: Mapping[str, Case] = {
    "index-that-leads-up": _placed("../outside/stolen.safetensors", _HOSTILE),
    "index-that-leads-up-inside": _placed("a/../../outside/stolen.safetensors", _HOSTILE),
    "index-absolute": _placed("/etc/stolen.safetensors", _HOSTILE),
    "index-of-windows": _placed("..\\outside\\stolen.safetensors", _HOSTILE),
    "index-of-a-drive": _placed("C:stolen.safetensors", _HOSTILE),
    "index-with-a-zero": _placed("a\0.safetensors", _HOSTILE),
    "index-of-half-a-character": _placed("\ud800.safetensors", _HOSTILE),
    "index-of-escapes": _placed(ESCAPES + ".safetensors", "lacks 1 of the 2 files"),
    "index-of-a-megabyte": _placed("x" * 1_000_000 + ".safetensors", _HOSTILE),
    "index-of-a-pickle": _placed("pytorch_model.bin", _HOSTILE),
    "index-of-settings": _placed("config.json", _HOSTILE),
    "index-of-itself": _placed(_INDEX, _HOSTILE),
    "index-of-a-missing-shard": _placed("model-00009-of-00002.safetensors", "lacks 1 of the 2 files.*00009-of-00002"),
    "index-through-a-link-that-leads-out": _placed(
        "linked.safetensors", "lies outside of its folder", links={"linked.safetensors": "../outside/stolen.safetensors"}
    ),
    "index-through-a-folder-that-leads-out": _placed(
        "linked/stolen.safetensors", "lies outside of its folder", links={"linked": "../outside"}
    ),
    "index-through-a-cycle-of-links": _placed(
        "one.safetensors", "lies outside of its folder", links={"one.safetensors": "two.safetensors",
                                                        "two.safetensors": "one.safetensors"}
    ),
    "index-of-a-thousand-ways-to-one-shard": _index(
        {f"a{level}": "d/" * level + _ONE for level in range(30)}, r"lists a\d+, which no shard has|is in",
        links={"d": "."}, odd=True
    ),
    "index-not-json": _folder({**_SHARDS, _INDEX: b"{"}, "is not JSON"),
    "index-a-list": _folder({**_SHARDS, _INDEX: b"[]"}, "instead of an object"),
    "index-nested": _folder({**_SHARDS, _INDEX: lambda: nested(100_000).encode()}, "is not JSON"),
    "index-of-99-mb-sparse": _sparse(_INDEX, b'{"weight_map":', "too large for a file of settings", _SHARDS),
    "index-without-a-map": _folder({**_SHARDS, _INDEX: b'{"metadata":{}}'}, "lists no shards"),
    "index-of-nothing": _index({}, "lists no shards"),
    "index-a-map-of-lists": _index({"a": [_ONE]}, _HOSTILE),
    "index-a-list-of-names": _index([_ONE, _TWO], "lists no shards"),
    "index-of-two-formats": _placed(_TWO, "of the formats", shards={**_SHARDS, _TWO: gguf()}),
    "index-of-a-shard-cut-short": _placed(_TWO, "3 bytes .* are missing", shards={**_SHARDS, _TWO: safetensors()[:-3]}),
    "index-of-an-empty-shard": _placed(_TWO, "is empty", shards={**_SHARDS, _TWO: b""}),
    "index-of-a-pointer-of-lfs": _placed(
        _TWO, "Git LFS", shards={**_SHARDS, _TWO: b"version https://git-lfs.github.com/spec/v1\nsize 9\n"}
    ),
    "index-of-many-lists": _folder({**_SHARDS, _INDEX: lambda: b'{"weight_map":{"a":[' + b"[]," * 5_000_000}, "more values"),
    "index-odd-of-another-size": _folder(
        {**_SHARDS, _INDEX: json.dumps({"metadata": {"total_size": 99}, "weight_map": {"a": _ONE, "b": _TWO}}).encode()},
        "the index says that its tensors take 99 bytes, and they take", odd=True
    ),
    "index-missing-and-a-shard": _folder({_ONE: _SHARDS[_ONE]}, "has 1 of 2 shards, and lacks model-00002-of-00002"),
    "index-odd-missing": _folder(_SHARDS, "the index of its 2 shards is missing", odd=True),
    "index-odd-lists-what-is-not-there": _index({"a": _ONE, "b": _TWO, ESCAPES: _TWO}, "which no shard has", odd=True),
    "index-odd-leaves-out": _index({"a": _ONE, "x": _TWO}, "2 findings", odd=True),
    "index-odd-in-the-other-shard": _index({"a": _TWO, "b": _ONE}, "2 findings", odd=True),
    "index-odd-tensor-in-both": _index(
        {"a": _ONE, "b": _TWO}, "tensor a is in",
        shards={**_SHARDS, _TWO: safetensors({"a": entry(), "b": entry(offsets=(8, 16))}, bytes(16))}, odd=True
    ),
}  # fmt: skip

_WEIGHTS: Mapping[str, Content] = {"model.safetensors": safetensors()}


def llama(hidden: int = 4, vocab: int = 6) -> bytes:
    """A Llama of one layer."""
    square, line, layer = (hidden, hidden), (hidden,), "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": line,
        "lm_head.weight": (vocab, hidden),
        **{f"{layer}.self_attn.{name}_proj.weight": square for name in "qkvo"},
        **{f"{layer}.mlp.{name}_proj.weight": square for name in ("gate", "up", "down")},
        **{f"{layer}.{name}_layernorm.weight": line for name in ("input", "post_attention")},
    }
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        entries[name] = entry("F32", shape, (start, end))
    return safetensors(entries, bytes(end))


_CONFIG = {
    "model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 4, "vocab_size": 6, "tie_word_embeddings": False,
}  # fmt: skip
_VAST = 10**400
_BPE = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}


def _llama_of(says: str, tokenizer: Any = None, *, odd: bool = True, **config: Any) -> Case:
    files: dict[str, Content] = {
        "model.safetensors": llama(), "config.json": json.dumps({**_CONFIG, **config}).encode(),
    }  # fmt: skip
    if tokenizer is not None:
        files["tokenizer.json"] = json.dumps(tokenizer).encode()
    return _folder(files, says, odd=odd)


def write_llama(folder: Path) -> None:
    """A sound model with settings and a tokenizer."""
    (folder / "model.safetensors").write_bytes(llama())
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(_BPE))


def _beside(name: str, content: Content, says: str, **how: Any) -> Case:
    return _folder({**_WEIGHTS, name: content}, says, **how)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")


SETTINGS: Mapping[str, Case] = {
    "folder-empty": _folder({}, "has no weights"),
    "folder-without-weights": _folder({"config.json": b"{}", ESCAPES: b""}, "has no weights"),
    "folder-of-two-models": _folder({"a.safetensors": b"", ESCAPES + ".safetensors": b""}, "holds 2 safetensors files"),
    "folder-of-a-pickle": _folder({"pytorch_model.bin": b"\x80\x02}."}, "is a bare pickle"),
    "link-to-itself": _folder({}, "does not exist", links={"model.safetensors": "model.safetensors"},
                              model="model.safetensors"),
    "link-to-a-device": _folder({}, "is no plain file", links={"model.safetensors": "/dev/zero"},
                                model="model.safetensors"),
    "link-that-leads-out": _folder({}, "lies outside of its folder",
                                   links={"model.safetensors": "../outside/stolen.safetensors"}),
    "link-of-a-folder-that-leads-out": _folder({}, "has no weights", links={"onnx": "../outside"}),
    "pipe": Case(_pipe, "is no plain file", "model.safetensors"),
    "config-not-json": _beside("config.json", b"{'a': 1}", "config.json is not JSON", odd=True),
    "config-a-list": _beside("config.json", b"[1]", "instead of an object", odd=True),
    "config-not-utf-8": _beside("config.json", b'{"a":"\xff"}', "config.json is not JSON", odd=True),
    "config-nested": _beside("config.json", lambda: b'{"a":' + nested(200_000).encode() + b"}", "is not JSON", odd=True),
    "config-nested-in-objects": _beside("config.json", lambda: b'{"a":' * 200_000, "is not JSON", odd=True),
    "config-of-a-long-number": _beside("config.json", b'{"hidden_size":' + b"9" * 5000 + b"}", "is not JSON", odd=True),
    "config-of-99-mb-sparse": _sparse("config.json", b'{"model_type":"llama"', "too large for a file", _WEIGHTS, odd=True),
    "config-over-the-limit-sparse": Case(
        lambda folder: (_write(folder / "model.safetensors", safetensors()),
                        write_sparse(folder / "config.json", b"{", 10**12)), "too large for a file of settings", odd=True),
    "config-of-millions-of-lists": _beside("config.json", lambda: b'{"a":[' + b"[]," * 1_500_000 + b"[]]}", "more values", odd=True),
    "config-of-many-numbers": _beside("config.json", lambda: b'{"a":[' + b"0," * 5_000_000, "more values", odd=True),
    "config-that-leads-out": _folder(_WEIGHTS, "lies outside", links={"config.json": "../outside/config.json"}, odd=True),
    "config-odd-heads": _llama_of("heads", num_attention_heads=3, num_key_value_heads=3),
    "config-odd-negative": _llama_of("config.json says", hidden_size=-4, vocab_size=99),
    "config-odd-vast": _llama_of("config.json says", hidden_size=_VAST, vocab_size=_VAST, num_attention_heads=_VAST,
                                 head_dim=_VAST),
    "config-odd-types": _llama_of("config.json says", hidden_size={}, num_attention_heads="2", architectures=[1, {}],
                                  quantization_config={"bits": 10**400, "quant_method": ESCAPES}, dtype=ESCAPES),
    "tokenizer-not-json": _beside("tokenizer.json", b"{", "tokenizer.json is not JSON", odd=True),
    "tokenizer-nested": _beside("tokenizer.json", lambda: nested(100_000).encode(), "is not JSON", odd=True),
    "tokenizer-of-99-mb-sparse": _sparse("tokenizer.json", b'{"model":{"vocab":{', "too large for a file", _WEIGHTS, odd=True),
    "tokenizer-of-many-merges": _beside(
        "tokenizer.json", lambda: b'{"model":{"vocab":{},"merges":[' + b'["",""],' * 2_500_000, "more values", odd=True),
    "tokenizer-without-a-model": _beside("tokenizer.json", b"{}", "has no vocabulary", odd=True),
    "tokenizer-a-number": _beside("tokenizer.json", b'{"model":{"vocab":7}}', "has no vocabulary", odd=True),
    "tokenizer-of-null": _beside("tokenizer.json", b'{"model":{"vocab":{"a":null}}}', "has no vocabulary", odd=True),
    "tokenizer-of-infinite-ids": _beside("tokenizer.json", b'{"model":{"vocab":{"a":1e999}}}', "has no vocabulary", odd=True),
    "tokenizer-of-long-ids": _beside("tokenizer.json", b'{"model":{"vocab":{"a":"' + b"9" * 9999 + b'"}}}', "no vocab", odd=True),
    "tokenizer-of-added-numbers": _beside(
        "tokenizer.json", b'{"model":{"vocab":{}},"added_tokens":[1]}', "has no vocabulary", odd=True),
    "tokenizer-that-leads-out": _folder(_WEIGHTS, "lies outside", links={"tokenizer.json": "../outside/config.json"}, odd=True),
    "tokenizer-settings-a-list": _folder({**_WEIGHTS, "tokenizer.json": json.dumps(_BPE).encode(),
                                          "tokenizer_config.json": b"[]"}, "instead of an object", odd=True),
    "tokenizer-odd-ids-beyond": _llama_of("ids go up to 4,096, and there are 6 embeddings",
                                          {"model": {"vocab": {"a": 4096}}}),
    "tokenizer-odd-ids-vast": _llama_of("ids go up to", {"model": {"vocab": {"a": _VAST}}}),
    "adapter-without-weights": _folder({"adapter_config.json": b"{}"}, "has no weights|holds a PEFT adapter"),
    "adapter-config-not-json": _folder(
        {"adapter_model.safetensors": safetensors(), "adapter_config.json": b'{"r":'}, "adapter_config.json is not JSON",
        odd=True),
    "adapter-config-nested": _folder(
        {"adapter_model.safetensors": safetensors(), "adapter_config.json": lambda: nested(100_000).encode()}, "not JSON",
        odd=True),
    "adapter-cut-short": _folder(
        {"adapter_model.safetensors": safetensors()[:-1], "adapter_config.json": b'{"r":1}'}, "1 bytes .* missing"),
    "adapter-odd-ranks": _folder(
        {"adapter_model.safetensors": safetensors({"base.lora_A.weight": entry(shape=(0, 2**62), offsets=(0, 0))}, b""),
         "adapter_config.json": json.dumps({"r": _VAST, "lora_alpha": _VAST, "use_rslora": True}).encode()},
        "is empty, and has the shape", odd=True),
}  # fmt: skip

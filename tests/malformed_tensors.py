"""Malformed files of the formats that hold nothing but tensors: safetensors, GGUF, and both forms of APR."""

import json
import struct
from collections.abc import Mapping, Sequence
from functools import partial

from malformed_parts import (
    APR_METADATA,
    ESCAPES,
    LLAMA,
    Case,
    Content,
    apr,
    apr_json,
    apr_row,
    array,
    entry,
    file,
    gguf,
    nested,
    pair,
    row,
    safetensors,
    sparse,
    text,
)

_NAN = struct.pack("<2f", 1.0, float("nan"))


def _named(name: str) -> bytes:
    return safetensors({name: entry()})


_st = partial(file, "model.safetensors")
_odd = partial(file, "model.safetensors", odd=True)


def _of(**how: object) -> bytes:
    """A safetensors file with one tensor that is told so."""
    return safetensors({"w": entry(**how)})


def _bulk(what: str, times: int, before: str = "", after: str = "") -> Content:
    return lambda: safetensors('{"w":' + before + what * times + after + "}")


def _many_tensors() -> bytes:
    """A header of 100,000 sound tensors, and no data."""
    entries = (f'"{at}":{{"dtype":"F32","shape":[2],"data_offsets":[{8 * at},{8 * at + 8}]}}' for at in range(100_000))
    return safetensors("{" + ",".join(entries) + "}", b"")


SAFETENSORS: Mapping[str, Case] = {
    "empty-file": _st(b"", "is empty"),
    "seven-bytes": _st(safetensors()[:7], "cut short or no model|in no format"),
    "random-bytes": _st(b"hello, I am no model at all", "cut short or no model|in no format"),
    "pointer-of-git-lfs": _st(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4976698672\n", "Git LFS.* of 5.0 GB"
    ),
    "page-of-the-web": _st(b"<!doctype html><html><title>Sign in</title></html>", "a page of the web"),
    "gzip": _st(b"\x1f\x8b\x08" + bytes(40), "compressed by gzip"),
    "header-of-2-64": _st(safetensors(length=2**64 - 1), "a header of 18.4 EB, where 100 MB are allowed"),
    "header-of-2-63": _st(safetensors(length=2**63), "a header of 9.2 EB, where 100 MB are allowed"),
    "header-over-the-limit": sparse(
        "model.safetensors", safetensors(b"{}", length=100_000_001), 100_000_100, "where 100 MB are allowed"
    ),
    "header-of-99-mb-sparse": sparse(
        "model.safetensors", safetensors(b'{"w":', b"", length=99_000_000), 99_000_100, "where 32.0 MB are read"
    ),
    "header-of-many-lists": _st(lambda: safetensors(b'{"w":[' + b"[]," * 5_000_000 + b"[]]}"), "more values"),
    "header-of-many-tensors": _st(_many_tensors, "800,000 bytes .* are missing"),
    "header-of-31-mb-sparse": sparse(
        "model.safetensors",
        safetensors(b'{"w":', b"", length=31_000_000),
        31_000_100,
        "a zero at byte 100,000, where text should be",
    ),
    "header-cut-short": _st(safetensors()[:40], r"32 bytes \(32 B\) of its header are missing"),
    "data-cut-short": _st(
        safetensors({"a": entry(), "b": entry(offsets=(8, 16))}, bytes(3)), "13 bytes .* are missing at its end"
    ),
    "bytes-after-the-data": _st(safetensors(data=bytes(11)), "3 bytes follow its last tensor"),
    "header-not-utf-8": _st(safetensors(b'{"\xff\xfe":1}  '), "not UTF-8"),
    "header-not-json": _st(safetensors('{"w":,}'), "not JSON"),
    "header-cut-json": _st(safetensors('{"w":{"dtype":"F32"'), "not JSON"),
    "header-of-nan": _st(safetensors('{"w":NaN}'), "NaN is no JSON"),
    "header-nested": _st(safetensors('{"w":' + nested(100_000) + "}"), "its header is not JSON"),
    "header-of-a-long-number": _st(safetensors('{"w":' + "9" * 100_000 + "}"), "not JSON"),
    "header-of-a-million-lists": _st(_bulk("[],", 1_000_000, "[", "[]]"), "no dtype, shape and data_offsets"),
    "header-of-a-million-empty-tensors": _st(
        lambda: safetensors("{" + ",".join(f'"{i:x}":{{}}' for i in range(200_000)) + "}"), "no dtype, shape"
    ),
    "name-twice": _st(
        safetensors(f'{{"w":{json.dumps(entry())},"w":{json.dumps(entry(dtype="I32"))}}}'), "w comes twice"
    ),
    "metadata-of-numbers": _st(safetensors({"__metadata__": {"a": 1}, "w": entry()}), "no object of strings"),
    "metadata-a-list": _st(safetensors({"__metadata__": [], "w": entry()}), "no object of strings"),
    "entry-a-number": _st(safetensors({"w": 7}), "no dtype, shape and data_offsets"),
    "entry-without-offsets": _st(safetensors({"w": {"dtype": "F32", "shape": [2]}}), "no dtype, shape"),
    "dtype-unknown": _st(_of(dtype="F33"), "unknown dtype F33"),
    "dtype-a-list": _st(_of(dtype=[["F32"]]), "unknown dtype"),
    "dtype-of-a-megabyte": _st(lambda: _of(dtype="F" * 1_000_000), "unknown dtype F+"),
    "shape-negative": _st(_of(shape=(-2,)), "the shape of tensor w is no list of sizes"),
    "shape-of-floats": _st(_of(shape=(2.0,)), "the shape of tensor w is no list of sizes"),
    "shape-of-truth": _st(_of(shape=(True, 2)), "the shape of tensor w is no list of sizes"),
    "shape-over-64-bits": _st(_of(shape=(2**64 + 2,)), "the shape of tensor w is no list of sizes"),
    "shape-that-wraps-around": _st(_of(shape=(2**33, 2**33, 2)), "takes [0-9,]* bytes, and has 8"),
    "shape-of-a-thousand-dimensions": _st(_of(shape=(2**62,) * 1000), "has 1,000 numbers, and 64 are allowed"),
    "shape-of-100000-dimensions": _st(lambda: _of(shape=(2**62,) * 100_000), "has 100,000 numbers, and 64 are allowed"),
    "offsets-backwards": _st(_of(offsets=(8, 0)), "is no range"),
    "offsets-of-three": _st(_of(offsets=(0, 4, 8)), "is no range"),
    "offsets-of-100000": _st(lambda: _of(offsets=(2**62,) * 100_000), "has 100,000 numbers, and 64 are allowed"),
    "offsets-infinite": _st(safetensors('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,1e999]}}'), "list of sizes"),
    "offsets-beyond": _st(_of(offsets=(2**62, 2**62 + 8)), "a hole of"),
    "bytes-of-another-shape": _st(_of(shape=(3,)), "takes 12 bytes, and has 8"),
    "half-a-byte": _st(safetensors({"w": entry("F4", (3,), (0, 1))}, b"\0"), "takes no whole bytes"),
    "tensors-overlap": _st(safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "a and b overlap"),
    "tensors-at-one-place": _st(safetensors({"a": entry(), "b": entry()}), "a and b overlap"),
    "hole-between-tensors": _st(
        safetensors({"a": entry(), "b": entry(offsets=(16, 24))}, bytes(24)), "a hole of 8 bytes"
    ),
    "name-of-a-megabyte": _st(lambda: _named("x" * 1_000_000), "a name of 1,000,000 characters"),
    "name-of-a-megabyte-of-dots": _st(lambda: _named("." * 1_000_000), "a name of 1,000,000 characters"),
    "name-of-escapes-and-a-wrong-shape": _st(safetensors({ESCAPES: entry(shape=(3,))}), r"\\x1b\[2J.* takes 12 bytes"),
    "odd-name-of-escapes": _odd(_named(ESCAPES), "steer terminals"),
    "odd-name-of-lines": _odd(_named("w\nerror: all is lost\r"), "steer terminals"),
    "odd-name-turned-around": _odd(_named("w\u202egnp.exe"), "steer terminals"),
    "odd-name-with-a-zero": _odd(_named("w\0"), "steer terminals"),
    "name-half-a-character": _st(safetensors('{"\\ud800":' + json.dumps(entry()) + "}"), "no Unicode text"),
    "odd-name-that-leads-out": _odd(_named("../../etc/passwd"), "leads out of a folder"),
    "odd-name-absolute": _odd(_named("/etc/passwd"), "leads out of a folder"),
    "odd-name-empty": _odd(_named(""), "has no name"),
    "odd-name-of-5000": _odd(_named("x" * 5000), "a name of more than 4,096"),
    "odd-name-of-numbers": _odd(_named("0." * 4000 + "w"), "a name of more than 4,096"),
    "odd-entry-twice": _odd(safetensors(f'{{"w":{json.dumps(entry())},"w":{json.dumps(entry())}}}'), "w comes twice"),
    "odd-extra-field": _odd(_of(note=ESCAPES), "the extra field note"),
    "odd-white-space-first": _odd(safetensors("   " + json.dumps({"w": entry()})), "does not start with"),
    "odd-huge-and-empty": _odd(safetensors({"w": entry(shape=(0, 2**62), offsets=(0, 0))}, b""), "is empty"),
    "odd-no-tensors": _odd(safetensors({}, b""), "holds no tensors"),
    "odd-misaligned": _odd(safetensors(json.dumps({"w": entry()}) + " "), "no multiple of 8"),
    "odd-truth-of-two": _odd(safetensors({"w": entry("BOOL", (2,), (0, 2))}, b"\1\2"), "bytes other than 0 and 1"),
    "odd-value-nan": _odd(safetensors(data=_NAN), "tensor w has 1 NaN"),
    "odd-value-infinite": _odd(safetensors(data=struct.pack("<2f", float("-inf"), 1)), "tensor w has 1 infinite"),
}

_gg = partial(file, "model.gguf")
_STRINGS = 8
_ARRAYS = 9
_FACTORS = (row("rope_freqs.weight"),)


def _table(*rows: bytes, **how: object) -> bytes:
    return gguf(rows=rows, **how)  # type: ignore[arg-type]


def _key(kind: int, raw: bytes, key: str = "k") -> bytes:
    return gguf((LLAMA, pair(key, kind, raw)))


def _whole(key: str, number: int) -> bytes:
    return pair(f"llama.{key}", 4, struct.pack("<I", number))


def _llama(*pairs: bytes, rows: Sequence[bytes] | None = None) -> Case:
    """Two layers by its metadata, and a single tensor, which a reader of headers has nothing against."""
    rows = (row("blk.0.attn_q.weight", (2, 4)),) if rows is None else rows
    return _gg(gguf((LLAMA, _whole("block_count", 2), *pairs), rows), "its tensors are not those of one", odd=True)


def _head(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<I2Q", 3, tensors, pairs)


GGUF: Mapping[str, Case] = {
    "gguf-magic-alone": _gg(b"GGUF", "is not a GGUF file"),
    "gguf-version-1": _gg(gguf(version=1), "version 1;"),
    "gguf-big-endian": _gg(gguf(version=3 << 24), "version 50331648;"),
    "gguf-2-63-tensors": _gg(gguf(num_rows=2**63), "are announced"),
    "gguf-2-63-pairs": _gg(gguf(num_pairs=2**63), "are announced"),
    "gguf-2-64-of-both": _gg(gguf(num_rows=2**64 - 1, num_pairs=2**64 - 1), "are announced"),
    "gguf-of-49-bytes-that-hangs-gguf": _gg(
        _head(0, 1) + pair("a", _ARRAYS, array(4, 2**40)), "4,398,046,511,104 bytes are announced"
    ),
    "gguf-key-of-2-64": _gg(gguf((struct.pack("<Q", 2**64 - 1) + bytes(40),)), "a name of 18,446,744,073,709,551,615"),
    "gguf-key-not-utf-8": _gg(gguf((pair(b"\xff\x80", 0, b"\0"),)), "not UTF-8"),
    "gguf-key-twice": _gg(gguf((LLAMA, LLAMA)), "architecture comes twice"),
    "gguf-text-of-2-63": _gg(_key(_STRINGS, struct.pack("<Q", 2**63)), "are announced"),
    "gguf-text-of-4-gb-sparse": sparse(
        "model.gguf",
        _head(0, 1) + pair("k", _STRINGS, struct.pack("<Q", 2**32)),
        2**32 + 100,
        "a value of 4,294,967,296 bytes",
    ),
    "gguf-value-of-no-type": _gg(_key(13, bytes(8)), "unknown type 13"),
    "gguf-array-of-2-62": _gg(_key(_ARRAYS, array(12, 2**62)), "are announced"),
    "gguf-array-of-2-40-texts": _gg(_key(_ARRAYS, array(_STRINGS, 2**40)), "are announced"),
    "gguf-array-of-no-type": _gg(_key(_ARRAYS, array(77, 1)), "an array of the unknown type 77"),
    "gguf-arrays-nested": _gg(_key(_ARRAYS, array(_ARRAYS, 1) * 100_000), "nested more than 4 deep"),
    "gguf-a-billion-texts-sparse": sparse(
        "model.gguf",
        _head(0, 1) + pair("k", _ARRAYS, array(_STRINGS, 10**9)),
        9 * 10**9,
        "more than 2,000,000 texts",
    ),
    "gguf-a-billion-arrays-sparse": sparse(
        "model.gguf",
        _head(0, 1) + pair("k", _ARRAYS, array(_ARRAYS, 10**9)),
        13 * 10**9,
        "more than 2,000,000 texts",
    ),
    "gguf-a-billion-tensors-sparse": sparse("model.gguf", _head(10**9, 0), 25 * 10**9, "comes twice"),
    "gguf-a-billion-pairs-sparse": sparse("model.gguf", _head(0, 10**9), 25 * 10**9, "comes twice"),
    "gguf-five-dimensions": _gg(_table(row(shape=(1, 1, 1, 1, 8))), "has 5 dimensions"),
    "gguf-2-32-dimensions": _gg(_table(text("w") + struct.pack("<I", 2**32 - 1)), "has 4294967295 dimensions"),
    "gguf-shape-that-wraps-around": _gg(_table(row(shape=(2**33, 2**33, 2))), "does not lie inside the file"),
    "gguf-rows-of-half-blocks": _gg(_table(row(shape=(33,), kind=8)), "cannot be cut into Q8_0 blocks"),
    "gguf-quantised-number": _gg(_table(row(shape=(), kind=8)), "cannot be cut into Q8_0 blocks"),
    "gguf-tensor-name-of-2-40": _gg(_table(struct.pack("<Q", 2**40) + bytes(60)), "a name of"),
    "gguf-tensor-twice": _gg(_table(row(), row(offset=32), data=bytes(64)), "tensor w comes twice"),
    "gguf-tensor-not-aligned": _gg(_table(row(offset=4), data=bytes(64)), "not start at a multiple of 32"),
    "gguf-tensor-at-2-63": _gg(_table(row(offset=2**63)), "does not lie inside the file"),
    "gguf-alignment-of-zero": _gg(_key(4, bytes(4), "general.alignment"), "not a power of two"),
    "gguf-alignment-of-48": _gg(_key(4, struct.pack("<I", 48), "general.alignment"), "not a power of two"),
    "gguf-alignment-a-text": _gg(_key(_STRINGS, text(ESCAPES), "general.alignment"), "not a power of two"),
    "gguf-alignment-of-2-60": _gg(
        gguf((pair("general.alignment", 10, struct.pack("<Q", 2**60)),)), "does not lie inside the file"
    ),
    "gguf-header-cut-short": _gg(gguf()[:70], "8 bytes are announced at byte 69, .* 7 of them are missing"),
    "gguf-data-cut-short": _gg(
        _table(row("a"), row("b", offset=32), row("c", offset=64), data=bytes(17)),
        r"79 bytes \(79 B of .*\) are missing at its end",
    ),
    "gguf-odd-overlap": _gg(_table(row("a"), row("b")), "a and b of model.gguf overlap", odd=True),
    "gguf-odd-name-of-escapes": _gg(_table(row(ESCAPES)), "steer terminals", odd=True),
    "gguf-odd-name-empty": _gg(_table(row("")), "has no name", odd=True),
    "gguf-odd-type": _gg(_table(row(kind=250)), "unknown type 250", odd=True),
    "gguf-odd-hole": _gg(_table(row(offset=4096), data=bytes(4128)), "unused bytes before", odd=True),
    "gguf-odd-tail": _gg(gguf(data=bytes(9000)), "bytes follow the last tensor", odd=True),
    "gguf-odd-value-nan": _gg(gguf(data=_NAN * 4), "tensor w has 4 NaN", odd=True),
    "gguf-odd-two-billion-layers": _gg(
        gguf((LLAMA, _whole("block_count", 2 * 10**9)), (row("blk.1999999999.attn_v.weight"),)),
        "its tensors are not those of one",
        odd=True,
    ),
    "gguf-odd-no-heads": _llama(),
    "gguf-odd-heads-that-do-not-divide": _llama(_whole("attention.head_count", 3)),
    "gguf-odd-heads-of-odd-width": _llama(_whole("attention.head_count", 4)),
    "gguf-odd-queries-without-rows": _llama(_whole("attention.head_count", 2), rows=(row("blk.0.attn_q.weight", ()),)),
    "gguf-odd-queries-of-nothing": _llama(
        _whole("attention.head_count", 2), rows=(row("blk.0.attn_q.weight", (0, 4)),)
    ),
    "gguf-odd-rope-base-a-text": _llama(pair("llama.rope.freq_base", _STRINGS, text(ESCAPES)), rows=_FACTORS),
    "gguf-odd-rope-base-an-array": _llama(pair("llama.rope.freq_base", _ARRAYS, array(6, 2, bytes(8))), rows=_FACTORS),
    "gguf-odd-rope-base-negative": _llama(pair("llama.rope.freq_base", 6, struct.pack("<f", -5)), rows=_FACTORS),
    "gguf-odd-rope-base-zero": _llama(pair("llama.rope.freq_base", 6, bytes(4)), rows=_FACTORS),
    "gguf-odd-rope-factors-zero": _llama(rows=_FACTORS),
    "gguf-odd-rope-factors-a-matrix": _llama(rows=(row("rope_freqs.weight", (2, 4)),)),
    "gguf-odd-rope-factors-missing": _llama(rows=(row("rope_freqs.weight", (0,)),)),
    "gguf-odd-rope-scaling-a-text": _llama(
        pair("llama.rope.scaling.type", _STRINGS, text("linear")),
        pair("llama.rope.scaling.factor", _STRINGS, text(ESCAPES)),
        rows=_FACTORS,
    ),
    "gguf-odd-window-an-array": _llama(
        pair("llama.attention.sliding_window", _ARRAYS, array(4, 100_000, bytes(400_000))), rows=_FACTORS
    ),
    "gguf-odd-token-an-array": _llama(
        pair("tokenizer.ggml.bos_token_id", _ARRAYS, array(4, 100_000, bytes(400_000))), rows=_FACTORS
    ),
    "gguf-odd-texts-that-steer": _gg(
        gguf((pair("general.architecture", 8, text(ESCAPES)), pair(ESCAPES, 8, text(ESCAPES))), (row(""),)),
        "has no name",
        odd=True,
    ),
}

_apr = partial(file, "model.apr")
_rows = partial(apr, APR_METADATA)


def _meta(**more: object) -> bytes:
    return apr({**APR_METADATA, **more})


APR: Mapping[str, Case] = {
    "apr-magic-alone": _apr(b"APR\0", "its header alone takes 64"),
    "apr-version-1": _apr(b"APRN" + bytes(60), "an APR file of version 1"),
    "apr-version-3": _apr(apr(major=3), "version 3.0"),
    "apr-header-damaged": _apr(apr(sum=1), "the checksum of its header does not match"),
    "apr-compressed": _apr(apr(flags=0x401), "compressed by LZ4"),
    "apr-encrypted": _apr(apr(flags=0x404), "encrypted"),
    "apr-column-by-column": _apr(apr(flags=0xC00), "column by column"),
    "apr-no-layout": _apr(apr(flags=0), "row by row"),
    "apr-metadata-not-aligned": _apr(apr(at=65), "its metadata starts at byte 65"),
    "apr-index-before-metadata": _apr(apr(index_at=64), "its index starts at byte 64, before"),
    "apr-data-before-index": _apr(apr(data_at=64), "its data starts at byte 64, before"),
    "apr-data-at-2-63": _apr(apr(data_at=2**63), "too large"),
    "apr-metadata-of-4-gb": _apr(apr(size=2**32 - 1, index_at=2**33, data_at=2**33), "too large"),
    "apr-metadata-of-63-mb-sparse": sparse(
        "model.apr",
        apr(size=63_000_000, index_at=64_000_000, data_at=64_000_064)[:64],
        64_000_200,
        "a zero at byte 64, where text should be",
    ),
    "apr-2-32-tensors": _apr(apr(count=2**32 - 1), "4,294,967,295 tensors in an index of"),
    "apr-index-of-99-mb-sparse": sparse(
        "model.apr",
        apr(count=190_000, data_at=99_000_000 // 64 * 64 + 256)[:256],
        100_000_000,
        "takes 4 bytes, and has 0",
    ),
    "apr-metadata-not-json": _apr(apr(b'{"model_type":'), "its metadata is not JSON"),
    "apr-metadata-a-list": _apr(apr(b"[]"), "its metadata is no JSON object"),
    "apr-metadata-nested": _apr(apr(b'{"a":' + nested(100_000).encode() + b"}"), "its metadata is not JSON"),
    "apr-metadata-of-nan": _apr(apr(b'{"a":NaN}'), "NaN is no JSON"),
    "apr-index-not-sorted": _apr(
        _rows((apr_row(b"b"), apr_row(b"a", offset=64)), bytes(128)), "not sorted: a comes after b"
    ),
    "apr-tensor-twice": _apr(_rows((apr_row(), apr_row(offset=64)), bytes(128)), "w comes twice"),
    "apr-name-of-300": _apr(_rows((apr_row(b"x" * 300),)), "a name of 300 bytes"),
    "apr-name-not-utf-8": _apr(_rows((apr_row(b"\xff"),)), "not UTF-8"),
    "apr-name-cut": _apr(_rows((b"\x90\0" + b"x" * 20,)), "its index ends before its tensors do"),
    "apr-nine-dimensions": _apr(_rows((apr_row(shape=(1,) * 9, size=4),)), "has 9 dimensions"),
    "apr-dtype-8": _apr(_rows((apr_row(code=8),)), "APR_Q4 or Q8_0 by the program"),
    "apr-dtype-255": _apr(_rows((apr_row(code=255),)), "the dtype number 255"),
    "apr-shape-of-2-512": _apr(_rows((apr_row(shape=(2**64 - 1,) * 8),)), "takes [0-9,]* bytes, and has 16"),
    "apr-size-of-another-shape": _apr(_rows((apr_row(size=20),)), "takes 16 bytes, and has 20"),
    "apr-offset-not-aligned": _apr(_rows((apr_row(offset=4),)), "not start at a multiple of 64"),
    "apr-offset-of-2-63": _apr(_rows((apr_row(offset=2**63),)), "are missing at its end"),
    "apr-overlap": _apr(_rows((apr_row(b"a"), apr_row(b"b"))), "tensors a and b overlap"),
    "apr-header-cut-short": _apr(apr()[:200], "at least 60 bytes .* are missing"),
    "apr-data-cut-short": _apr(
        _rows((apr_row(b"a"), apr_row(b"b", offset=64)), bytes(128))[:-77], "77 bytes .* are missing"
    ),
    "apr-odd-checksum": _apr(apr(resum=False), "other bytes than its checksum says", odd=True),
    "apr-odd-zeros": _apr(apr(zeros=b"hidden in the header"), "reserved bytes", odd=True),
    "apr-odd-flags": _apr(apr(flags=0x8400), "flags of unknown meaning", odd=True),
    "apr-odd-hole": _apr(_rows((apr_row(offset=128),), bytes(192)), "a hole of 128 bytes", odd=True),
    "apr-odd-tail": _apr(apr(data=bytes(640)), "bytes follow its last tensor", odd=True),
    "apr-odd-name-of-escapes": _apr(_rows((apr_row(ESCAPES.encode()),)), "steer terminals", odd=True),
    "apr-odd-two-spellings": _apr(_meta(hidden_size=4, n_embd=4), "under 2 names", odd=True),
    "apr-odd-metadata-that-steers": _apr(_meta(**{ESCAPES: ESCAPES, "model_type": ["a"]}), "is no text", odd=True),
    "apr-odd-value-nan": _apr(apr(data=_NAN * 8), "tensor w has 2 NaN", odd=True),
}

_js = partial(file, "model.apr.json")


def _tensor(**how: object) -> bytes:
    return apr_json({"shape": [2], "dtype": "f32", "data": [1, 2], **how})


APR_JSON: Mapping[str, Case] = {
    "json-cut-short": _js(apr_json()[:-9], "not JSON, or cut short"),
    "json-tail": _js(apr_json() + b"{}", "something follows its end"),
    "json-not-utf-8": _js(b'{"version":"\xff"}', "not UTF-8"),
    "json-of-a-gigabyte-sparse": sparse("model.apr.json", b'{"version":', 999_000_000, "a zero at byte 11, where text should be"),
    "json-over-the-limit-sparse": sparse("model.apr.json", b'{"version":', 10**12, "JSON is read up to"),
    "json-version-2": _js(apr_json(version="2.0"), "version 2.0;"),
    "json-version-a-list": _js(apr_json(version=[[1]]), "version"),
    "json-nested": _js(b'{"version":"1.0","tensors":{"w":' + nested(100_000).encode() + b"}}", "no shape, dtype and data"),
    "json-tensors-a-list": _js(apr_json(tensors=[1]), "its tensors are no object"),
    "json-metadata-a-text": _js(apr_json(metadata="x"), "its metadata is no object"),
    "json-tensor-a-number": _js(apr_json(7), "no shape, dtype and data"),
    "json-tensor-twice": _js(b'{"version":"1.0","tensors":{"w":' + b",".join(
        [json.dumps({"shape": [1], "dtype": "f32", "data": [1]}).encode()] * 2).replace(b"},{", b'},"w":{') + b"}}",
        "w comes twice"),
    "json-dtype-a-list": _js(_tensor(dtype=["f32"]), "unknown dtype"),
    "json-shape-of-2-62": _js(_tensor(shape=[2**62]), "no list of sizes"),
    "json-shape-of-nine": _js(_tensor(shape=[1] * 9), "9 dimensions"),
    "json-shape-of-2-320": _js(_tensor(shape=[2**40] * 8), "takes [0-9,]* values"),
    "json-data-nested": _js(_tensor(data=[[1], [2]]), "a bracket among values"),
    "json-data-of-texts": _js(_tensor(data=["1", ESCAPES]), "a bracket among values"),
    "json-data-of-a-text": _js(_tensor(data=["1", 2]), "the text '1' among"),
    "json-data-too-few": _js(_tensor(data=[1]), "takes 2 values in one list, and has 1"),
    "json-data-beyond": _js(apr_json({"shape": [1], "dtype": "u8", "data": [256]}), "beyond what u8 holds"),
    "json-data-of-a-long-number": _js(_tensor(data=[10**4000, 1]), "beyond what f32 holds"),
    "json-data-infinite": _js(apr_json().replace(b"2.0]", b"1e999]"), "beyond what f32 holds"),
    "json-name-half-a-character": _js(apr_json(name="\ud800"), "no Unicode text"),
    "json-name-of-a-megabyte": _js(lambda: apr_json(name="x" * 1_000_000), "a name of 1,000,000 characters"),
    "json-odd-name-of-escapes": _js(apr_json(name=ESCAPES), "steer terminals", odd=True),
    "json-odd-part": _js(apr_json(**{ESCAPES: 1}), "the extra part", odd=True),
    "json-odd-value-nan": _js(_tensor(data=["NaN", 1]), "tensor w has 1 NaN", odd=True),
    "json-odd-no-metadata": _js(apr_json(metadata={}), "has no model_type", odd=True),
}  # fmt: skip

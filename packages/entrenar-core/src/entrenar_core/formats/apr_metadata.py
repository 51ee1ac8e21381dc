"""What an APR file says beside its tensors: made from what a model says of itself, judged, and read back.

A dimension has one name. Where a second one stands beside it, as import from Hugging Face leaves behind, the stack's
programs take the file but drop all of its metadata, the tokenizer with it; hence such names are found here.

Source: APR version 2 in https://github.com/paiml/aprender (crates/apr-format), and the names that realizar reads.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from entrenar_core.architectures import Architecture, Family, architecture_of, families, family_of
from entrenar_core.errors import ModelError
from entrenar_core.formats.apr_tokenizer import tokenizer_metadata
from entrenar_core.formats.json_texts import JsonError, parse, parse_object
from entrenar_core.formats.names import shown

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_heads", "n_head"),
    "num_kv_heads": ("num_key_value_heads", "n_kv_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
}
"""The name of each dimension, and the other names that programs take for it."""
_SIZES = {**{name: name for name in SPELLINGS if name != "rms_norm_eps"}, "max_position_embeddings": "max_positions"}

_PROVENANCE = ("license", "data_source", "data_license")
_REQUIRED = ("model_type", *_PROVENANCE, "total_size", "param_count")
# What programs give up on where it is of another type. Of these only the first three may not be null.
_TYPES: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    "model_type": ("text", str),
    **dict.fromkeys(("total_size", "param_count"), ("count", int)),
    **dict.fromkeys((*_SIZES, "head_dim", "rope_type"), ("count", int)),
    **dict.fromkeys(("rope_theta", "rms_norm_eps"), ("number", (int, float))),
    **dict.fromkeys((*_PROVENANCE, "name", "description", "author", "version", "source"), ("text", str)),
    **dict.fromkeys(("original_format", "created_at", "chat_template", "chat_format"), ("text", str)),
    **dict.fromkeys(("architecture", "hf_architecture", "hf_model_type"), ("text", str)),
}
_DROPPED = "programs drop all of the metadata"
_MAX_REPEATED = 100
_NEVER_NULL = ("model_type", "total_size", "param_count")
_ROTATES_HALVES = 2  # 0 turns neighbours, which is how llama.cpp lays out the weights of a Llama
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_THETAS = ("rope_theta", "rotary_emb_base")


def metadata_of(
    config: Mapping[str, Any] | None,
    *,
    name: str,
    tokenizer: Path | None = None,
    total_size: int | None = None,
    param_count: int | None = None,
) -> dict[str, Any]:
    """The metadata of a model whose tensors are named and laid out as transformers does.

    Of `config` (config.json) only what APR has a name for is taken, and of `name` only the last part of a path: no
    folders and no tokens. Licences and where the data came from are null, for who knows them to fill in. A tokenizer
    of another kind than BPE and Unigram has no place in APR and is left out: `tokenizer.vocabulary` is then missing.

    Args:
        tokenizer: a folder with tokenizer.json.
        total_size: bytes of all tensors; a writer adds them, as it does the next.
        param_count: values of all tensors.

    Raises:
        ModelError: the files of the tokenizer are broken, or its merges cannot be written.
    """
    config = config or {}
    found = architecture_of(config)
    known: dict[str, Any] = {
        "model_type": found.model_type or "",
        "name": plain_name(name),
        **dict.fromkeys(_PROVENANCE),
        "total_size": total_size,
        "param_count": param_count,
        "architecture": found.model_type,
        "hf_architecture": next(iter(found.classes), None),
        **{key: getattr(found, size) for key, size in _SIZES.items()},
        "head_dim": found.head_dim,
        **_numbers(config),
    }
    if tokenizer is not None:
        known |= tokenizer_metadata(tokenizer, config, found.vocab_size)
    return {key: value for key, value in known.items() if value is not None or key in _PROVENANCE}


def plain_name(name: str) -> str:
    """A name to be published: `org/name` stays, and of the path of a file or folder its last part."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].partition("?")[0]


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """What turns positions into angles, and the epsilon of the norms."""
    inner = config.get("text_config")
    config = inner if family_of(config) is None and isinstance(inner, Mapping) else config
    family = family_of(config)
    rope = config.get("rope_parameters")  # transformers 5; before, its theta lay beside the sizes
    return {
        "rope_theta": _first(config, _THETAS) or (_first(rope, _THETAS) if isinstance(rope, Mapping) else None),
        "rope_type": _ROTATES_HALVES if family is not None and family.rotates else None,
        "rms_norm_eps": _first(config, _EPSILONS),
    }


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    found = (config.get(key) for key in keys)
    return next((value for value in found if type(value) in (int, float) and 0 < cast(float, value) < math.inf), None)


def completed(metadata: Mapping[str, Any], *, total_size: int, param_count: int) -> dict[str, Any]:
    """The metadata with what every APR file says, at its end where it was not said.

    Raises:
        ModelError: programs would not read it, or drop it.
    """
    always = {"model_type": "", **dict.fromkeys(_PROVENANCE), "total_size": total_size, "param_count": param_count}
    found = dict(metadata) | {key: value for key, value in always.items() if key not in metadata}
    if (problem := next(iter(oddities_of(found)), None)) is not None:
        raise ModelError(f"the metadata cannot be written to APR: {problem}", "correct it, or leave it out")
    return found


def compact(metadata: Mapping[str, Any]) -> str:
    """The metadata as JSON in one line.

    Raises:
        ModelError: something in it is no JSON.
    """
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"the metadata cannot be written as JSON: {error}", "correct it, or leave it out") from error
    return text


class MetadataReader:
    """JSON as it is defined, without NaN; of a key that comes twice the last value, and an oddity."""

    def __init__(self) -> None:
        self.oddities: list[str] = []

    def parse(self, data: bytes | bytearray) -> Any:
        """The value that a text is.

        Raises:
            JsonError: it is no JSON, takes too much memory, or has too many keys that come twice.
        """
        if data[:1] == b"{":
            return parse_object(data, self._unique)
        return parse(data, pairs=self._unique, constants=False)

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.oddities.append(f"{shown(key)} comes twice in its metadata, so that {_DROPPED}")
                if len(self.oddities) > _MAX_REPEATED:
                    raise JsonError(f"is not JSON: more than {_MAX_REPEATED} keys come twice")
            found[key] = value
        return found


def oddities_of(metadata: Mapping[str, Any]) -> list[str]:
    """What is wrong with the metadata of an APR file, a sentence each."""
    found = [f"its metadata has no {key}" for key in _REQUIRED if key not in metadata]
    for name, aliases in SPELLINGS.items():
        spelled = [key for key in (name, *aliases) if key in metadata]
        if len(spelled) > 1:
            found.append(
                f"its metadata has {name} under {len(spelled)} names ({', '.join(spelled)}), so that {_DROPPED}"
            )
        elif spelled and spelled != [name]:
            found.append(f"its metadata calls {name} by another name, {spelled[0]}, which not every reader knows")
    for key, (what, types) in _TYPES.items():
        if key in metadata and not _is(metadata[key], types, null=key not in _NEVER_NULL):
            found.append(f"{key} in its metadata is no {what}, so that {_DROPPED}")
    return found


def _is(value: Any, types: type | tuple[type, ...], *, null: bool) -> bool:
    if value is None:
        return null
    if isinstance(value, bool) or not isinstance(value, types):
        return False
    return types is not int or 0 <= cast(int, value) < 2**64


def architecture_of_apr(metadata: Mapping[str, Any], *, num_parameters: int | None = None) -> Architecture:
    """What the metadata of an APR file says, under whichever names."""
    names = [metadata.get(key) for key in ("hf_model_type", "architecture", "model_type")]
    named = next((name for name in names if isinstance(name, str) and name), None)
    family = next((family for name in names if (family := _family(name)) is not None), None)
    sizes: dict[str, int | None] = {size: _size(metadata, key) for key, size in _SIZES.items()}
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or sizes["num_heads"]
    class_ = metadata.get("hf_architecture")
    return Architecture(
        family.name if family else None,
        named,
        (class_,) if isinstance(class_, str) else (),
        num_parameters=num_parameters or _positive(metadata.get("param_count")),
        **sizes,
        head_dim=_positive(metadata.get("head_dim")),
    )


def _family(name: Any) -> Family | None:
    """By what config.json calls it, else GGUF."""
    if not isinstance(name, str) or not name:
        return None
    rows = families().values()
    return next((row for row in rows if name.lower() in row.model_types), None) or next(
        (row for row in rows if row.gguf == name.lower()), None
    )


def _size(metadata: Mapping[str, Any], name: str) -> int | None:
    found = (_positive(metadata.get(key)) for key in (name, *SPELLINGS[name]))
    return next((size for size in found if size is not None), None)


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None

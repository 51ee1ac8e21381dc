"""Model families, and what a model's configuration says of its sizes.

The families are rows of `families.toml`: supporting another one means adding a row and passing its test. A model
outside them is no error here: its sizes are looked up under every name that some family uses, and its family is None,
so that whoever needs to know the inside of the model can refuse it by name.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeGuard

from entrenar_core.architectures.flows import Flows, flows_of

SIZES = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size", "max_positions")

HEAD_DIM_KEYS = ("head_dim", "d_kv")
MAX_SIZE = 2**31
"""No model has as many of anything."""

# The size's key in GGUF metadata, after `general.architecture` and a dot.
_GGUF_KEYS = {
    "num_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "vocab_size": "vocab_size",
    "max_positions": "context_length",
}


@dataclass(frozen=True, slots=True)
class Family:
    """One row of families.toml, which explains the fields. `keys` has the config keys of every one of `SIZES`."""

    name: str
    model_types: tuple[str, ...]
    kind: Literal["decoder", "encoder", "encoder-decoder"]
    layers: str
    keys: Mapping[str, tuple[str, ...]]
    gguf: str | None = None
    intermediate_multiple: int | None = None
    head_dim: bool = False
    one_kv_head: Mapping[str, bool] = field(default_factory=dict)
    flows: Flows | None = None
    rotates: bool = False
    scaled_embeddings: bool = False
    inside: bool = True


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's family and sizes, None where the configuration does not say.

    `family` is a name in `known_families()`; `classes` are the names under `architectures` in config.json, such as
    `LlamaForCausalLM`; `num_parameters` is known where a header lists the tensors, and `head_dim` where heads have a
    width of their own, which does not follow from the others.
    """

    family: str | None
    model_type: str | None
    classes: tuple[str, ...] = ()
    num_layers: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    max_positions: int | None = None
    num_parameters: int | None = None
    head_dim: int | None = None


@cache
def families() -> Mapping[str, Family]:
    """The families whose inside is known by name, in the order of families.toml: their models can be made and cut."""
    return {name: family for name, family in known_families().items() if family.inside}


@cache
def known_families() -> Mapping[str, Family]:
    """Every family by name, also those of which only names and sizes are known."""
    rows = tomllib.loads(files(__package__).joinpath("families.toml").read_text("utf-8"))
    defaults = rows.pop("defaults")["keys"]
    flows = {name: flows_of(table) for name, table in rows.pop("flows").items()}
    return {name: _family(name, row, defaults, flows) for name, row in rows.items()}


def _family(name: str, row: dict[str, Any], defaults: dict[str, list[str]], flows: Mapping[str, Flows]) -> Family:
    keys = {size: tuple(found) for size, found in (defaults | row.pop("keys", {})).items()}
    named = row.pop("flows", None)
    return Family(name, tuple(row.pop("model_types")), keys=keys, flows=flows[named] if named else None, **row)


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family that `model_type` in a config.json names, if the table has it and its inside is known."""
    family = named_family(config)
    return family if family is not None and family.inside else None


def named_family(config: Mapping[str, Any]) -> Family | None:
    """The family that `model_type` in a config.json names, if the table has it."""
    model_type = config.get("model_type")
    return next((family for family in known_families().values() if model_type in family.model_types), None)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """What a config.json says. A model that wraps a text model (`text_config`) has that one's sizes."""
    family = named_family(config)
    inner = config.get("text_config")
    inside = architecture_of(inner) if isinstance(inner, Mapping) and not (family and family.inside) else None
    keys = keys_of(config)
    sizes: dict[str, Any] = {size: _first(config, keys[size]) or getattr(inside, size, None) for size in SIZES}
    if family and family.one_kv_head and _has(config, family.one_kv_head):
        sizes["num_kv_heads"] = 1
    if family and family.intermediate_multiple and sizes["hidden_size"]:
        sizes["intermediate_size"] = sizes["intermediate_size"] or family.intermediate_multiple * sizes["hidden_size"]
    model_type, classes = config.get("model_type"), config.get("architectures")
    return Architecture(
        family.name if family else None,
        model_type if isinstance(model_type, str) else None,
        tuple(filter(lambda name: isinstance(name, str), classes)) if isinstance(classes, list) else (),
        **sizes,
        head_dim=_first(config, HEAD_DIM_KEYS) or getattr(inside, "head_dim", None),
    )


def architecture_of_gguf(metadata: Mapping[str, Any], *, num_parameters: int | None = None) -> Architecture:
    """What the metadata of a GGUF file says. Its spelling covers several families (`llama` also means Mistral);
    the family is the first of them.
    """
    name = metadata.get("general.architecture")
    family = next((family for family in known_families().values() if family.gguf and family.gguf == name), None)
    sizes: dict[str, Any] = {size: _positive(metadata.get(f"{name}.{key}")) for size, key in _GGUF_KEYS.items()}
    tokens = metadata.get("tokenizer.ggml.tokens")
    if sizes["vocab_size"] is None and tokens is not None:
        sizes["vocab_size"] = len(tokens) if isinstance(tokens, tuple) else _positive(getattr(tokens, "length", None))
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or sizes["num_heads"]
    return Architecture(
        family.name if family else None,
        name if isinstance(name, str) else None,
        num_parameters=num_parameters,
        **sizes,
        head_dim=_positive(metadata.get(f"{name}.attention.key_length")),
    )


def keys_of(config: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    """Where a config.json holds each of `SIZES`; of a model of no known family, where any family has it."""
    family = named_family(config)
    return family.keys if family else _every_key()


@cache
def _every_key() -> Mapping[str, tuple[str, ...]]:
    """For each size, the names that any family has for it, those of most families first.

    Not so for the key-value heads: elsewhere, other heads under another family's name would be a guess.
    """
    rows = (*families().values(), *known_families().values())
    every = {size: tuple(dict.fromkeys(key for row in rows for key in row.keys[size])) for size in SIZES}
    return every | {"num_kv_heads": ("num_key_value_heads",)}


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((value for key in keys if (value := _positive(config.get(key))) is not None), None)


def _has(config: Mapping[str, Any], settings: Mapping[str, bool]) -> bool:
    return all(config.get(key, value) is value for key, value in settings.items())


def is_size(value: object) -> TypeGuard[int]:
    """Whether a model can have so many of something."""
    return type(value) is int and 0 < value <= MAX_SIZE


def _positive(value: object) -> int | None:
    return value if is_size(value) else None

"""What `info` returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """A tokenizer by its `file`: its algorithm, how many tokens, the largest id. None where it was not read."""

    file: str
    kind: str | None
    tokens: int | None
    largest_id: int | None
    chat_template: bool | None


@dataclass(frozen=True, slots=True)
class DtypeShare:
    """What is stored in one dtype: tensors, their values as they are stored, their bytes."""

    dtype: str
    tensors: int
    values: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of a mixture: how many a layer has and how many a token passes, their weights, and those of
    the whole model that a token passes. None where the configuration does not say.
    """

    per_layer: int
    per_token: int | None
    parameters: int
    parameters_each: int
    active_parameters: int | None


@dataclass(frozen=True, slots=True)
class ModelPart:
    """One of a model's stacks of layers, such as `encoder` or `vision`."""

    name: str
    num_layers: int | None
    hidden_size: int | None
    num_heads: int | None
    intermediate_size: int | None


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions turn queries and keys: the base of their angles, and how these are stretched, if they are."""

    theta: float | None
    scaling: str | None
    factor: float | None


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """A low-rank adapter: its `method`, what its configuration says, and which modules it changes, by their last name.

    `ranks` are those of its tensors; `modules` counts the matrices that it changes.
    """

    method: str
    base_model: str | None
    ranks: tuple[int, ...]
    alpha: float | None
    scale: float | None
    modules: int
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model at a glance. JSON output has these keys; sizes are in bytes, and what nothing tells is null.

    `family` is what the configuration says, else what the tensors do; `families` all that the tensors allow. A model
    of several stacks has `parts`, and its sizes are those of the first; `decoder_layers` are those beside an encoder.
    `parameters` are weights: of packed ones those that they stand for, of tensors at one place the first, and neither
    buffers nor what quantised weights keep beside them. `embedding_parameters` are those of tokens. `warnings` tell
    what does not fit.
    """

    name: str
    format: str
    commit: str | None
    files: tuple[str, ...]
    file_bytes: int
    family: str | None
    families: tuple[str, ...]
    variant: str | None
    model_type: str | None
    classes: tuple[str, ...]
    heads: tuple[str, ...]
    parameters: int
    embedding_parameters: int | None
    experts: Experts | None
    num_layers: int | None
    decoder_layers: int | None
    hidden_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    head_dim: int | None
    intermediate_size: int | None
    vocab_size: int | None
    max_positions: int | None
    parts: tuple[ModelPart, ...]
    rope: Rope | None
    sliding_window: int | None
    tensors: int
    dtypes: tuple[DtypeShare, ...]
    quantisation: str | None
    tied: tuple[tuple[str, str], ...]
    tokenizer: TokenizerSummary | None
    adapter: AdapterSummary | None
    license: str | None
    metadata: Mapping[str, Any]
    warnings: tuple[str, ...]

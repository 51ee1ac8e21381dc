"""What the commands return: plain values that JSON carries and views show. Nothing heavy is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from entrenar_core.measuring.results import EffectiveRank, TensorStatistics


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A module, several that are alike, or a tensor. `parameters` and `size_bytes` are those of one copy.

    `shape` is there where it is a single tensor; its `statistics` and `rank` where they were asked for, and it has any.
    """

    name: str
    copies: int
    tensors: int
    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    parameters: int
    size_bytes: int
    statistics: TensorStatistics | None = None
    rank: EffectiveRank | None = None


@dataclass(frozen=True, slots=True)
class LayersReport:
    """The layers of a model, and what they add up to. `filter` is the pattern that names had to match."""

    name: str
    format: str
    rows: tuple[LayerRow, ...]
    tensors: int
    parameters: int
    size_bytes: int
    filter: str | None
    by_tensor: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What is other in the second of two models. `name` ends in `.*` for a whole module.

    `now` is the new name of what was renamed, the new shape of what was reshaped, and both dtypes of what was retyped.
    """

    kind: Literal["added", "removed", "renamed", "reshaped", "retyped"]
    name: str
    shape: tuple[int, ...] | None
    parameters: int | None
    now: str | tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far the values of a tensor moved. `changed` is the share of values that did; `cosine` is None of zeros.
    `non_finite_differ`: somewhere one side alone is NaN or infinite, for which no other figure here stands.
    """

    name: str
    values: int
    max_abs: float
    mean_abs: float
    cosine: float | None
    changed: float
    non_finite_differ: bool


@dataclass(frozen=True, slots=True)
class ModuleDifference:
    """The same of a module: the largest difference, the mean over all values, the least cosine of a tensor. `beyond`
    counts tensors that differ by more than is tolerated, `non_finite` those where one side alone is NaN or infinite.
    """

    name: str
    tensors: int
    beyond: int
    non_finite: int
    max_abs: float
    mean_abs: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models beside each other. `beyond` counts tensors whose values differ by more than `tolerance`; it is None
    where values were not compared.
    """

    first: str
    second: str
    changes: tuple[Change, ...]
    in_common: int
    modules: tuple[ModuleDifference, ...]
    tensors: tuple[TensorDifference, ...]
    beyond: int | None
    tolerance: float
    failed: bool
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """1 where a change is among those that must not be."""
        return int(self.failed)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. A `warning` fails a strict validation; `skipped` says why it was not looked at.

    `details` are single findings, of which `message` is the sum.
    """

    name: str
    status: Literal["ok", "failed", "warning", "skipped"]
    message: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What was checked of a model, and whether it is sound."""

    name: str
    format: str | None
    strict: bool
    checks: tuple[Check, ...]
    checksums: Mapping[str, str]

    @property
    def sound(self) -> bool:
        """Whether nothing failed; and nothing is to be warned of, where that is asked for."""
        wrong = ("failed", "warning") if self.strict else ("failed",)
        return not any(check.status in wrong for check in self.checks)

    @property
    def exit_status(self) -> int:
        return int(not self.sound)


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion wrote. `dequantised` counts tensors by the dtype of blocks that they had, `cast` those whose
    dtype changed otherwise, `copied` those whose bytes did not. `relative_rms` is the root mean square of what casting
    and rounding changed over that of the values, and None where nothing was cast.
    """

    source: str
    source_format: str
    output: Path
    format: str
    files: tuple[str, ...]
    size_bytes: int
    tensors: int
    copied: int
    cast: int
    dequantised: Mapping[str, int]
    relative_rms: float | None
    largest_error: float | None
    notes: tuple[str, ...]


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

    `family` is what the configuration says, else what the tensors do; `families` all that the tensors allow.
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
    hidden_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    head_dim: int | None
    intermediate_size: int | None
    vocab_size: int | None
    max_positions: int | None
    tensors: int
    dtypes: tuple[DtypeShare, ...]
    quantisation: str | None
    tied: tuple[tuple[str, str], ...]
    tokenizer: TokenizerSummary | None
    adapter: AdapterSummary | None
    metadata: Mapping[str, str]
    warnings: tuple[str, ...]

"""What `inspect` returns."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one module, or of several: of these, ranks and shares are means over those that change anything, k90, k99 and
    the spectral norm the largest, and norms those of all together.

    `sparsity` is the share of exact zeros of A and B, `zeros_down` that of A and `zeros_up` that of B. `relative` is
    the length of the change over that of the matrix, with a base. `intruders` of `searched` leading singular vectors of
    the changed matrices are like none of the base's.
    """

    parameters: int
    effective_rank: float
    utilization: float
    stable_rank: float
    participation: float
    k90: int
    k99: int
    unused: int
    frobenius: float
    spectral: float
    sparsity: float
    zeros_down: float
    zeros_up: float
    relative: float | None
    intruders: int | None
    searched: int | None


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module; `kind` is what it is called inside of its layer. `fate` is dead or exploding, and `reason` why."""

    module: str
    stack: str
    layer: int | None
    kind: str
    shape: tuple[int, int]
    rank: int
    alpha: float | None
    scale: float | None
    dtypes: tuple[str, ...]
    norm_down: float
    norm_up: float
    figures: Figures
    singular_values: tuple[float, ...]
    fate: str | None
    reason: str | None
    intruders_are_exact: bool | None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Several modules: those of a layer, or those of a kind."""

    name: str
    modules: int
    ranks: tuple[int, ...]
    figures: Figures


@dataclass(frozen=True, slots=True)
class Strip:
    """A figure of each module by layer. `rows` are kinds of modules, with a value for each of `layers`, None where
    there is no such module; `dead` and `exploding` are the places, row and layer, of those that stand out.
    """

    figure: str
    layers: tuple[int, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    dead: tuple[tuple[str, int], ...]
    exploding: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ScaleRow:
    """What alpha gives a rank the adapter's scale, and the scales that its own alpha would have there."""

    rank: int
    same_scale_alpha: float
    scale: float
    rslora_scale: float


@dataclass(frozen=True, slots=True)
class InspectReport:
    """An adapter: what its files say, and what its matrices do. Of a method without low-rank matrices `figures`,
    `modules` and what follows from them are missing, and `about` says what it is.

    `whole` are tensors that stand in place of the base model's. `rank_needed` keeps 99 % of the energy of every module,
    `rank_together` that of all together; `rank_pattern` has the kinds of modules that need less. `scaled` is False
    where the alpha is not known, and norms and spectra are those of B · A.
    """

    name: str
    method: str
    base: str | None
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    scales: tuple[float, ...]
    rslora: bool
    dora: bool
    init: str | None
    targets: tuple[str, ...]
    tensors: int
    parameters: int
    whole: tuple[str, ...]
    scaled: bool
    compared_with: str | None
    figures: Figures | None
    strip: Strip | None
    kinds: tuple[GroupRow, ...]
    layers: tuple[GroupRow, ...]
    modules: tuple[ModuleRow, ...]
    rank_needed: int | None
    rank_together: int | None
    rank_pattern: Mapping[str, int]
    scale_table: tuple[ScaleRow, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    about: str | None = None
    by_layer: bool = False
    by_module: bool = False

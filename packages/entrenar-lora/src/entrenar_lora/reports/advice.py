"""What advisors say of a model: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one matrix is off when it is quantised: the length of the difference over that of the matrix, by kind."""

    name: str
    parameters: int
    errors: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class QuantisationAdvice:
    """The measured errors of quantisation: of all matrices together, `overall`, and of those that are worst; or why
    they were not measured.
    """

    measured: bool
    why_not: str | None = None
    matrices: int = 0
    overall: Mapping[str, float] = field(default_factory=dict)
    worst: tuple[LayerError, ...] = ()
    says: str | None = None


@dataclass(frozen=True, slots=True)
class ModuleScore:
    """Of the modules of one name: the norm of their gradients together, and that for each weight (root mean square)."""

    name: str
    matrices: int
    parameters: int
    gradient_norm: float
    gradient_rms: float


@dataclass(frozen=True, slots=True)
class ModuleAdvice:
    """The modules of a model by the norms of their gradients on `rows` sample rows, the largest for a weight first."""

    rows: int
    scores: tuple[ModuleScore, ...]
    suggested: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankAdvice:
    """What rank the gradients of sample rows have: the largest and the median over matrices of the directions that keep
    `energy` of the square of a gradient; and the power of two that holds for nearly all of them.
    """

    rows: int
    energy: float
    median: float
    largest: int
    suggested: int


@dataclass(frozen=True, slots=True)
class Advice:
    """What was measured of the model itself; None of what was not asked for."""

    quantisation: QuantisationAdvice | None = None
    modules: ModuleAdvice | None = None
    rank: RankAdvice | None = None

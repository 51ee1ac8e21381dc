"""What `compare` returns."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Change:
    """What is other in the second of two models. `name` ends in `.*` for a whole module of so many `tensors`, and is
    `*` for the whole model.

    `now` is the new name of what was renamed, the new shape of what was reshaped, and both dtypes of what was retyped.
    Tensors that were renamed in one way are one change: `*` stands in `name` and `now` for what both names have. `by`
    is what tells a renaming: names and shapes, or the content, which is the same then.
    """

    kind: Literal["added", "removed", "renamed", "reshaped", "retyped"]
    name: str
    shape: tuple[int, ...] | None
    parameters: int | None
    now: str | tuple[int, ...] | None = None
    tensors: int = 1
    by: Literal["names", "content"] | None = None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far the values of a tensor moved, which is called by its first name. `relative` is the L2 norm of the
    difference over that of the first tensor, None where that is zeros; `changed` the share of values that moved;
    `cosine` is None of zeros. `non_finite_differ`: somewhere one side alone is NaN or infinite, for which no other
    figure here stands.
    """

    name: str
    values: int
    relative: float | None
    max_abs: float
    mean_abs: float
    cosine: float | None
    changed: float
    non_finite_differ: bool


@dataclass(frozen=True, slots=True)
class ModuleDifference:
    """The same of a module: `relative` and the mean over all its values, the largest difference, the least cosine of a
    tensor. `beyond` counts tensors that differ by more than is tolerated, `moved` those that differ at all,
    `non_finite` those where one side alone is NaN or infinite.
    """

    name: str
    tensors: int
    beyond: int
    moved: int
    non_finite: int
    relative: float | None
    max_abs: float
    mean_abs: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting of a file that is other: keys inside others are joined by dots. `key` is None of a whole
    file, which is "changed" where it cannot be read.
    """

    file: str
    key: str | None
    kind: Literal["added", "removed", "changed"]
    old: Any = None
    new: Any = None


@dataclass(frozen=True, slots=True)
class TokenizerDifference:
    """Files of tokenizers that are others, or that one side alone has; tokens that the second has more and fewer, and
    those that both have with other ids, which are None where vocabularies were not read; whether chat templates differ.
    """

    files: tuple[str, ...]
    added: int | None
    removed: int | None
    moved: int | None
    chat_template: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models beside each other. `beyond` counts tensors whose values differ by more than `tolerance`; it is None
    where values were not compared. `furthest` are the tensors that moved most for their size.
    """

    first: str
    second: str
    changes: tuple[Change, ...]
    settings: tuple[SettingChange, ...]
    tokenizer: TokenizerDifference | None
    in_common: int
    modules: tuple[ModuleDifference, ...]
    tensors: tuple[TensorDifference, ...]
    furthest: tuple[TensorDifference, ...]
    beyond: int | None
    tolerance: float
    failed: bool
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """1 where a change is among those that must not be."""
        return int(self.failed)

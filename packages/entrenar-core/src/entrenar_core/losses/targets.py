"""What a teacher says of rows that count, as losses read it: its distributions, in tiles of rows.

A loss never asks where they come from. Logits may be at hand, made from hidden states and a head when a tile is read,
mixed of several teachers or of a teacher for each row (mixture.py, routed.py), or known for a few tokens of each row
(sparse.py).

Shapes: N rows that count, K teacher's width, V classes or vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from entrenar_core.losses.divergence import Core, Local, differentiable
from entrenar_core.losses.head import Head, LogitTiles, logits_of_rows
from entrenar_core.losses.sums import at_least_fp32


class TargetTiles(Protocol):
    """A teacher's rows, one tile of them at a time."""

    def load(self, tile: slice) -> None:
        """Makes ready what is asked of a tile, until the next one."""
        ...

    def local(self, core: Core, log_q_NV: Tensor, rows: slice, temperature: float) -> Local:
        """A divergence of some rows of the tile, where the teacher is at a temperature, and so are `log_q_NV`."""
        ...

    def preferred(self) -> Tensor:
        """The likeliest token or class of each row of the tile, (rows,)."""
        ...


class Targets(Protocol):
    """A teacher's rows."""

    @property
    def whole(self) -> bool:
        """Whether all of a row's distribution is known, and so its distance from a student's."""
        ...

    @property
    def columns(self) -> int:
        """Of how many tokens or classes they are; a head may be padded beyond those that are real."""
        ...

    def __len__(self) -> int: ...

    def tiles(self, vocabulary: int) -> TargetTiles:
        """To read them tile by tile, over the first tokens.

        Raises:
            ValueError: they are not of so many tokens.
        """
        ...


@runtime_checkable
class Dense(Targets, Protocol):
    """A teacher's rows, of which all is known."""

    @property
    def width(self) -> int:
        """Of what `of` gives."""
        ...

    def of(self, rows: slice) -> Tensor:
        """The logits of some rows, up to a constant of each, (rows, V)."""
        ...


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits that are at hand."""

    logits_NV: Tensor

    @property
    def whole(self) -> bool:
        """As of `Targets`."""
        return True

    @property
    def columns(self) -> int:
        """As of `Targets`."""
        return self.logits_NV.shape[-1]

    @property
    def width(self) -> int:
        """Of what `of` gives."""
        return self.columns

    def __len__(self) -> int:
        return len(self.logits_NV)

    def of(self, rows: slice) -> Tensor:
        """Those of some rows, (rows, V)."""
        return self.logits_NV[rows]

    def tiles(self, vocabulary: int) -> "LogTiles":
        """As `Targets.tiles`."""
        _require(vocabulary, self.columns)
        return _OfLogits(self.logits_NV[:, :vocabulary])


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Logits that are made when they are asked for, of the first tokens, all of them if not said."""

    hidden_NH: Tensor
    head: Head
    vocabulary: int | None = None

    @property
    def whole(self) -> bool:
        """As of `Targets`."""
        return True

    @property
    def columns(self) -> int:
        """As of `Targets`."""
        return self.head.weight_VH.shape[0]

    @property
    def width(self) -> int:
        """Of what `of` gives."""
        return self.vocabulary or self.columns

    def __len__(self) -> int:
        return len(self.hidden_NH)

    def of(self, rows: slice) -> Tensor:
        """Those of some rows, (rows, V)."""
        return logits_of_rows(self.hidden_NH[rows], self.head, self.width)

    def tiles(self, vocabulary: int) -> "LogTiles":
        """As `Targets.tiles`."""
        _require(vocabulary, self.columns)
        return _OfHead(LogitTiles(self.hidden_NH, self.head, vocabulary))


class LogTiles(ABC):
    """Tiles of which all of a row's distribution is known."""

    @abstractmethod
    def load(self, tile: slice) -> None:
        """As `TargetTiles.load`."""

    @abstractmethod
    def log_p(self, rows: slice, temperature: float) -> Tensor:
        """Log-probabilities of some rows of the tile, in fp32 or better, which the caller may overwrite."""

    def local(self, core: Core, log_q_NV: Tensor, rows: slice, temperature: float) -> Local:
        """As `TargetTiles.local`."""
        return core(log_q_NV, self.log_p(rows, temperature))

    def preferred(self) -> Tensor:
        """As `TargetTiles.preferred`."""
        return self.log_p(slice(None), 1.0).argmax(-1)


class _OfLogits(LogTiles):
    def __init__(self, logits_NV: Tensor) -> None:
        self.all_NV = self.tile_NV = logits_NV

    def load(self, tile: slice) -> None:
        self.tile_NV = self.all_NV[tile]

    def log_p(self, rows: slice, temperature: float) -> Tensor:
        return log_softmax(self.tile_NV[rows], temperature)

    def preferred(self) -> Tensor:
        return self.tile_NV.argmax(-1)


class _OfHead(_OfLogits):
    def __init__(self, made: LogitTiles) -> None:
        super().__init__(made.hidden_NH[:0])
        self.made = made

    def load(self, tile: slice) -> None:
        self.tile_NV = self.made.logits(tile)


def divergence_from(teacher: Targets, core: Core, student_logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """The divergence of every row, (N,), of both at a temperature, once differentiable in the student's logits.

    Raises:
        ValueError: the teacher has other rows, or not as many tokens.
    """
    if len(teacher) != len(student_logits_NV):
        raise ValueError(f"{len(student_logits_NV)} rows of the student and {len(teacher)} of the teacher")
    tiles = teacher.tiles(student_logits_NV.shape[-1])
    tiles.load(slice(0, len(teacher)))
    student_NV = at_least_fp32(student_logits_NV)
    return differentiable(
        lambda log_q_NV: tiles.local(core, log_q_NV, slice(None), temperature),
        student_NV if temperature == 1 else student_NV / temperature,
    )


def log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature, in fp32 or better."""
    logits_NV = at_least_fp32(logits_NV)
    return (logits_NV if temperature == 1 else logits_NV / temperature).log_softmax(-1)


def _require(vocabulary: int, there: int) -> None:
    if not 0 < vocabulary <= there:
        raise ValueError(f"`vocabulary` is {vocabulary}, and the teacher has {there} tokens")

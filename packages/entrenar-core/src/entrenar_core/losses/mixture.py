"""What several teachers say of the same rows, averaged as probabilities.

Shapes: N rows that count, M teachers, V classes or vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entrenar_core.losses.sums import at_least_fp32
from entrenar_core.losses.targets import Dense, LogTiles, Targets


class Together:
    """Several teachers over the tokens that all of them have."""

    __slots__ = ()
    members: Sequence[Targets]
    vocabulary: int | None

    @property
    def columns(self) -> int:
        """As of `Targets`."""
        return min(member.columns for member in self.members)

    @property
    def width(self) -> int:
        """Of what `of` gives."""
        return self.vocabulary or self.columns


@dataclass(frozen=True, slots=True)
class Mixture(Together):
    """Several teachers of the same rows: Σ w p, of their distributions at the temperature in use.

    `weights` are of the teachers, (M,), or of each in each row, (N, M); they add up to 1. By `confidence`, they are
    multiplied by exp(−H), where H is the entropy of what a teacher says of a row, in nats, and add up to 1 again.
    """

    members: Sequence[Dense]
    weights: Tensor
    vocabulary: int | None = None
    confidence: bool = False

    @property
    def whole(self) -> bool:
        """As of `Targets`."""
        return True

    def __len__(self) -> int:
        return len(self.members[0])

    def of(self, rows: slice) -> Tensor:
        """As `Dense.of`: log-probabilities."""
        tiles = self.tiles(self.width)
        tiles.load(rows)
        return tiles.log_p(slice(None), 1.0)

    def tiles(self, vocabulary: int) -> "LogTiles":
        """As `Targets.tiles`."""
        log_weights_NM = at_least_fp32(self.weights).log()
        if log_weights_NM.ndim == 1:
            log_weights_NM = log_weights_NM.expand(len(self), -1)
        members = [member.tiles(vocabulary) for member in self.members]
        assert all(isinstance(member, LogTiles) for member in members), "of dense members all is known"
        return _OfMembers(
            [member for member in members if isinstance(member, LogTiles)], log_weights_NM, self.confidence
        )


class _OfMembers(LogTiles):
    def __init__(self, members: Sequence[LogTiles], log_weights_NM: Tensor, confidence: bool) -> None:
        self.members, self.all_NM, self.confidence = members, log_weights_NM, confidence
        self.tile_NM = log_weights_NM

    def load(self, tile: slice) -> None:
        self.tile_NM = self.all_NM[tile]
        for member in self.members:
            member.load(tile)
        if self.confidence:
            entropies = (_entropy(member.log_p(slice(None), 1.0)) for member in self.members)
            self.tile_NM = (self.tile_NM - torch.stack(list(entropies), -1)).log_softmax(-1)

    def log_p(self, rows: slice, temperature: float) -> Tensor:
        first, *others = self.members
        log_weights_MN1 = self.tile_NM[rows].T.unsqueeze(-1)
        mixed_NV = first.log_p(rows, temperature).add_(log_weights_MN1[0])
        for member, log_weight_N1 in zip(others, log_weights_MN1[1:], strict=True):
            torch.logaddexp(mixed_NV, member.log_p(rows, temperature).add_(log_weight_N1), out=mixed_NV)
        return mixed_NV


def _entropy(log_p_NV: Tensor) -> Tensor:
    entropy_N: Tensor = torch.special.entr(log_p_NV.exp()).sum(-1)
    return entropy_N

"""Rows of which each has a teacher of its own.

Shapes: N rows that count, V classes or vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entrenar_core.losses.divergence import Core, Local
from entrenar_core.losses.mixture import Together
from entrenar_core.losses.targets import Dense, Targets, TargetTiles


@dataclass(frozen=True, slots=True)
class Routed(Together):
    """What several teachers say of rows of their own: `members` in the order of their rows, and whose a row is."""

    members: Sequence[Targets]
    member_N: Tensor
    vocabulary: int | None = None

    @property
    def whole(self) -> bool:
        """As of `Targets`."""
        return all(member.whole for member in self.members)

    def __len__(self) -> int:
        return len(self.member_N)

    def of(self, rows: slice) -> Tensor:
        """As `Dense.of`, where all members are dense."""
        if rows.step not in (None, 1):  # of each member, rows that lie together are read
            return self.of(slice(rows.start, rows.stop))[:: rows.step]
        whose_N = self.member_N[rows]
        found: Tensor | None = None
        for place, member in enumerate(self.members):
            assert isinstance(member, Dense), "a teacher of whom some tokens alone are known"
            mine = (whose_N == place).nonzero().squeeze(-1)
            own_NV = member.of(self._own(place, rows))
            if found is None:
                found = own_NV.new_empty(len(whose_N), self.width)
            found[mine] = own_NV[:, : self.width].to(found.dtype)
        assert found is not None, "there are members"
        return found

    def tiles(self, vocabulary: int) -> TargetTiles:
        """As `Targets.tiles`."""
        return _OfRoutes(self, [member.tiles(vocabulary) for member in self.members])

    def _own(self, place: int, rows: slice) -> slice:
        """Of some rows, those of a member, counted among its own: they lie together there."""
        start, stop, _ = rows.indices(len(self))
        before = int((self.member_N[:start] == place).sum())
        return slice(before, before + int((self.member_N[start:stop] == place).sum()))


class _OfRoutes:
    def __init__(self, routed: Routed, tiles: Sequence[TargetTiles]) -> None:
        self.routed, self.members = routed, tiles
        self.whose_N = routed.member_N[:0]

    def load(self, tile: slice) -> None:
        self.whose_N = self.routed.member_N[tile]
        for place, member in enumerate(self.members):
            member.load(self.routed._own(place, tile))

    def local(self, core: Core, log_q_NV: Tensor, rows: slice, temperature: float) -> Local:
        """As `TargetTiles.local`."""
        whose_N = self.whose_N[rows]
        values_N, slopes_NV = log_q_NV.new_zeros(len(whose_N)), torch.zeros_like(log_q_NV)
        for place, member in enumerate(self.members):
            mine = (whose_N == place).nonzero().squeeze(-1)
            if not len(mine):
                continue
            before = int((self.whose_N[: rows.start or 0] == place).sum())
            local = member.local(core, log_q_NV[mine], slice(before, before + len(mine)), temperature)
            values_N[mine], slopes_NV[mine] = local.values_N, local.slopes_NV
        return Local(values_N, slopes_NV)

    def preferred(self) -> Tensor:
        """As `TargetTiles.preferred`."""
        found_N = torch.zeros_like(self.whose_N)
        for place, member in enumerate(self.members):
            mine = (self.whose_N == place).nonzero().squeeze(-1)
            if len(mine):
                found_N[mine] = member.preferred()
        return found_N

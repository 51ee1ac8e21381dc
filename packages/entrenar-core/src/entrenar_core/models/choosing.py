"""Which part of a teacher's widths a student keeps: the first, a mixture, or what matters most.

Shapes: n numbers of a width of the teacher, H numbers of the residual stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from entrenar_core.architectures.flows import Axis
from entrenar_core.config.schema import InitFrom
from entrenar_core.models.cuts import Cut, Projection, Selection, each_times, first, interpolation, largest, principal
from entrenar_core.models.importance import Moments, read_energy, shares, written_energy
from entrenar_core.models.matrices import Module, head_dim_of, parts_of, reading, sizes_of, writing
from entrenar_core.models.widths import Widths


@dataclass(frozen=True, slots=True)
class Choice:
    """Cuts a teacher's widths `before` to those `after` as the settings say, by what was measured if anything was."""

    settings: InitFrom
    modules: Sequence[Module]
    before: Widths
    after: Widths
    moments: Moments | None

    @property
    def turns(self) -> bool:
        """Whether the residual stream is turned into its principal directions."""
        return self.settings.embeddings == "svd" and self.after.hidden_size < self.before.hidden_size

    def decided(self) -> list[Axis]:
        """The widths of which it is decided by importance what stays."""
        if self.settings.width != "importance":
            return []
        heads = (self.before.num_heads, self.before.num_kv_heads) != (self.after.num_heads, self.after.num_kv_heads)
        changed: dict[Axis, bool] = {
            "hidden": self.after.hidden_size < self.before.hidden_size and not self.turns,
            "queries": heads,
            "neurons": self.after.intermediate_size < self.before.intermediate_size,
        }
        return [axis for axis, does in changed.items() if does]

    def of_stream(self) -> dict[Axis, Cut]:
        """The cut of the residual stream, and those of what heads read, which is as wide."""
        wide, kept = self.before.hidden_size, self.after.hidden_size
        if kept == wide:
            return {}
        if self.turns:
            return {"hidden": principal(self.second_moment(), kept)}
        streams: tuple[Axis, ...] = ("hidden", "pooled")
        found: dict[Axis, Cut] = {
            axis: self._simple(wide, kept) or largest(self._stream_scores(axis), kept)
            for axis in streams
            if writing(self.modules, axis)
        }
        # a classifier without a pooler reads the stream, and predictions meet the embeddings, which write it
        found.setdefault("pooled", found["hidden"])
        return found | {"predicted": found["hidden"]}

    def of_layer(self, layer: int) -> dict[Axis, Cut]:
        """The cuts of a layer's heads and neurons."""
        return self._heads(layer) | self._neurons(layer)

    def second_moment(self) -> Tensor:
        """(H, H) of the residual stream where norms read it, as measured, else of the rows of the embeddings."""
        if self.moments is not None:
            assert self.moments.stream_HH is not None, "measured where the stream is turned"
            return self.moments.stream_HH
        (table,) = (module for module in self.modules if module.is_lookup)
        return (table.weight @ table.weight.T).double()

    def _simple(self, wide: int, kept: int) -> Cut | None:
        if self.settings.width == "truncate":
            return first(kept)
        return interpolation(wide, kept) if self.settings.width == "interpolate" else None

    def _stream_scores(self, axis: Axis) -> Tensor:
        """The mean share of each number over the matrices that read it, each share of its own matrix."""
        written_n = torch.stack([shares(written_energy(m.weight)) for m in writing(self.modules, axis)]).mean(0)
        measured = axis == "hidden" and self.moments is not None
        read = [
            shares(read_energy(module.weight, self._mean_squares(module) if measured else written_n))
            for module in reading(self.modules, axis)
        ]
        return torch.stack(read).mean(0) if read else written_n

    def _heads(self, layer: int) -> dict[Axis, Cut]:
        before, after = self.before, self.after
        if (before.num_heads, before.num_kv_heads) == (after.num_heads, after.num_kv_heads):
            return {}
        kv_heads, heads = self._kept_heads(layer)
        head_dim = head_dim_of(self.modules, before)
        keys = each_times(kv_heads, head_dim)
        return {"queries": each_times(heads, head_dim), "keys": keys, "values": keys}

    def _kept_heads(self, layer: int) -> tuple[Cut, Cut]:
        before, after = self.before, self.after
        if self.settings.width == "interpolate":
            groups = interpolation(before.num_kv_heads, after.num_kv_heads)
            members = interpolation(before.group, after.group)
            return groups, Projection(
                torch.kron(groups.down_mn, members.down_mn), torch.kron(groups.up_nm, members.up_nm)
            )
        in_order = -torch.arange(before.num_heads, dtype=torch.float64)
        return chosen_heads(in_order if self.settings.width == "truncate" else self._head_scores(layer), before, after)

    def _head_scores(self, layer: int) -> Tensor:
        (out,) = reading(self.modules, "queries", layer)
        squares = self._mean_squares(out)
        if squares is None:
            (source,) = writing(self.modules, "values", layer)
            (values,) = parts_of(source, "values", sizes_of(self.before, head_dim_of(self.modules, self.before)))
            by_head = written_energy(values).view(self.before.num_kv_heads, -1)
            squares = by_head.repeat_interleave(self.before.group, 0).flatten()
        return read_energy(out.weight, squares).view(self.before.num_heads, -1).sum(1)

    def _neurons(self, layer: int) -> dict[Axis, Cut]:
        wide, kept = self.before.intermediate_size, self.after.intermediate_size
        if wide == kept:
            return {}
        return {"neurons": self._simple(wide, kept) or largest(self._neuron_scores(layer), kept)}

    def _neuron_scores(self, layer: int) -> Tensor:
        (out,) = reading(self.modules, "neurons", layer)
        squares = self._mean_squares(out)
        if squares is None:
            sizes = sizes_of(self.before, head_dim_of(self.modules, self.before))
            sources = [part for m in writing(self.modules, "neurons", layer) for part in parts_of(m, "neurons", sizes)]
            squares = torch.stack([shares(written_energy(part)) for part in sources]).prod(0)
        return read_energy(out.weight, squares)

    def _mean_squares(self, module: Module) -> Tensor | None:
        if self.moments is None:
            return None
        # heads read what comes last, and so does a pooler, of one position
        return self.moments.reads.get(module.name, self.moments.last_n)


def chosen_heads(scores_n: Tensor, before: Widths, after: Widths) -> tuple[Selection, Selection]:
    """The key-value heads and the heads that stay: of each group the best heads, and the groups whose best are best.

    `scores_n` has a score for each head; a group is the heads that share a key-value head, `before.group` of them, of
    which `after.group` stay.
    """
    best = scores_n.view(before.num_kv_heads, before.group).sort(stable=True, dim=1, descending=True)
    groups = largest(best.values[:, : after.group].sum(1), after.num_kv_heads)
    members = best.indices[groups.indices_m, : after.group].sort(1).values
    heads = groups.indices_m[:, None] * before.group + members
    return groups, replace(groups, indices_m=heads.flatten())

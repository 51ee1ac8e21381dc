"""Several teachers as one: their probabilities are averaged, or each of them teaches rows of its own.

Shapes: M teachers, N rows that count, B rows of a batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from entrenar_core.config.teachers import EnsembleTeacher
from entrenar_core.data.collating import Batch
from entrenar_core.data.labels import IGNORED
from entrenar_core.errors import ConfigError, DataError
from entrenar_core.losses.mixture import Mixture
from entrenar_core.losses.routed import Routed
from entrenar_core.losses.targets import Dense, Targets
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.precomputed import ByRow
from entrenar_core.teachers.promises import of_several
from entrenar_core.teachers.signals import unmet_together
from entrenar_core.teachers.source import Said, TeacherSays, TeacherSource
from entrenar_core.training.evaluation import OnBatch, length_sorted_batches

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

MOST_ROWS = 2_000
"""Training rows on which weights are learnt."""
_STEPS, _TOLERANCE = 1_000, 1e-7
_TILE = 256


class AveragedTeachers:
    """The average of what several teachers say, with `weights` (M,) that add up to 1.

    Raises:
        ConfigError: of some of them no whole distributions are known.
    """

    signals = of_several()

    def __init__(
        self, members: Sequence[TeacherSource], weights_M: Tensor, vocabulary: int | None, *, confidence: bool
    ) -> None:
        _require_whole(members)
        self.members, self.weights_M, self.vocabulary, self.confidence = members, weights_M, vocabulary, confidence

    def rows(self, batch: Batch) -> Mixture:
        """What they say of the rows or positions that count, on the device of the batch."""
        return self._mixed([member.rows(batch) for member in self.members])

    def listening(self, wants: Wants) -> TeacherSays:
        """What they say in training, where nothing can be wanted of their layers."""
        assert not wants.anything, "they have none together"
        each = [member.listening(wants) for member in self.members]

        def says(batch: Batch) -> Said:
            said = [one(batch) for one in each]
            known = [one.kept_rows for one in said if one.kept_rows is not None]
            rows = [one.rows for one in said if one.rows is not None]
            return Said(self._mixed(rows), kept_rows=min(known, default=None))

        return says

    def _mixed(self, said: Sequence[Targets]) -> Mixture:
        dense = [rows for rows in said if isinstance(rows, Dense)]
        assert len(dense) == len(said), "of all of them, whole distributions are known"
        return Mixture(dense, self.weights_M, self.vocabulary, self.confidence)


class RoutedTeachers:
    """Teachers of whom each is asked about rows of its own; `whose` has the member's number by row number.

    Raises:
        ConfigError: as `AveragedTeachers`.
    """

    signals = of_several()

    def __init__(self, members: Sequence[TeacherSource], whose: ByRow, vocabulary: int | None) -> None:
        _require_whole(members)
        self.members, self.whose, self.vocabulary = members, whose, vocabulary

    def rows(self, batch: Batch) -> Routed:
        """What they say of the rows or positions that count, on the device of the batch."""
        parts, whose_N = self._split(batch)
        return Routed([self.members[place].rows(part) for place, part in parts], whose_N, self.vocabulary)

    def listening(self, wants: Wants) -> TeacherSays:
        """What they say in training, where nothing can be wanted of their layers."""
        each = [member.listening(wants) for member in self.members]
        cached = any(member.signals.examples == "kept" for member in self.members)

        def says(batch: Batch) -> Said:
            parts, whose_N = self._split(batch)
            said = [each[place](part) for place, part in parts]
            rows = [one.rows for one in said if one.rows is not None]
            known = sum(one.kept_rows or 0 for one in said)
            return Said(Routed(rows, whose_N, self.vocabulary), kept_rows=known if cached else None)

        return says

    def _split(self, batch: Batch) -> tuple[list[tuple[int, Batch]], Tensor]:
        """The members that have rows here, with these; and of every position that counts, whose it is among them."""
        members, place_B = torch.unique(self.whose.of(batch).squeeze(-1), return_inverse=True)
        parts = [
            (member, batch.of((place_B == place).nonzero().squeeze(-1).tolist()))
            for place, member in enumerate(members.tolist())
        ]
        return parts, place_B.repeat_interleave(batch.counted)


def _require_whole(members: Sequence[TeacherSource]) -> None:
    if problems := list(unmet_together([member.signals for member in members])):
        raise ConfigError(problems)


def routes(prepared: "Preparation", ensemble: EnsembleTeacher) -> ByRow:
    """Whose every row is, by the values of `dataset.route_column`.

    Raises:
        DataError: a value is no member's.
    """
    owner = {value: place for place, member in enumerate(ensemble.members) for value in member.rows or ()}
    rows = [row for part in (prepared.rows.train, prepared.rows.evaluation) for row in part]
    strange = [str(row["route"]) for row in rows if str(row["route"]) not in owner]
    if strange:
        column = prepared.config.dataset.route_column
        raise DataError(
            f"{len(strange):,} rows have {strange[0]!r} or another value in column `{column}` that no teacher teaches",
            "add it to the `rows` of one of `teacher.members`",
        )
    members_N1 = torch.tensor([[owner[str(row["route"])]] for row in rows])
    return ByRow([row["row"] for row in rows], members_N1)


def fixed_weights(ensemble: EnsembleTeacher) -> Tensor:
    """(M,), as the members say, adding up to 1."""
    weights_M = torch.tensor([float(member.weight) for member in ensemble.members])
    return weights_M / weights_M.sum()


@torch.no_grad()
def learned_weights(
    prepared: "Preparation", members: Sequence[TeacherSource], accelerator: Accelerator, on_batch: OnBatch
) -> Tensor:
    """The weights (M,) with which the average gives the labels of training rows the greatest likelihood.

    Source: Smyth & Wolpert 1999, "Linearly Combining Density Estimators via Stacking", by expectation-maximisation.

    Raises:
        DataError: no training row has a label.
    """
    tokens = prepared.train_tokens
    chosen = tokens.select(range(0, len(tokens), max(1, len(tokens) // MOST_ROWS)))
    size, found = prepared.config.training.evaluation_batch_size, []
    collator = prepared.collator.of_epoch(0)  # as masked texts are read in training, and kept in caches
    for done, cpu_batch in enumerate(length_sorted_batches(chosen, collator, size)):
        on_batch(done, -(-len(chosen) // size))
        batch = cpu_batch.to(accelerator.device)
        labels_N = prepared.counting.labels(batch)
        found.append(torch.stack([_of_labels(member.rows(batch), labels_N) for member in members], -1).cpu())
    log_p_NM = torch.cat(found)
    if not len(log_p_NM):
        raise DataError("no training row has a label, and weights are learnt from labels", "set `weighting: fixed`")
    return mixture_weights(log_p_NM)


def mixture_weights(log_p_NM: Tensor) -> Tensor:
    """argmax_w Σ_n log Σ_m w_m p_nm over weights that add up to 1, (M,): a concave problem.

    A step of expectation-maximisation is w_m ← mean_n w_m p_nm / Σ_k w_k p_nk.
    """
    log_p_NM = log_p_NM.double()
    log_weights_M = torch.full_like(log_p_NM[0], 1 / log_p_NM.shape[1]).log()
    for _ in range(_STEPS):
        shares_NM = (log_p_NM + log_weights_M).log_softmax(-1)
        updated_M = shares_NM.logsumexp(0) - torch.tensor(float(len(log_p_NM))).log()
        moved = float((updated_M.exp() - log_weights_M.exp()).abs().max())
        log_weights_M = updated_M
        if moved < _TOLERANCE:
            break
    return log_weights_M.exp().float()


def _of_labels(said: Targets, labels_N: Tensor) -> Tensor:
    """The log-probability of each label, where there is one."""
    assert isinstance(said, Dense), "an average is of whole distributions"
    there_N = labels_N != IGNORED
    log_p_N = torch.full_like(labels_N, 0, dtype=torch.float32)
    for start in range(0, len(said), _TILE):
        tile = slice(start, start + _TILE)
        log_p_NV = said.of(tile).float().log_softmax(-1)
        log_p_N[tile] = log_p_NV.gather(-1, labels_N[tile].clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return log_p_N[there_N]

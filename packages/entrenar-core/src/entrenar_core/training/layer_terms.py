"""Losses between layers of student and teacher: what they need of both models, and their sums over a batch.

Each averages over its pairs of layers. Projections and learnt weights are theirs: they train with the student and are
not saved with it.

Shapes: B rows, T positions, E examples, L positions of the longest, H student's width, K teacher's width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from entrenar_core.config.desugaring import Term
from entrenar_core.config.losses import (
    AttentionLoss,
    AttentionMapLoss,
    CkaLoss,
    HiddenLoss,
    LayerLoss,
    MinilmLoss,
    PatientLoss,
    RelationLoss,
    SimilarityLoss,
)
from entrenar_core.config.schedules import Setting
from entrenar_core.data.collating import Batch
from entrenar_core.losses.attention import LearnedHeadWeights, allowed_keys, attention_kl, attention_mse, map_heads
from entrenar_core.losses.grouping import LEAST, count_groups
from entrenar_core.losses.minilm import relation_kl
from entrenar_core.losses.projections import make_projection
from entrenar_core.losses.sums import LossSum
from entrenar_core.losses.table import LOSSES
from entrenar_core.models.layer_sizes import Sizes, relation_heads
from entrenar_core.models.recording import AttentionInputs, Record
from entrenar_core.models.wants import EMBEDDINGS, Wants

Pairs = tuple[tuple[int, int], ...]
Sum = Callable[..., LossSum]


class LayerTerm(nn.Module):
    """A loss between layers, as part of an objective."""

    label: str
    weight: Setting
    needs_teacher = True
    temperature = 1.0
    uses_attention = False

    def __init__(self, term: Term, pairs: Pairs) -> None:
        super().__init__()
        self.label, self.weight = term.label, term.weight
        self.pairs = pairs

    def wants(self, side: int) -> Wants:
        """What is read of the student (0) or the teacher (1)."""
        layers = frozenset(pair[side] for pair in self.pairs)
        return Wants(attention=layers) if self.uses_attention else Wants(hidden=layers)

    def count(self, batch: Batch) -> int:
        """What its sum over a batch is divided by: here, real tokens."""
        return int(batch.real.sum())

    def forward(self, student: Record, teacher: Record, batch: Batch) -> Tensor:
        """The sum over a batch, the mean of those of the pairs; its count is that of `count`."""
        totals = [self._pair(index, student, teacher, batch).total for index in range(len(self.pairs))]
        return sum(totals[1:], totals[0]) / len(totals)

    def _pair(self, index: int, student: Record, teacher: Record, batch: Batch) -> LossSum:
        raise NotImplementedError


class HiddenTerm(LayerTerm):
    """Hidden states of each pair of layers, projected where the loss needs one width, compared by `compare`."""

    def __init__(
        self, term: Term, pairs: Pairs, compare: Sum, projections: nn.ModuleList | None, count: Callable[[Tensor], int]
    ) -> None:
        super().__init__(term, pairs)
        self.compare, self.projections, self.counted = compare, projections, count

    def count(self, batch: Batch) -> int:
        return self.counted(batch.real if (apart := self._apart(batch)) is None else apart[1])

    def _pair(self, index: int, student: Record, teacher: Record, batch: Batch) -> LossSum:
        student_BTH, teacher_BTK = (
            _hidden(record, layer) for record, layer in zip((student, teacher), self.pairs[index], strict=True)
        )
        if self.projections is not None:
            student_BTH = self.projections[index](student_BTH)
        if (apart := self._apart(batch)) is None:
            return self.compare(student_BTH, teacher_BTK, batch.real)
        places_EL, real_EL = apart
        return self.compare(student_BTH.flatten(0, 1)[places_EL], teacher_BTK.flatten(0, 1)[places_EL], real_EL)

    def _apart(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Where each example is of those that share a row, for what is compared is of examples, and not of tokens."""
        return None if batch.packed is None or self.counted is _tokens else batch.packed.apart(batch.real)


class AttentionTerm(LayerTerm):
    """What attention looks at in each pair of layers."""

    uses_attention = True

    def __init__(self, term: Term, pairs: Pairs, compare: Sum, weights: nn.ModuleList | None) -> None:
        super().__init__(term, pairs)
        self.compare, self.head_weights = compare, weights

    def _pair(self, index: int, student: Record, teacher: Record, batch: Batch) -> LossSum:
        ours, theirs, allowed_BTT = _attention(self.pairs[index], student, teacher, batch)
        learnt = {} if self.head_weights is None else {"weights": self.head_weights[index]()}
        return self.compare(ours.scores(), theirs.scores().detach(), allowed_BTT, **learnt)


class MinilmTerm(LayerTerm):
    """Relations of queries, keys and values in each pair of layers, in equal parts."""

    uses_attention = True

    def __init__(self, term: Term, pairs: Pairs, relations: Sequence[str], relation_heads: int) -> None:
        super().__init__(term, pairs)
        self.relations, self.relation_heads = relations, relation_heads

    def _pair(self, index: int, student: Record, teacher: Record, batch: Batch) -> LossSum:
        ours, theirs, allowed_BTT = _attention(self.pairs[index], student, teacher, batch)
        found = [
            relation_kl(_vectors(ours, name), _vectors(theirs, name), allowed_BTT, relation_heads=self.relation_heads)
            for name in self.relations
        ]
        total = sum((one.total for one in found[1:]), found[0].total)
        return LossSum(total / len(found), found[0].count)


def make_layer_term(term: Term, pairs: Pairs, student: Sizes, teacher: Sizes) -> LayerTerm:
    """The loss of an entry between these pairs of layers. Its projections are drawn from torch's generator.

    Raises:
        ValueError: the models' sizes do not fit the loss.
    """
    entry = term.entry
    assert isinstance(entry, LayerLoss)
    match entry:
        case AttentionLoss():
            return _attention_term(term, entry, pairs, student, teacher)
        case MinilmLoss():
            heads = relation_heads(entry.relation_heads, entry.relations, student, teacher)
            return MinilmTerm(term, pairs, entry.relations, heads)
        case HiddenLoss():
            pairs = ((EMBEDDINGS, EMBEDDINGS), *pairs) if entry.embeddings else pairs
            projections = _projections(entry.projection, pairs, student, teacher)
            return HiddenTerm(term, pairs, _function(entry.name), projections, _tokens)
        case PatientLoss():
            projections = _projections(entry.projection, pairs, student, teacher)
            compare = partial(_function(entry.name), pool=entry.pool)
            return HiddenTerm(term, pairs, compare, projections, _tokens if entry.pool == "tokens" else _rows)
        case AttentionMapLoss():
            return HiddenTerm(term, pairs, partial(_function(entry.name), power=entry.power), None, _rows)
        case CkaLoss() | RelationLoss():
            settings = {"temperature": entry.temperature} if isinstance(entry, SimilarityLoss) else {}
            compare = partial(_function(entry.name), pool=entry.pool, group_size=entry.group_size, **settings)
            return HiddenTerm(term, pairs, compare, None, partial(_groups, entry))
    raise AssertionError(entry.name)


def _attention_term(term: Term, entry: AttentionLoss, pairs: Pairs, student: Sizes, teacher: Sizes) -> AttentionTerm:
    mapped = map_heads(entry.heads, student.num_heads, teacher.num_heads)
    compare = partial(attention_kl if entry.name == "attention_kl" else attention_mse, heads=entry.heads)
    if entry.head_weights == "learned":
        weights = nn.ModuleList(LearnedHeadWeights(len(mapped.student)) for _ in pairs)
        return AttentionTerm(term, pairs, compare, weights)
    return AttentionTerm(term, pairs, partial(compare, weights=entry.head_weights), None)


def _projections(kind: Any, pairs: Pairs, student: Sizes, teacher: Sizes) -> nn.ModuleList | None:
    if kind == "none" and student.hidden_size == teacher.hidden_size:
        return None
    return nn.ModuleList(make_projection(kind, student.hidden_size, teacher.hidden_size) for _ in pairs)


def _function(name: str) -> Sum:
    found: Sum = getattr(import_module(f"entrenar_core.losses.{LOSSES[name].home}"), name)
    return found


def _tokens(real_BT: Tensor) -> int:
    return int(real_BT.sum())


def _rows(real_BT: Tensor) -> int:
    return int(real_BT.any(-1).sum())


def _groups(entry: CkaLoss | RelationLoss, real_BT: Tensor) -> int:
    return count_groups(real_BT, entry.group_size, LEAST[entry.name], entry.pool == "tokens")


def _hidden(record: Record, layer: int) -> Tensor:
    found = record.embeddings if layer == EMBEDDINGS else record.hidden[layer]
    assert found is not None, "it was asked for"
    return found


def _vectors(inputs: AttentionInputs, relation: str) -> Tensor:
    return {"query": inputs.queries_BHTd, "key": inputs.keys_BGTd, "value": inputs.values_BGTd}[relation]


def _attention(
    pair: tuple[int, int], student: Record, teacher: Record, batch: Batch
) -> tuple[AttentionInputs, AttentionInputs, Tensor]:
    """What enters the attention of a pair of layers, and which keys a query may see in both, (B, T, T). Of packed rows,
    each example is taken for a row, since heads are weighed row by row.
    """
    ours, theirs = (record.attention[layer] for record, layer in zip((student, teacher), pair, strict=True))
    real_BT = batch.real
    if batch.packed is not None:
        places_EL, real_BT = batch.packed.apart(real_BT)
        ours, theirs = _of_examples(ours, places_EL), _of_examples(theirs, places_EL)
    seen = (allowed_keys(real_BT, inputs.causal, inputs.window) for inputs in (ours, theirs))
    return ours, theirs, next(seen) & next(seen)


def _of_examples(inputs: AttentionInputs, places_EL: Tensor) -> AttentionInputs:
    """The same of each example by itself. A bias of positions is one of their distances."""

    def taken(of_heads_BHTd: Tensor) -> Tensor:
        return of_heads_BHTd.transpose(1, 2).flatten(0, 1)[places_EL].transpose(1, 2)

    bias, longest = inputs.position_bias, places_EL.shape[1]
    return dataclasses.replace(
        inputs,
        queries_BHTd=taken(inputs.queries_BHTd),
        keys_BGTd=taken(inputs.keys_BGTd),
        values_BGTd=taken(inputs.values_BGTd),
        position_bias=None if bias is None else bias[..., :longest, :longest],
    )

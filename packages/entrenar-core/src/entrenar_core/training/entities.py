"""Entities: spans of words, told by tags such as `B-PER`, `I-PER` and `O`, and how many of them a model finds.

Source: the CoNLL-2000 and 2003 shared tasks (Tjong Kim Sang & Buchholz 2000; Tjong Kim Sang & De Meulder 2003), whose
`conlleval` reads IOB1, IOB2 and BIOES alike; seqeval's default does the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from entrenar_core.data.labels import IGNORED

OUTSIDE = "O"
_PREFIXED = re.compile(r"[BIES]-.+")
Span = tuple[int, int, str]


def are_entity_tags(names: Sequence[str]) -> bool:
    """Whether tags tell spans: all are `O` or begin with `B-`, `I-`, `E-` or `S-`, and not all are `O`."""
    prefixed = [name for name in names if _PREFIXED.fullmatch(name)]
    return bool(prefixed) and all(name == OUTSIDE for name in names if name not in prefixed)


def spans(tags: Sequence[str]) -> set[Span]:
    """The entities in the tags of a row, as `(first, end, type)`, `end` excluded.

    A word goes on with the entity of the word before if it has the tag `I` or `E` of the same type and that word had
    `B` or `I`. Every other word that is not outside begins an entity, with whatever tag: `O I-PER` has one.
    """
    found: set[Span] = set()
    begun: int | None = None
    padded = [OUTSIDE, *tags, OUTSIDE]
    for position, (before, tag) in enumerate(pairwise(padded)):
        if _goes_on(before, tag):
            continue
        if begun is not None:
            found.add((begun, position, before[2:]))
        begun = None if tag == OUTSIDE else position
    return found


def _goes_on(before: str, tag: str) -> bool:
    return before[:1] in ("B", "I") and tag[:1] in ("I", "E") and before[2:] == tag[2:]


@dataclass(frozen=True, slots=True)
class EntityCounts:
    """Numbers of entities. Those of two batches add up."""

    correct: int = 0
    predicted: int = 0
    labelled: int = 0

    def __add__(self, other: "EntityCounts") -> "EntityCounts":
        return EntityCounts(
            self.correct + other.correct, self.predicted + other.predicted, self.labelled + other.labelled
        )

    @property
    def f1(self) -> float:
        """Micro average: 2 · correct / (predicted + labelled); 0 where there is no entity at all."""
        return entity_f1(self.correct, self.predicted, self.labelled)


def entity_f1(correct: float, predicted: float, labelled: float) -> float:
    """F1 = 2 · correct / (predicted + labelled), the harmonic mean of precision and recall; 0 of no entities."""
    return 2 * correct / (predicted + labelled) if predicted + labelled else 0.0


def count_entities(predicted: Sequence[int], labels: Sequence[int], names: Sequence[str]) -> EntityCounts:
    """Entities of one row that have the same words and the same type in both.

    A word without a label (−100) is outside in both: nothing is known of it, and no entity reaches over it.

    Args:
        predicted: the index of each word's tag.
        labels: the same, as it should be.
        names: the tags by index.
    """
    found = spans([OUTSIDE if label == IGNORED else names[tag] for tag, label in zip(predicted, labels, strict=True)])
    expected = spans([OUTSIDE if label == IGNORED else names[label] for label in labels])
    return EntityCounts(len(found & expected), len(found), len(expected))

"""A teacher that is ready to teach, and what it is worth."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from entrenar_core.reports import MemberFacts, Scores
from entrenar_core.teachers.numbers import not_finite
from entrenar_core.teachers.sentences import SentenceTeacher
from entrenar_core.teachers.source import TeacherSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation


@dataclass(frozen=True, slots=True)
class ReadyTeacher:
    """A teacher with its scores on the evaluation rows. `model` is what a student may copy layers from, if loaded;
    `parameters` are not known of a model that a server runs; of several teachers, `members` are each by itself.
    """

    source: TeacherSource | SentenceTeacher
    scores: Scores
    parameters: int | None
    model: "PreTrainedModel | None"
    members: tuple[MemberFacts, ...] = ()


def sound(scores: Scores, prepared: "Preparation") -> Scores:
    """The scores of a teacher, which are numbers.

    Raises:
        ModelError: they are none.
    """
    if scores.cross_entropy is None or not math.isfinite(scores.cross_entropy):
        raise not_finite(prepared, "logits")
    return scores

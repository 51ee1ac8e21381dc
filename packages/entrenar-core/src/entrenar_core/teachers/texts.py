"""The texts that a teacher reads by itself, with its own tokenizer, as its tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from entrenar_core.data.tokenizing import never_empty
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.teachers.finetuning import readable_length

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


def texts_of(prepared: "Preparation") -> list[str]:
    """Of a classifier that does not read the student's tokens, all rows; of a sentence encoder, the training rows
    likewise, and what the student is judged by.
    """
    if prepared.task == EMBEDDING:
        return [*(() if prepared.teacher_reads_tokens else prepared.rows.train["text"]), *prepared.questions.texts]
    if prepared.teacher_reads_tokens:
        return []
    return [*prepared.rows.train["text"], *prepared.rows.evaluation["text"]]


def ids_of(prepared: "Preparation", texts: Sequence[str]) -> list[list[int]]:
    """The teacher's tokens of each text, as many as it can read."""
    return never_empty(prepared.teacher_tokenizer, texts, readable_length(prepared))

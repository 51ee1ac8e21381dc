"""Several teachers, each ready by itself, as one that is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accelerate import Accelerator

from entrenar_core.config.teachers import EnsembleTeacher
from entrenar_core.models.heads import TAGGING
from entrenar_core.reports import MemberFacts
from entrenar_core.teachers.ensemble import (
    AveragedTeachers,
    RoutedTeachers,
    fixed_weights,
    learned_weights,
    routes,
)
from entrenar_core.teachers.ready import ReadyTeacher, sound
from entrenar_core.teachers.sentences import SentenceTeacher
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.evaluation import OnBatch, evaluate_rows

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation


def several_teachers(
    prepared: "Preparation",
    ready: Sequence[ReadyTeacher],
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    on_batch: OnBatch,
) -> ReadyTeacher:
    """All of them as one, with the scores that it has; each one's own are told.

    Raises:
        ConfigError: an average is asked of a teacher of whom some tokens alone are known.
        DataError: rows have no teacher, or weights are to be learnt from labels that are not there.
    """
    for one, made in zip(prepared.members, ready, strict=True):
        tell(callbacks, f"{one.teacher.reference} alone: {made.scores.in_words}")
    source = _together(prepared, ready, accelerator, callbacks, on_batch)
    scores = evaluate_rows(
        source.rows,
        prepared.eval_tokens,
        collator=prepared.collator,
        batch_size=prepared.config.training.evaluation_batch_size,
        counting=prepared.counting,
        accelerator=accelerator,
        tags=prepared.label_names if prepared.task == TAGGING else None,
        on_batch=on_batch,
    )
    weights = source.weights_M.tolist() if isinstance(source, AveragedTeachers) else [None] * len(ready)
    members = tuple(
        MemberFacts(str(one.teacher.reference), weight, made.scores)
        for one, weight, made in zip(prepared.members, weights, ready, strict=True)
    )
    parameters = sum(made.parameters or 0 for made in ready)
    return ReadyTeacher(source, sound(scores, prepared), parameters, ready[0].model, members)


def _together(
    prepared: "Preparation",
    ready: Sequence[ReadyTeacher],
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    on_batch: OnBatch,
) -> AveragedTeachers | RoutedTeachers:
    ensemble = prepared.given.teacher
    assert isinstance(ensemble, EnsembleTeacher), "who has members"
    members = [made.source for made in ready if not isinstance(made.source, SentenceTeacher)]
    if prepared.config.dataset.route_column is not None:
        return RoutedTeachers(members, routes(prepared, ensemble), prepared.vocabulary)
    weights_M = fixed_weights(ensemble)
    if ensemble.weighting == "learned":
        weights_M = learned_weights(prepared, members, accelerator, on_batch)
        shares = ", ".join(f"{weight:.3f}" for weight in weights_M.tolist())
        tell(callbacks, f"weights of the teachers, learnt from the labels: {shares}")
    by_confidence = ensemble.weighting == "confidence"
    return AveragedTeachers(members, weights_M.to(accelerator.device), prepared.vocabulary, confidence=by_confidence)

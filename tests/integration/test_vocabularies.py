"""What a student learns does not depend on how the rows of its teacher's vocabulary are ordered, padded or spread."""

import json
from pathlib import Path
from typing import Any

import pytest

from entrenar_core import RunReport, distill, parse_config
from entrenar_core.errors import ModelError
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.distillation import plan
from tiny_jobs import Models, build_models, classification, language
from tiny_models import tiny_llama
from tiny_vocabularies import edit_tokenizer, renumbered, shuffled

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


class Notes(Callback):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_note(self, text: str) -> None:
        self.texts.append(text)


def losses(job: dict[str, Any], *callbacks: Callback) -> tuple[RunReport, list[float]]:
    report = distill(parse_config(job), callbacks=callbacks)
    lines = [json.loads(line) for line in (report.output_dir / "metrics.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]
    assert len(found) == report.steps > 3
    return report, found


def from_teacher(models: Models, folder: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    job = language(models, folder, training={"log_every": 1}, distillation={"alpha": 0.8}, **changes)
    return job | {"teacher": {"model_id": str(teacher)}, "student": {"model_id": str(models.small_llama)}}


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that prefers some tokens by far, so that others in their place would be another loss."""
    return tiny_llama(tmp_path_factory.mktemp("sharp") / "teacher", seed=5, initializer_range=0.5)


@pytest.fixture(scope="module")
def plain(models: Models, sharp: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunReport, list[float]]:
    """The run with that teacher as it is."""
    return losses(from_teacher(models, tmp_path_factory.mktemp("plain") / "job", sharp))


PLACES = {
    "permuted": (shuffled(320), None),
    "permuted and padded": (shuffled(320, seed=1), 384),
    "spread over gaps": ({id_: 2 * id_ + 3 for id_ in range(320)}, 700),
    "padded": ({id_: id_ for id_ in range(320)}, 512),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_language_model_learns_the_same_from_a_teacher_of_another_order(
    name: str, models: Models, sharp: Path, plain: tuple[RunReport, list[float]], tmp_path: Path
) -> None:
    place, rows = PLACES[name]
    teacher = renumbered(sharp, tmp_path / "teacher", place, rows=rows)
    before, expected = plain
    report, found = losses(from_teacher(models, tmp_path / "other", teacher))
    assert found == pytest.approx(expected, rel=1e-6)
    assert report.warnings == before.warnings
    for scores in ("teacher_scores", "student_before", "student_scores"):
        ours, theirs = getattr(report, scores), getattr(before, scores)
        assert ours.cross_entropy == pytest.approx(theirs.cross_entropy, rel=1e-6)
        assert (ours.accuracy, ours.agreement) == (theirs.accuracy, theirs.agreement)
        assert (ours.kl or 0.0) == pytest.approx(theirs.kl or 0.0, rel=1e-6)


def test_a_classifier_that_reads_streamed_tokens_reads_them_in_its_own_order(models: Models, tmp_path: Path) -> None:
    size = json.loads((models.classifier / "config.json").read_text())["vocab_size"]
    other = renumbered(models.classifier, tmp_path / "teacher", shuffled(size), rows=size + 5)

    def job(name: str, teacher: Path) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        stream = {"streaming": True, "eval_rows": 4}
        steps = {"max_steps": 5, "epochs": None, "log_every": 1}
        changes = classification(models, tmp_path / name, dataset=stream, training=steps)
        return changes | {
            "teacher": {"model_id": str(teacher)},
            "student": {"model_id": str(models.small_classifier)},
        }

    plain, expected = losses(job("plain", models.classifier))
    report, found = losses(job("other", other))
    assert found == pytest.approx(expected, rel=1e-6)
    assert report.teacher_scores.cross_entropy == pytest.approx(plain.teacher_scores.cross_entropy, rel=1e-6)
    with pytest.raises(ModelError) as refused:
        plan(parse_config(job("differing", models.other_classifier)))
    assert "`dataset.streaming`" in str(refused.value.hint)


def test_a_student_of_given_sizes_has_a_row_for_every_id(models: Models, tmp_path: Path) -> None:
    teacher = renumbered(models.llama, tmp_path / "teacher", {id_: id_ + 30 * (id_ > 200) for id_ in range(320)})
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    job = from_teacher(models, tmp_path / "job", teacher) | {"student": sizes}
    losses(job)
    assert json.loads((tmp_path / "job" / "out" / "config.json").read_text())["vocab_size"] == 350


def test_a_teacher_that_splits_texts_otherwise_is_told_before_and_after(models: Models, tmp_path: Path) -> None:
    teacher = edit_tokenizer(
        tmp_path / "teacher", lambda content: content["model"]["merges"].reverse(), of=models.llama
    )
    notes = Notes()
    report, _ = losses(from_teacher(models, tmp_path / "job", teacher), notes)
    assert report.warnings[0].startswith("teacher and student split texts differently, such as 'The quick")
    assert report.warnings[0] in notes.texts

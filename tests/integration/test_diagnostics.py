"""Diagnostics of real runs: they change no bit, measure what they say, and name what was made to go wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from entrenar_core import RunReport, distill, parse_config
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.errors import TrainingError
from entrenar_core.reports import Scores
from entrenar_core.teachers.assembly import make_teacher
from entrenar_core.training.assembly import make_accelerator, make_batches, make_student
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.diagnostics import Diagnostics
from entrenar_core.training.gradients import gradient_norms, parameter_groups
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.losses import make_objective
from entrenar_core.training.preparing import prepare
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep
from tiny_jobs import Models, build_models, classification, language, merged, write_rows
from tiny_models import CORPUS, tiny_bert, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.slow
HIDDEN = {"losses": [{"name": "forward_kl"}, {"name": "hidden_mse", "layers": [[0, 1]]}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is sure of itself."""
    return tiny_bert(tmp_path_factory.mktemp("sharp") / "teacher", num_labels=2, seed=5, initializer_range=0.4)


class Notes(Callback):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_note(self, text: str) -> None:
        self.texts.append(text)

    @property
    def names(self) -> list[str]:
        return [text.partition(":")[0] for text in self.texts]


def run(job: dict[str, Any], **how: Any) -> tuple[RunReport, list[dict[str, Any]], Notes]:
    notes = Notes()
    report = distill(parse_config(job), callbacks=[notes], **how)
    return report, metrics(report.output_dir), notes


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def looks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": line["step"], **line["diagnostics"]} for line in lines if "diagnostics" in line]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder `teacher`, one of another vocabulary, and a narrower `student`."""
    folder = tmp_path_factory.mktemp("encoders")
    tiny_bert(folder / "teacher", seed=1, initializer_range=0.3)
    tiny_bert(folder / "other", seed=3, initializer_range=0.3, vocab_size=160, tokenizer_texts=CORPUS[1:3])
    tiny_bert(folder / "student", seed=2, hidden_size=16, num_hidden_layers=1, initializer_range=0.2)
    return folder


def sentences(encoders: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Four steps between sentence encoders, on `rows.jsonl` in the folder, into its `out`."""
    base = {
        "task": "embedding",
        "teacher": {"model_id": str(encoders / "teacher")},
        "student": {"model_id": str(encoders / "student")},
        "dataset": {"path": str(write_rows(folder / "rows.jsonl")), "max_length": 24, "eval_fraction": 0.3},
        "training": {"epochs": 1, "batch_size": 7, "learning_rate": 0.01, "log_every": 1},
        "output": {"dir": str(folder / "out")},
    }
    return merged(base, changes)


@pytest.mark.parametrize("kind", ["classifier", "language model", "layers", "sentences"])
def test_looking_changes_no_bit_of_the_student(kind: str, models: Models, encoders: Path, tmp_path: Path) -> None:
    weights, told = [], []
    for every in (None, 2):
        folder = tmp_path / str(every)
        training = {"diagnose_every": every, "log_every": 1, "eval_every": 3}
        changes: dict[str, Any] = {"training": training | {"gradient_accumulation": 2, "batch_size": 4}}
        if kind == "layers":
            changes["distillation"] = HIDDEN
        if kind == "sentences":
            job = sentences(encoders, folder, **changes)
        else:
            job = (language if kind == "language model" else classification)(models, folder, **changes)
        job["student"] = {**job["student"], "dropout": 0.3}
        _, lines, _ = run(job)
        weights.append(load_file(folder / "out" / "model.safetensors"))
        told.append([{key: line[key] for key in ("step", "loss", "evaluation") if key in line} for line in lines])
        assert [found["step"] for found in looks(lines)] == ([1, 2, 4] if every else [])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert told[0] == [line for line in told[1] if len(line) > 1]


def test_the_norms_of_all_groups_make_up_the_norm_of_the_gradient(models: Models, tmp_path: Path) -> None:
    job = classification(
        models, tmp_path, training={"diagnose_every": 1, "log_every": 1}, distillation=HIDDEN
    )  # fmt: skip
    report, lines, _ = run(job)
    norms = {line["step"]: line["grad_norm"] for line in lines if "grad_norm" in line}
    found = looks(lines)
    assert [look["step"] for look in found] == sorted(norms) == [*range(1, report.steps + 1)]
    for look in found:
        assert math.hypot(*look["gradient_norms"].values()) == pytest.approx(norms[look["step"]], rel=1e-4)
        assert set(look["gradient_norms"]) == {
            "embeddings", "layer 0", "rest of the body", "head", "projections of hidden_mse",
        }  # fmt: skip
        assert (look["classes"], look["top_k"]) == (2, 1)
        assert look["rows"] == (8 if look["step"] < report.steps else 4)  # 36 rows in batches of 8
        assert 0 < look["js"] < look["kl"]
        assert look["teacher_entropy"].keys() == {"1", "2"}
        assert 0 < look["teacher_entropy"]["1"] < look["teacher_entropy"]["2"] < math.log(2)


LOSSES = [
    {"name": "embedding_cosine"}, {"name": "in_batch_similarity", "group_size": 7},
    {"name": "embedding_mse", "projection": "mlp", "weight": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("teacher", ["teacher", "other", "streamed"])
def test_of_sentence_encoders_the_vectors_are_compared(teacher: str, encoders: Path, tmp_path: Path) -> None:
    """Whether the teacher reads the texts or the student's tokens; a loss without weight is none."""
    changes: dict[str, Any] = {
        "student": {"dropout": 0.0}, "training": {"diagnose_every": 1}, "distillation": {"losses": LOSSES},
    }  # fmt: skip
    if teacher == "streamed":
        changes["dataset"] = {"streaming": True, "eval_fraction": None, "eval_rows": 12}
    else:
        changes["teacher"] = {"model_id": str(encoders / teacher)}
    _, lines, notes = run(sentences(encoders, tmp_path, **changes))
    steps = {line["step"]: line for line in lines if "loss" in line}
    found = looks(lines)
    assert [look["step"] for look in found] == sorted(steps) == [1, 2, 3, 4]
    for look in found:
        assert set(look["gradient_norms"]) == {"embeddings", "layer 0", "projections of embedding_cosine"}
        assert math.hypot(*look["gradient_norms"].values()) == pytest.approx(steps[look["step"]]["grad_norm"], rel=1e-4)
        assert look["rows"] == 7
        # one micro-batch, before the step moves the weights, and no dropout to tell them apart
        cosine = 1 - steps[look["step"]]["losses"]["embedding_cosine"]
        assert look["cosines"] == {"embedding_cosine": pytest.approx(cosine, abs=1e-5)}
        assert -1 < look["rank_correlation"] < 1
    assert notes.texts == []


def test_before_the_first_step_vectors_agree_as_in_the_evaluation(encoders: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "two.jsonl", [{"text": f"{'the quick brown fox '[: 4 + i % 14]}{i}"} for i in range(80)]
    )
    changes = {
        "dataset": {"path": str(rows), "eval_fraction": 0.5},
        "training": {"diagnose_every": 9, "batch_size": 40},
    }
    relations = {"losses": [{"name": "rkd_angle", "group_size": 8}]}
    _, lines, _ = run(sentences(encoders, tmp_path, distillation=relations, **changes))
    (first,) = looks(lines)
    before = next(line["evaluation"] for line in lines if line["step"] == 0)
    assert first["rank_correlation"] == pytest.approx(before["rank_correlation"], abs=0.15)
    assert (first["rows"], first["cosines"]) == (40, {})


def test_before_the_first_step_the_distance_is_that_of_the_evaluation(models: Models, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "one.jsonl", [{"text": f"the quick brown fox {index}"} for index in range(40)])
    dataset = {"path": str(rows), "eval_fraction": 0.5}
    # one batch of all training rows, and the evaluation of the same texts but for their numbers
    job = language(models, tmp_path, dataset=dataset, training={"diagnose_every": 5, "batch_size": 20, "epochs": 2})
    _, lines, _ = run(job)
    (first,) = looks(lines)
    before = next(line["evaluation"] for line in lines if line["step"] == 0)
    assert first["kl"] == pytest.approx(before["kl"], rel=0.2)
    assert first["agreement"] == pytest.approx(before["agreement"], abs=0.15)
    assert first["top_k"] == 10
    assert "student" not in first["gradient_norms"]


@pytest.mark.parametrize(
    ("make", "groups"),
    [
        (lambda path: tiny_llama(path), ["embeddings", "layer 0", "layer 1", "rest of the body"]),
        (lambda path: tiny_llama(path, tie_word_embeddings=False),
         ["embeddings", "layer 0", "layer 1", "rest of the body", "head"]),
        (lambda path: tiny_gpt2(path), ["embeddings", "layer 0", "layer 1", "rest of the body"]),
        (lambda path: tiny_bert(path, num_labels=3), ["embeddings", "layer 0", "layer 1", "rest of the body", "head"]),
    ],
)  # fmt: skip
def test_every_parameter_is_in_one_group(make: Any, groups: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = make(tmp_path / "model")
    classifies = json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    model = (AutoModelForSequenceClassification if classifies else AutoModelForCausalLM).from_pretrained(folder)
    found = parameter_groups(model)
    assert list(found) == groups
    assert sum(len(parameters) for parameters in found.values()) == len(list(model.parameters()))
    assert gradient_norms(found) == dict.fromkeys(groups, 0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    for name, parameters in found.items():
        numbers = sum(parameter.numel() for parameter in parameters)
        assert gradient_norms(found)[name] == pytest.approx(2 * math.sqrt(numbers), rel=1e-5)
    model.base_model.requires_grad_(False)
    assert list(parameter_groups(model)) == groups[4:]


def test_a_model_whose_layers_are_not_known_is_one_group() -> None:
    model = torch.nn.Linear(2, 3)
    assert {name: len(parameters) for name, parameters in parameter_groups(model).items()} == {"student": 2}
    assert gradient_norms({}) == {}


def test_a_temperature_that_is_far_too_high_is_told_once_and_at_the_end(
    models: Models, sharp: Path, tmp_path: Path
) -> None:
    job = classification(
        models, tmp_path, teacher={"model_id": str(sharp)}, distillation={"temperature": 900},
        training={"diagnose_every": 1},
    )  # fmt: skip
    report, _, notes = run(job)
    assert notes.names == ["flat temperature"]
    (warning,) = [text for text in report.warnings if text.startswith("flat temperature")]
    assert "at temperature 900 the teacher's mean entropy is 0.6931 nats of at most 0.6931" in warning


def test_a_learning_rate_that_is_far_too_high_is_told_as_instability(
    models: Models, sharp: Path, tmp_path: Path
) -> None:
    training = {"learning_rate": 3.0, "epochs": 12, "log_every": 1, "schedule": "constant", "max_grad_norm": None}
    job = classification(models, tmp_path, teacher={"model_id": str(sharp)}, training=training)
    try:
        report, lines, _ = run(job)
    except TrainingError:
        pytest.fail("its numbers stay finite, or there is nothing to tell")
    assert [text for text in report.warnings if text.startswith("instability: ")], (
        [line.get("loss") for line in lines], report.warnings,
    )  # fmt: skip


def test_a_learning_rate_of_next_to_nothing_is_told_as_a_plateau(models: Models, sharp: Path, tmp_path: Path) -> None:
    training = {"learning_rate": 1e-9, "epochs": 8, "log_every": 1}
    report, _, _ = run(classification(models, tmp_path, teacher={"model_id": str(sharp)}, training=training))
    assert [text for text in report.warnings if text.startswith("plateau: ")]


def test_a_run_that_learns_is_told_nothing(models: Models, sharp: Path, tmp_path: Path) -> None:
    training = {"learning_rate": 0.003, "epochs": 20, "log_every": 1, "diagnose_every": 5}
    report, lines, notes = run(classification(models, tmp_path, teacher={"model_id": str(sharp)}, training=training))
    scores = [line["evaluation"]["kl"] for line in lines if "evaluation" in line]
    assert scores[-1] < 0.7 * scores[0]
    assert notes.texts == []
    known = ("few", "majority", "commonest", "seed")
    assert [text for text in report.warnings if not any(word in text for word in known)] == []


def loop(config: DistillationConfig, folder: Path, notes: Notes, *, frozen: bool) -> Loop:
    """A training with a loss on hidden states, whose projection may be frozen."""
    prepared, accelerator = prepare(config), make_accelerator(config)
    teacher = make_teacher(
        prepared, accelerator, (), StopRequest(), evaluate=lambda _: Scores(4, 4, 1.0, 0.5), on_batch=lambda *_: None
    ).source
    student = make_student(prepared)
    objective = make_objective(prepared.terms, prepared, student, teacher)
    if frozen:
        (*objective.vectors, *objective.layers)[0].requires_grad_(False)
    step = DistillationStep(student, objective)
    batches = make_batches(prepared, prepared.train_tokens, None, 0, 1)
    settings = LoopSettings(
        config.training, folder, 100, 1, lambda: pytest.fail("not asked for"), lambda _: 0.0
    )  # fmt: skip
    looking = Diagnostics(1, step, teacher, accelerator, notes.on_note)
    said = teacher.listening(objective.wants(1))
    return Loop(step, batches, said, accelerator, settings, [looking], StopRequest())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_projection_that_is_frozen_is_told_as_dead(models: Models, sharp: Path, tmp_path: Path, frozen: bool) -> None:
    config = parse_config(classification(models, tmp_path, teacher={"model_id": str(sharp)}, distillation=HIDDEN))
    notes = Notes()
    loop(config, tmp_path / "out", notes, frozen=frozen).run(resume=False)
    assert notes.names == (["dead projection"] if frozen else [])
    assert not frozen or "the gradient of projections of hidden_mse is 0," in notes.texts[0]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_projection_of_vectors_that_is_frozen_is_told_as_dead(encoders: Path, tmp_path: Path, frozen: bool) -> None:
    config, notes = parse_config(sentences(encoders, tmp_path)), Notes()
    loop(config, tmp_path / "out", notes, frozen=frozen).run(resume=False)
    assert notes.names == (["dead projection"] if frozen else [])
    assert not frozen or "the gradient of projections of embedding_cosine is 0," in notes.texts[0]


def test_a_run_that_is_resumed_goes_on_with_what_was_seen(models: Models, sharp: Path, tmp_path: Path) -> None:
    class Stopping(Notes):
        def on_checkpoint(self, step: int, path: str) -> None:
            raise KeyboardInterrupt

    def job(every: int) -> dict[str, Any]:
        training = {"diagnose_every": every}
        changes = {"distillation": {"temperature": 900}, "output": {"checkpoint_every": 2}}
        return classification(models, tmp_path, teacher={"model_id": str(sharp)}, training=training, **changes)

    with pytest.raises(KeyboardInterrupt):
        distill(parse_config(job(1)), callbacks=[Stopping()])
    # how often it is looked may change, for it changes nothing; what was told before is not told again
    _, lines, notes = run(job(2), resume=True)
    assert "flat temperature" not in notes.names
    assert [look["step"] for look in looks(lines)] == [1, 2, 4]


def test_a_student_that_needs_no_teacher_is_looked_at_alone(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, distillation={"alpha": 0.0}, training={"diagnose_every": 2})
    _, lines, _ = run(job)
    assert [set(look) for look in looks(lines)] == [{"step", "gradient_norms"}] * 3


def test_trackers_get_what_is_found(models: Models, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = classification(models, tmp_path, training={"diagnose_every": 1, "trackers": ["tensorboard"]})
    run(job)
    tags: set[str] = set()
    for file in (tmp_path / "out" / "trackers").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        tags |= set(events.Tags()["scalars"])
    assert {"student/diagnostics/kl", "student/diagnostics/gradient_norms.layer 0"} <= tags

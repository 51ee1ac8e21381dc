"""The settings of training and output: each changes what happens."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny_jobs import Models, classification, language
from watched_runs import calls_of, run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


@pytest.mark.parametrize(
    ("training", "steps", "examples"),
    [
        ({}, 5, 36),
        ({"epochs": 2}, 10, 72),
        ({"batch_size": 12}, 3, 36),
        ({"gradient_accumulation": 2}, 3, 36),
        ({"epochs": 9, "max_steps": 2}, 2, 16),
    ],
)
def test_rows_epochs_and_batches_make_the_steps(
    tiny: Models, tmp_path: Path, training: dict[str, Any], steps: int, examples: int
) -> None:
    report, watch = run(classification(tiny, tmp_path, training=training))
    assert report.steps == len(watch.steps) == steps
    assert watch.steps[-1].examples == examples


def test_evaluation_has_batches_of_its_own(tiny: Models, tmp_path: Path) -> None:
    job = classification(tiny, tmp_path, dataset={"eval_fraction": 0.5}, training={"max_steps": 1})
    scores, largest = [], []
    for size in (None, 3):
        job["training"]["eval_batch_size"] = size
        with calls_of("Embedding", training=False) as calls:
            scores.append(run(job)[0].student_scores)
        largest.append(max(shape[0] for shape in calls))
    assert largest == [8, 3]
    assert scores[0].cross_entropy == pytest.approx(scores[1].cross_entropy, rel=1e-5)


def test_the_learning_rate_follows_its_schedule(tiny: Models, tmp_path: Path) -> None:
    def rates(**training: Any) -> list[float]:
        _, watch = run(classification(tiny, tmp_path, training={"epochs": 2, **training}))
        return [step.learning_rate for step in watch.steps]

    constant, linear, cosine = (rates(schedule=name) for name in ("constant", "linear", "cosine"))
    assert constant == [0.01] * 10
    assert linear == sorted(set(linear), reverse=True)
    assert cosine == sorted(set(cosine), reverse=True)
    assert linear[0] == cosine[0] == 0.01
    assert linear != cosine
    assert linear[3] - linear[4] == pytest.approx(linear[6] - linear[7])
    warm = rates(warmup_steps=4, learning_rate=0.02)
    assert warm[:4] == sorted(set(warm[:4]))
    assert max(warm) == 0.02
    assert warm[0] < 0.02


def test_weight_decay_shrinks_weights_and_spares_norms(tiny: Models, tmp_path: Path) -> None:
    norms = []
    name = "bert.encoder.layer.0.output"
    for decay in (0.0, 20.0):
        run(classification(tiny, tmp_path, training={"weight_decay": decay, "learning_rate": 0.005}))
        tensors = weights(tmp_path)
        norms.append(tensors[f"{name}.dense.weight"].norm())
        assert tensors[f"{name}.LayerNorm.weight"].min() > 0.9
    assert norms[1] < 0.9 * norms[0]


def test_the_optimiser_decides_what_is_kept_of_each_parameter(tiny: Models, tmp_path: Path) -> None:
    kept, results = {}, []
    for name in ("adamw", "adamw-8bit", "sgd", "adafactor"):
        run(classification(tiny, tmp_path, training={"optimizer": name, "max_steps": 2}))
        (last,) = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))[-1:]
        kept[name] = {tensor.rsplit(":", 1)[1] for tensor in load_file(last / "optimizer.safetensors")}
        results.append(weights(tmp_path)["bert.encoder.layer.0.output.dense.weight"])
    assert kept["adamw"] == {"step", "exp_avg", "exp_avg_sq"}
    assert {"step", "state1", "state2"} <= kept["adamw-8bit"]
    assert kept["sgd"] == set()
    assert {"row_var", "col_var"} <= kept["adafactor"]
    assert not any(one.equal(other) for one, other in itertools.combinations((results[0], *results[2:]), 2))


def test_a_clipped_gradient_moves_less(tiny: Models, tmp_path: Path) -> None:
    job = classification(tiny, tmp_path, training={"weight_decay": 0.0})
    changes = []
    for limit in (1e-12, 1e9, None):
        job["training"]["max_grad_norm"] = limit
        report, watch = run(job)
        assert all(step.grad_norm is not None and step.grad_norm > 1e-6 for step in watch.steps)
        changes.append(abs(report.student_scores.cross_entropy - report.student_before.cross_entropy))
    assert changes[0] < 0.01 * changes[1]
    assert changes[1] == changes[2], "null clips nothing"


def test_autocast_computes_in_bf16_and_keeps_the_weights_in_fp32(tiny: Models, tmp_path: Path) -> None:
    job = language(tiny, tmp_path, training={"max_steps": 2})
    exact = run(job)[0]
    job["training"]["mixed_precision"] = "bf16"
    rounded = run(job)[0]
    assert rounded.initial_loss != exact.initial_loss
    assert rounded.initial_loss == pytest.approx(exact.initial_loss, rel=0.01)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


@pytest.mark.parametrize("kind", [classification, language])
def test_losses_are_told_in_32_bits_under_autocast(kind: Any, tiny: Models, tmp_path: Path) -> None:
    job = kind(tiny, tmp_path, training={"max_steps": 2, "mixed_precision": "bf16", "log_every": 1})
    for step in run(job)[1].steps:
        values = list(step.losses.values())
        assert any(value != float(torch.tensor(value).bfloat16()) for value in values)
        assert step.loss == pytest.approx(sum(values) / len(values), rel=1e-6)  # alpha is a half


def test_gradient_checkpointing_computes_layers_twice(tiny: Models, tmp_path: Path) -> None:
    job = classification(tiny, tmp_path, training={"max_steps": 2})
    losses, counts = [], []
    for switch in (False, True):
        job["training"]["gradient_checkpointing"] = switch
        with calls_of("BertIntermediate", training=True) as calls:
            losses.append([step.loss for step in run(job)[1].steps])
        counts.append(len(calls))
    assert counts == [2, 4]
    assert losses[0] == losses[1]


def test_grouping_by_length_pads_less(tiny: Models, tmp_path: Path) -> None:
    job = classification(tiny, tmp_path, training={"batch_size": 4}, dataset={"max_length": 32})
    sizes = []
    for switch in (False, True):
        job["training"]["group_by_length"] = switch
        with calls_of("Embedding", training=True) as calls:
            report, _ = run(job)
        assert (report.steps, sum(shape[0] for shape in calls)) == (9, 36)
        sizes.append(sum(rows * width for rows, width in calls))
    assert sizes[1] < sizes[0]


def test_workers_are_processes_and_change_nothing(tiny: Models, tmp_path: Path) -> None:
    job = classification(tiny, tmp_path)
    losses = []
    for workers in (0, 2):
        job["training"]["dataloader_workers"] = workers
        _, watch = run(job)
        assert watch.workers == workers
        losses.append([step.loss for step in watch.steps])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("every", "lines"), [(1, [1, 2, 3, 4, 5]), (2, [1, 2, 4, 5]), (10, [1, 5])])
def test_log_every_sets_the_lines_of_the_metrics(tiny: Models, tmp_path: Path, every: int, lines: list[int]) -> None:
    run(classification(tiny, tmp_path, training={"log_every": every}))
    metrics = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in metrics if "loss" in line] == lines


def test_trackers_get_the_metrics(tiny: Models, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = {"trackers": ["tensorboard"], "max_steps": 2, "eval_every": 1, "baseline": True, "log_every": 1}
    report, watch = run(classification(tiny, tmp_path, training=training))
    series: dict[str, list[tuple[int, float]]] = {}
    for file in (tmp_path / "out").rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file)).Reload()
        series |= {
            tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
        }
    assert [step for step, _ in series["student/loss"]] == [step for step, _ in series["baseline/loss"]] == [1, 2]
    assert [loss for _, loss in series["student/loss"]] == pytest.approx([step.loss for step in watch.steps[:2]])
    assert series["student/evaluation/accuracy"][-1] == (2, pytest.approx(report.student_scores.accuracy))


@pytest.mark.parametrize(("every", "steps"), [(None, [5]), (2, [2, 4, 5]), (5, [5])])
def test_eval_every_sets_the_evaluations(tiny: Models, tmp_path: Path, every: int | None, steps: list[int]) -> None:
    assert list(run(classification(tiny, tmp_path, training={"eval_every": every}))[1].evaluations) == steps


def test_the_selected_weights_are_the_last_or_the_best(tiny: Models, tmp_path: Path) -> None:
    training = {"eval_every": 1, "epochs": 2, "learning_rate": 1.0, "schedule": "constant"}
    for select in ("last", "best"):
        report, watch = run(language(tiny, tmp_path, training={**training, "select": select}))
        best = min(watch.evaluations, key=lambda step: watch.evaluations[step].cross_entropy)
        assert best < report.steps == 10, "a rate so high makes it worse"
        assert report.selected_step == (best if select == "best" else 10)
        assert report.student_scores == watch.evaluations[report.selected_step]


def test_training_stops_when_patience_ends(tiny: Models, tmp_path: Path) -> None:
    def steps(patience: int, min_delta: float) -> int:
        early = {"patience": patience, "min_delta": min_delta}
        return run(language(tiny, tmp_path, training={"eval_every": 1, "early_stopping": early}))[0].steps

    assert steps(1, 0.0) == 5, "it improves every time"
    assert steps(1, 100.0) == 2
    assert steps(2, 100.0) == 3


def test_the_seed_decides_the_bits(tiny: Models, tmp_path: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        run(classification(tiny, tmp_path, training={"seed": seed}))
        made.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("every", "keep", "saved", "kept"),
    [(2, 2, [2, 4, 5], [4, 5]), (1, 3, [1, 2, 3, 4, 5], [3, 4, 5]), (None, 1, [1, 2, 3, 4, 5], [5])],
)
def test_checkpoints_are_as_often_and_as_many_as_asked(
    tiny: Models, tmp_path: Path, every: int | None, keep: int, saved: list[int], kept: list[int]
) -> None:
    _, watch = run(classification(tiny, tmp_path, output={"checkpoint_every": every, "keep": keep}))
    assert watch.checkpoints == saved
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == [f"step-{step:08}" for step in kept]

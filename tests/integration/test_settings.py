"""Every setting changes what happens: a table names the test that shows it. Here are those of training and output."""

import ast
import itertools
import json
import math
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from entrenar_core import Callback, RunReport, Scores, distill, parse_config
from entrenar_core.config import DistillationConfig
from entrenar_core.errors import EntrenarError
from entrenar_core.losses import DIVERGENCES
from entrenar_core.training.callbacks import StepMetrics
from entrenar_core.training.distillation import plan
from hub_server import HubServer
from tiny_jobs import Models, build_models, classification, language, write_rows
from tiny_models import tiny_bert

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent.parent
HERE = "integration/test_settings.py"
RESULT, BAD = "integration/test_result.py", "integration/test_bad_input.py"
SOURCES, LOADING = "core/test_data_sources.py", "core/test_models_loading.py"
STUDENT, TOKENIZING = "core/test_models_student.py", "core/test_data_tokenizing.py"

SHOWN_BY = {
    "task": f"{HERE}::test_the_task_decides_what_is_learnt",
    "teacher.model_id": f"{RESULT}::test_the_card_states_the_facts",
    "teacher.revision": f"{HERE}::test_a_revision_chooses_the_weights",
    "teacher.format": f"{HERE}::test_format_and_files_choose_the_weights",
    "teacher.files": f"{HERE}::test_format_and_files_choose_the_weights",
    "teacher.allow_pickle": f"{BAD}::test_pickles_are_not_read_unless_allowed",
    "teacher.trust_remote_code": f"{LOADING}::test_code_of_a_model_runs_only_when_trusted",
    "teacher.dtype": f"{HERE}::test_the_teacher_is_held_in_its_dtype",
    "teacher.finetune.method": f"{RESULT}::test_a_fitted_teacher_knows_the_data_and_is_kept",
    "teacher.finetune.l2": f"{HERE}::test_how_a_teacher_is_fitted_changes_it",
    "teacher.finetune.epochs": f"{HERE}::test_how_a_teacher_is_fitted_changes_it",
    "teacher.finetune.learning_rate": f"{HERE}::test_how_a_teacher_is_fitted_changes_it",
    "teacher.finetune.batch_size": f"{HERE}::test_how_a_teacher_is_fitted_changes_it",
    "student.model_id": f"{STUDENT}::test_a_referenced_student_is_loaded",
    "student.revision": f"{HERE}::test_a_revision_chooses_the_weights",
    "student.format": f"{HERE}::test_format_and_files_choose_the_weights",
    "student.files": f"{HERE}::test_format_and_files_choose_the_weights",
    "student.allow_pickle": f"{HERE}::test_format_and_files_choose_the_weights",
    "student.trust_remote_code": f"{STUDENT}::test_a_referenced_student_runs_its_code_only_when_trusted",
    "student.init_from.teacher_layers": f"{STUDENT}::test_copied_layers_have_the_bits_of_the_teachers",
    "student.architecture": f"{STUDENT}::test_sizes_build_any_family",
    "student.hidden_size": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.num_layers": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.num_heads": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.num_kv_heads": f"{STUDENT}::test_grouped_heads_are_as_many_as_given",
    "student.intermediate_size": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.dropout": f"{STUDENT}::test_the_dropout_setting_changes_the_student_and_none_keeps_its_own",
    "distillation.temperature": f"{HERE}::test_the_temperature_changes_the_soft_loss_alone",
    "distillation.alpha": f"{HERE}::test_alpha_weighs_the_two_losses",
    "distillation.divergence": f"{HERE}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.top_k": f"{HERE}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.top_k_tail": f"{HERE}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.entropy_threshold": f"{HERE}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.label_smoothing": f"{HERE}::test_smoothing_changes_the_hard_loss_alone",
    "dataset.source": f"{SOURCES}::test_the_built_in_docstrings_are_split_without_a_text_on_both_sides",
    "dataset.name": f"{SOURCES}::test_reports_call_the_data_by_name_or_file",
    "dataset.subset": "core/test_data_streams.py::test_a_data_set_of_the_hub_is_read_by_subset_split_and_revision",
    "dataset.revision": "core/test_data_streams.py::test_a_data_set_of_the_hub_is_read_by_subset_split_and_revision",
    "dataset.path": f"{SOURCES}::test_every_kind_of_file_gives_the_same_rows",
    "dataset.split": f"{SOURCES}::test_split_and_eval_split_choose_files_by_their_names",
    "dataset.eval_split": f"{SOURCES}::test_split_and_eval_split_choose_files_by_their_names",
    "dataset.eval_fraction": f"{SOURCES}::test_eval_fraction_eval_rows_and_max_rows_set_how_many",
    "dataset.eval_rows": f"{SOURCES}::test_eval_fraction_eval_rows_and_max_rows_set_how_many",
    "dataset.max_rows": f"{SOURCES}::test_eval_fraction_eval_rows_and_max_rows_set_how_many",
    "dataset.labelled_rows": f"{SOURCES}::test_labelled_rows_keeps_so_many_labels_and_every_class",
    "dataset.streaming": "core/test_data_streams.py::test_the_first_rows_are_for_evaluation_and_training_skips_them",
    "dataset.text_column": f"{SOURCES}::test_columns_are_read_under_the_names_that_settings_give",
    "dataset.label_column": f"{SOURCES}::test_columns_are_read_under_the_names_that_settings_give",
    "dataset.prompt_column": f"{TOKENIZING}::test_of_a_prompt_with_its_completion_the_completion_is_learnt",
    "dataset.completion_column": f"{TOKENIZING}::test_of_a_prompt_with_its_completion_the_completion_is_learnt",
    "dataset.messages_column": f"{TOKENIZING}::test_only_what_the_assistant_says_in_a_chat_is_learnt",
    "dataset.max_length": f"{TOKENIZING}::test_what_is_longer_than_a_limit_is_cut_and_has_no_end",
    "dataset.num_proc": f"{TOKENIZING}::test_num_proc_is_how_many_processes_tokenise",
    "training.epochs": f"{HERE}::test_rows_epochs_and_batches_make_the_steps",
    "training.max_steps": f"{HERE}::test_rows_epochs_and_batches_make_the_steps",
    "training.batch_size": f"{HERE}::test_rows_epochs_and_batches_make_the_steps",
    "training.gradient_accumulation": f"{HERE}::test_rows_epochs_and_batches_make_the_steps",
    "training.eval_batch_size": f"{HERE}::test_evaluation_has_batches_of_its_own",
    "training.learning_rate": f"{HERE}::test_the_learning_rate_follows_its_schedule",
    "training.schedule": f"{HERE}::test_the_learning_rate_follows_its_schedule",
    "training.warmup_steps": f"{HERE}::test_the_learning_rate_follows_its_schedule",
    "training.weight_decay": f"{HERE}::test_weight_decay_shrinks_weights_and_spares_norms",
    "training.max_grad_norm": f"{HERE}::test_a_clipped_gradient_moves_less",
    "training.mixed_precision": f"{HERE}::test_autocast_computes_in_bf16_and_keeps_the_weights_in_fp32",
    "training.gradient_checkpointing": f"{HERE}::test_gradient_checkpointing_computes_layers_twice",
    "training.group_by_length": f"{HERE}::test_grouping_by_length_pads_less",
    "training.dataloader_workers": f"{HERE}::test_workers_are_processes_and_change_nothing",
    "training.log_every": f"{HERE}::test_log_every_sets_the_lines_of_the_metrics",
    "training.eval_every": f"{HERE}::test_eval_every_sets_the_evaluations",
    "training.select": f"{HERE}::test_the_selected_weights_are_the_last_or_the_best",
    "training.early_stopping.patience": f"{HERE}::test_training_stops_when_patience_ends",
    "training.early_stopping.min_delta": f"{HERE}::test_training_stops_when_patience_ends",
    "training.trackers": f"{HERE}::test_trackers_get_the_metrics",
    "training.seed": f"{HERE}::test_the_seed_decides_the_bits",
    "training.baseline": f"{RESULT}::test_a_teacher_that_is_no_better_than_the_student_alone_is_told",
    "output.dir": f"{RESULT}::test_the_files_agree_with_each_other",
    "output.formats": f"{RESULT}::test_the_files_agree_with_each_other",
    "output.checkpoint_every": f"{HERE}::test_checkpoints_are_as_often_and_as_many_as_asked",
    "output.keep": f"{HERE}::test_checkpoints_are_as_often_and_as_many_as_asked",
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings that hold a value."""
    for name, info in model.model_fields.items():
        sections = list(sections_of(info.annotation))
        if not sections:
            yield prefix + name
        for section in sections:
            yield from leaves(section, f"{prefix}{name}.")


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_of(part)


def test_every_setting_is_shown_by_a_test_that_exists() -> None:
    assert set(leaves(DistillationConfig)) == set(SHOWN_BY)
    for setting, test in SHOWN_BY.items():
        file, name = test.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}, f"{setting}: {test}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path / "home"))


@dataclass
class Watch(Callback):
    """What happened in a run."""

    steps: list[StepMetrics] = field(default_factory=list)
    evaluations: dict[int, Scores] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)
    workers: int = 0

    def on_step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)
        self.workers = max(self.workers, len(multiprocessing.active_children()))

    def on_evaluate(self, step: int, scores: Scores) -> None:
        self.evaluations[step] = scores

    def on_checkpoint(self, step: int, path: str) -> None:
        assert Path(path).name == f"step-{step:08}"
        self.checkpoints.append(step)


def run(job: dict[str, Any]) -> tuple[RunReport, Watch]:
    watch = Watch()
    return distill(parse_config(job), force=True, callbacks=[watch]), watch


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "out" / "model.safetensors")


@contextmanager
def calls_of(kind: str, *, training: bool) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what modules of a class are given while open, in training or in evaluation.

    Of `Embedding`, that of words alone counts: it is the one that knows padding.
    """
    seen: list[tuple[int, ...]] = []

    def look(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        words = not isinstance(module, torch.nn.Embedding) or module.padding_idx is not None
        if type(module).__name__ == kind and module.training is training and words:
            seen.append(tuple(args[0].shape))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


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
    models: Models, tmp_path: Path, training: dict[str, Any], steps: int, examples: int
) -> None:
    report, watch = run(classification(models, tmp_path, training=training))
    assert report.steps == len(watch.steps) == steps
    assert watch.steps[-1].examples == examples


def test_evaluation_has_batches_of_its_own(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, dataset={"eval_fraction": 0.5}, training={"max_steps": 1})
    scores, largest = [], []
    for size in (None, 3):
        job["training"]["eval_batch_size"] = size
        with calls_of("Embedding", training=False) as calls:
            scores.append(run(job)[0].student_scores)
        largest.append(max(shape[0] for shape in calls))
    assert largest == [8, 3]
    assert scores[0].cross_entropy == pytest.approx(scores[1].cross_entropy, rel=1e-5)


def test_the_learning_rate_follows_its_schedule(models: Models, tmp_path: Path) -> None:
    def rates(**training: Any) -> list[float]:
        _, watch = run(classification(models, tmp_path, training={"epochs": 2, **training}))
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


def test_weight_decay_shrinks_weights_and_spares_norms(models: Models, tmp_path: Path) -> None:
    norms = []
    name = "bert.encoder.layer.0.output"
    for decay in (0.0, 20.0):
        run(classification(models, tmp_path, training={"weight_decay": decay, "learning_rate": 0.005}))
        tensors = weights(tmp_path)
        norms.append(tensors[f"{name}.dense.weight"].norm())
        assert tensors[f"{name}.LayerNorm.weight"].min() > 0.9
    assert norms[1] < 0.9 * norms[0]


def test_a_clipped_gradient_moves_less(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"weight_decay": 0.0})
    changes = []
    for limit in (1e-12, 1e9, None):
        job["training"]["max_grad_norm"] = limit
        report, watch = run(job)
        assert all(step.grad_norm is not None and step.grad_norm > 1e-6 for step in watch.steps)
        changes.append(abs(report.student_scores.cross_entropy - report.student_before.cross_entropy))
    assert changes[0] < 0.01 * changes[1]
    assert changes[1] == changes[2], "null clips nothing"


def test_autocast_computes_in_bf16_and_keeps_the_weights_in_fp32(models: Models, tmp_path: Path) -> None:
    job = language(models, tmp_path, training={"max_steps": 2})
    exact = run(job)[0]
    job["training"]["mixed_precision"] = "bf16"
    rounded = run(job)[0]
    assert rounded.initial_loss != exact.initial_loss
    assert rounded.initial_loss == pytest.approx(exact.initial_loss, rel=0.01)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_gradient_checkpointing_computes_layers_twice(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"max_steps": 2})
    losses, counts = [], []
    for switch in (False, True):
        job["training"]["gradient_checkpointing"] = switch
        with calls_of("BertIntermediate", training=True) as calls:
            losses.append([step.loss for step in run(job)[1].steps])
        counts.append(len(calls))
    assert counts == [2, 4]
    assert losses[0] == losses[1]


def test_grouping_by_length_pads_less(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"batch_size": 4}, dataset={"max_length": 32})
    sizes = []
    for switch in (False, True):
        job["training"]["group_by_length"] = switch
        with calls_of("Embedding", training=True) as calls:
            report, _ = run(job)
        assert (report.steps, sum(shape[0] for shape in calls)) == (9, 36)
        sizes.append(sum(rows * width for rows, width in calls))
    assert sizes[1] < sizes[0]


def test_workers_are_processes_and_change_nothing(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path)
    losses = []
    for workers in (0, 2):
        job["training"]["dataloader_workers"] = workers
        _, watch = run(job)
        assert watch.workers == workers
        losses.append([step.loss for step in watch.steps])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("every", "lines"), [(1, [1, 2, 3, 4, 5]), (2, [1, 2, 4, 5]), (10, [1, 5])])
def test_log_every_sets_the_lines_of_the_metrics(models: Models, tmp_path: Path, every: int, lines: list[int]) -> None:
    run(classification(models, tmp_path, training={"log_every": every}))
    metrics = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in metrics if "loss" in line] == lines


def test_trackers_get_the_metrics(models: Models, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = {"trackers": ["tensorboard"], "max_steps": 2, "eval_every": 1, "baseline": True, "log_every": 1}
    report, watch = run(classification(models, tmp_path, training=training))
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
def test_eval_every_sets_the_evaluations(models: Models, tmp_path: Path, every: int | None, steps: list[int]) -> None:
    assert list(run(classification(models, tmp_path, training={"eval_every": every}))[1].evaluations) == steps


def test_the_selected_weights_are_the_last_or_the_best(models: Models, tmp_path: Path) -> None:
    training = {"eval_every": 1, "epochs": 2, "learning_rate": 1.0, "schedule": "constant"}
    for select in ("last", "best"):
        report, watch = run(language(models, tmp_path, training={**training, "select": select}))
        best = min(watch.evaluations, key=lambda step: watch.evaluations[step].cross_entropy)
        assert best < report.steps == 10, "a rate so high makes it worse"
        assert report.selected_step == (best if select == "best" else 10)
        assert report.student_scores == watch.evaluations[report.selected_step]


def test_training_stops_when_patience_ends(models: Models, tmp_path: Path) -> None:
    def steps(patience: int, min_delta: float) -> int:
        early = {"patience": patience, "min_delta": min_delta}
        return run(language(models, tmp_path, training={"eval_every": 1, "early_stopping": early}))[0].steps

    assert steps(1, 0.0) == 5, "it improves every time"
    assert steps(1, 100.0) == 2
    assert steps(2, 100.0) == 3


def test_the_seed_decides_the_bits(models: Models, tmp_path: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        run(classification(models, tmp_path, training={"seed": seed}))
        made.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


def test_the_temperature_changes_the_soft_loss_alone(models: Models, tmp_path: Path) -> None:
    first = [
        run(classification(models, tmp_path, distillation={"temperature": value}, training={"max_steps": 1}))[1].steps[
            0
        ]
        for value in (1.0, 8.0)
    ]
    assert first[0].soft != first[1].soft
    assert first[0].hard == first[1].hard


def test_what_is_compared_changes_the_soft_loss_alone(models: Models, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        *({"divergence": name} for name in DIVERGENCES),
        {"top_k": 3},
        {"top_k": 3, "top_k_tail": False},
        {"entropy_threshold": 100.0},
    ]
    first = [run(language(models, tmp_path, distillation=way, training={"max_steps": 1}))[1].steps[0] for way in ways]
    assert len({step.soft for step in first}) == len(ways)
    assert len({step.hard for step in first}) == 1
    assert all(step.soft is not None and math.isfinite(step.soft) for step in first)


def test_a_plan_tells_the_whole_loss(models: Models, tmp_path: Path) -> None:
    way = {"divergence": "jsd", "temperature": 3.0, "alpha": 0.75, "label_smoothing": 0.1, "entropy_threshold": 0.2}
    selected = {"top_k": 7, "top_k_tail": False}
    (tmp_path / "plain").mkdir()
    plain, whole = (
        plan(parse_config(language(models, folder, distillation=chosen))).loss
        for folder, chosen in ((tmp_path / "plain", {}), (tmp_path, way | selected))
    )
    assert plain == "0.5 × forward_kl(T=2) + 0.5 × CE"
    assert whole == "0.75 × jsd(T=3, top 7 without tail, entropy > 0.2) + 0.25 × CE(smoothing 0.1)"


def test_smoothing_changes_the_hard_loss_alone(models: Models, tmp_path: Path) -> None:
    first = [
        run(language(models, tmp_path, distillation={"label_smoothing": part}, training={"max_steps": 1}))[1].steps[0]
        for part in (0.0, 0.3)
    ]
    assert first[0].soft == first[1].soft
    assert first[0].hard != first[1].hard


def test_alpha_weighs_the_two_losses(models: Models, tmp_path: Path) -> None:
    for alpha in (0.0, 0.25, 1.0):
        job = classification(models, tmp_path, distillation={"alpha": alpha}, training={"max_steps": 1})
        (step,) = run(job)[1].steps
        assert (step.soft is None, step.hard is None) == (alpha == 0, alpha == 1)
        assert step.loss == pytest.approx(alpha * (step.soft or 0) + (1 - alpha) * (step.hard or 0))


@pytest.mark.parametrize(
    ("every", "keep", "saved", "kept"),
    [(2, 2, [2, 4, 5], [4, 5]), (1, 3, [1, 2, 3, 4, 5], [3, 4, 5]), (None, 1, [1, 2, 3, 4, 5], [5])],
)
def test_checkpoints_are_as_often_and_as_many_as_asked(
    models: Models, tmp_path: Path, every: int | None, keep: int, saved: list[int], kept: list[int]
) -> None:
    _, watch = run(classification(models, tmp_path, output={"checkpoint_every": every, "keep": keep}))
    assert watch.checkpoints == saved
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == [f"step-{step:08}" for step in kept]


def test_the_task_decides_what_is_learnt(models: Models, tmp_path: Path) -> None:
    job = language(models, tmp_path, training={"max_steps": 1})
    del job["task"]
    assert run(job)[0].task == "causal-lm"
    job["teacher"] = {**job["teacher"], "finetune": {"method": "probe"}}
    with pytest.raises(EntrenarError, match="causal-lm"):
        run(job)
    report, _ = run(job | {"task": "sequence-classification", "student": {"model_id": str(models.small_llama)}})
    assert report.task == "sequence-classification"


def test_the_teacher_is_held_in_its_dtype(models: Models, tmp_path: Path) -> None:
    job = language(models, tmp_path, training={"max_steps": 1})
    exact = run(job)[0].teacher_scores.cross_entropy
    job["teacher"]["dtype"] = "bfloat16"
    rounded = run(job)[0].teacher_scores.cross_entropy
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    "pair",
    [
        ({"method": "probe", "l2": 0.01}, {"method": "probe", "l2": 10.0}),
        ({"method": "full", "epochs": 1}, {"method": "full", "epochs": 2}),
        ({"method": "full", "learning_rate": 1e-3}, {"method": "full", "learning_rate": 1e-2}),
        ({"method": "full", "batch_size": 4}, {"method": "full", "batch_size": 32}),
    ],
)
def test_how_a_teacher_is_fitted_changes_it(models: Models, tmp_path: Path, pair: tuple[dict[str, Any], ...]) -> None:
    scores = []
    for finetune in pair:
        job = classification(models, tmp_path, teacher={"finetune": finetune}, training={"max_steps": 1})
        scores.append(run(job)[0].teacher_scores.cross_entropy)
    assert scores[0] != scores[1]


def job_with(models: Models, folder: Path, part: str, source: dict[str, Any]) -> dict[str, Any]:
    """A job whose teacher or student comes from a source."""
    job = classification(models, folder, training={"max_steps": 1})
    return job | {part: source}


def score(report: RunReport, part: str) -> float:
    """What tells which weights a part had."""
    return (report.teacher_scores if part == "teacher" else report.student_before).cross_entropy


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_format_and_files_choose_the_weights(models: Models, tmp_path: Path, part: str) -> None:
    from safetensors.torch import load_file

    folder = tiny_bert(tmp_path / "both", num_labels=2)
    write_rows(tmp_path / "rows.jsonl")
    other = tiny_bert(tmp_path / "other", num_labels=2, seed=9)
    (folder / "other.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    third = tiny_bert(tmp_path / "third", num_labels=2, seed=10)
    torch.save(load_file(third / "model.safetensors"), folder / "pytorch_model.bin")
    sources: list[dict[str, Any]] = [{}, {"files": ["other.safetensors"]}, {"format": "pytorch", "allow_pickle": True}]
    found = [score(run(job_with(models, tmp_path, part, {"model_id": str(folder), **s}))[0], part) for s in sources]
    plain = [score(run(job_with(models, tmp_path, part, {"model_id": str(f)}))[0], part) for f in (other, third)]
    assert found[1:] == plain
    assert all(one != two for one, two in itertools.combinations(found, 2))
    with pytest.raises(EntrenarError, match="pickle"):
        run(job_with(models, tmp_path, part, {"model_id": str(folder), "format": "pytorch"}))


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_a_revision_chooses_the_weights(hub: HubServer, models: Models, tmp_path: Path, part: str) -> None:
    old = tiny_bert(tmp_path / "old", num_labels=2, seed=9)
    repository = hub.add("org/bert", models.classifier)
    repository.commit({path.name: path.read_bytes() for path in old.iterdir()}, revision="old")
    found = [
        score(run(job_with(models, tmp_path, part, {"model_id": "org/bert", **choice}))[0], part)
        for choice in ({}, {"revision": "old"})
    ]
    assert found[0] != found[1]

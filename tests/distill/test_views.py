"""What a person reads of a report: every number of it, in the words and units that belong to it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from entrenar_common.plots import Plot
from entrenar_common.tables import Table
from entrenar_core.reports import ModelFacts, Plan, RunReport, Scores
from entrenar_distill.reports import Check, ValidationReport
from entrenar_distill.views import VIEWS, plan, run_report, validation

CLASSIFIER = Scores(examples=200, targets=200, cross_entropy=1.0, accuracy=0.5, agreement=0.75)
LANGUAGE = Scores(examples=9, targets=900, cross_entropy=2.0, accuracy=0.3, perplexity=7.389, kl=0.1234)


def report(folder: Path, **changes: Any) -> RunReport:
    values: dict[str, Any] = {
        "task": "sequence-classification",
        "output_dir": folder,
        "dataset": "tickets",
        "train_rows": 1800,
        "labelled_rows": None,
        "eval_rows": 200,
        "seed": 7,
        "steps": 1234,
        "selected_step": 1000,
        "initial_loss": 2.34567,
        "final_loss": 0.12345,
        "teacher": ModelFacts("org/large", 22_700_000, 90_900_000),
        "student": ModelFacts("org/small", 4_400_000, 17_600_000),
        "teacher_scores": Scores(200, 200, 0.5, 0.8),
        "student_before": Scores(200, 200, 2.0, 0.1, agreement=0.2),
        "student_scores": CLASSIFIER,
        "baseline_scores": None,
        "majority_accuracy": 0.15,
        "retention": 0.625,
        "perplexity_ratio": None,
        "train_s": 65.0,
        "examples_per_s": 1096.4,
        "files": ("README.md", "model.safetensors"),
    }
    return RunReport(**{**values, **changes})


def tables(shown: RunReport) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], Table]:
    """Rows of scores by model, facts by name, and the first table."""
    scores, facts, *_ = run_report(shown)
    assert isinstance(scores, Table)
    assert isinstance(facts, Table)
    assert (scores.title, facts.title) == ("Scores", "Result")
    return {row[0]: row[1:] for row in scores.rows}, {row[0]: row[1] for row in facts.rows}, scores


def test_a_classifier_is_shown_by_accuracy_beside_the_majority(tmp_path: Path) -> None:
    scores, facts, table = tables(report(tmp_path))
    assert list(table.columns) == ["", "accuracy", "agrees with teacher"]
    assert list(scores) == ["teacher", "student, distilled", "student, before training", "majority class"]
    assert scores == {
        "teacher": ("80.0 %", "–"),
        "student, distilled": ("50.0 %", "75.0 %"),
        "student, before training": ("10.0 %", "20.0 %"),
        "majority class": ("15.0 %", "–"),
    }
    assert table.notes == ("on 200 held-out rows of tickets, seed 7",)
    assert facts == {
        "Retention": "62.5 % of the teacher's accuracy",
        "Teacher": "org/large, 22.7M parameters, 90.9 MB on disk",
        "Student": "org/small, 4.4M parameters, 17.6 MB on disk",
        "Data": "1,800 training rows",
        "Steps": "1,234, the weights are those of step 1,000",
        "Loss": "2.3457 → 0.1235",
        "Speed": "1,096 examples/s, 1m 5s of training",
        "Files": f"{tmp_path}: README.md, model.safetensors",
    }


def test_a_language_model_is_shown_by_perplexity(tmp_path: Path) -> None:
    before = dataclasses.replace(LANGUAGE, perplexity=1000.0, kl=None)
    shown = report(
        tmp_path, task="causal-lm", teacher_scores=dataclasses.replace(LANGUAGE, kl=None), student_scores=LANGUAGE,
        student_before=before, majority_accuracy=None, retention=None, perplexity_ratio=1.5,
    )  # fmt: skip
    scores, facts, table = tables(shown)
    assert list(table.columns) == ["", "perplexity", "KL to teacher"]
    assert scores == {
        "teacher": ("7.39", "–"),
        "student, distilled": ("7.39", "0.123"),
        "student, before training": ("1000.00", "–"),
    }
    assert facts["Perplexity"] == "1.50 × the teacher's"
    assert "Retention" not in facts


def test_huge_and_slow_numbers_keep_their_few_digits(tmp_path: Path) -> None:
    far = dataclasses.replace(LANGUAGE, perplexity=2.5349e29)
    shown = report(tmp_path, task="causal-lm", student_scores=far, perplexity_ratio=3.4e28, examples_per_s=0.4321)
    scores, facts, _ = tables(shown)
    assert scores["student, distilled"] == ("2.53e+29", "0.123")
    assert facts["Perplexity"] == "3.4e+28 × the teacher's"
    assert facts["Speed"] == "0.4 examples/s, 1m 5s of training"
    assert tables(report(tmp_path, examples_per_s=9.96))[1]["Speed"].startswith("10 examples/s")


def test_the_rival_without_a_teacher_stands_below_the_student(tmp_path: Path) -> None:
    scores, facts, _ = tables(report(tmp_path, baseline_scores=Scores(200, 200, 1.0, 0.4), labelled_rows=800))
    assert list(scores)[1:3] == ["student, distilled", "student, without a teacher"]
    assert scores["student, without a teacher"] == ("40.0 %", "–")
    assert facts["Data"] == "1,800 training rows, 800 of them labelled"


def test_one_row_is_not_rows(tmp_path: Path) -> None:
    _, facts, table = tables(report(tmp_path, eval_rows=1, train_rows=1))
    assert table.notes == ("on 1 held-out row of tickets, seed 7",)
    assert facts["Data"] == "1 training row"


@pytest.mark.parametrize(("losses", "plotted"), [([3.0, 2.0], True), ([3.0], False), ([], False)])
def test_the_loss_is_drawn_once_there_are_two_points(tmp_path: Path, losses: list[float], plotted: bool) -> None:
    lines: list[dict[str, Any]] = [{"step": 0, "evaluation": {"accuracy": 0.1}}]
    lines += [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    blocks = run_report(report(tmp_path))[2:]
    assert len(blocks) == plotted
    for block in blocks:
        assert isinstance(block, Plot)
        assert block.series == {"loss": [(1, 3.0), (2, 2.0)]}
        assert (block.title, block.x_label, block.y_label) == ("Loss of the student", "optimiser step", "loss")


@pytest.mark.parametrize(("step", "begins"), [(None, "the beginning"), (1200, "step 1,200")])
def test_a_plan_says_what_would_be_done(tmp_path: Path, step: int | None, begins: str) -> None:
    shown = Plan(
        "causal-lm", "org/large", "llama, 30 layers of 576", "6 layers of the teacher", 49_600_000, "corpus", 7216,
        100, 32, 64, 2500, "0.9 × jsd(T=1) + 0.1 × CE", tmp_path, step,
    )  # fmt: skip
    table = plan(shown)
    assert table.title == "Plan"
    assert {row[0]: row[1] for row in table.rows} == {
        "Task": "causal-lm",
        "Teacher": "org/large (llama, 30 layers of 576)",
        "Student": "6 layers of the teacher, 49.6M parameters",
        "Data": "corpus: 7,216 training rows, 100 of them labelled, 32 for evaluation",
        "Loss": "0.9 × jsd(T=1) + 0.1 × CE",
        "Steps": f"2,500 of 64 examples, from {begins}",
        "Output": str(tmp_path),
    }
    assert table.notes == ("nothing was trained or written",)


def test_a_validation_marks_what_could_not_be_looked_at() -> None:
    checks = (Check("settings", "ok", "all known"), Check("teacher", "skipped", "the Hub is down"))
    table = validation(ValidationReport("distill.yaml", checks))
    assert table.title == "distill.yaml is valid"
    assert table.rows == (("settings", "✓ ok", "all known"), ("teacher", "! skipped", "the Hub is down"))
    assert list(table.columns) == ["check", "", "detail"]


def test_quiet_prints_the_folder_and_nothing_else(tmp_path: Path) -> None:
    assert list(VIEWS[RunReport].quiet(report(tmp_path))) == [str(tmp_path)]
    assert list(VIEWS[ValidationReport].quiet(ValidationReport("x", ()))) == []


def test_masked_tokens_are_shown_by_cross_entropy_and_without_perplexity(tmp_path: Path) -> None:
    scores = Scores(examples=9, targets=90, cross_entropy=2.0, accuracy=0.3, kl=0.1234, agreement=0.5)
    shown = report(
        tmp_path,
        task="masked-lm",
        student_scores=scores,
        teacher_scores=Scores(9, 90, 1.5, 0.4),
        majority_accuracy=None,
    )
    rows, facts, table = tables(shown)
    assert list(table.columns) == ["", "cross-entropy", "accuracy", "KL to teacher"]
    assert rows["student, distilled"] == ("2.000", "30.0 %", "0.123")
    assert rows["teacher"] == ("1.500", "40.0 %", "–")
    assert "majority class" not in rows
    assert "Perplexity" not in facts


def test_tagged_words_are_shown_by_entities_where_there_are_some(tmp_path: Path) -> None:
    scores = Scores(200, 900, 1.0, 0.9, agreement=0.75, entity_f1=0.55)
    teacher = Scores(200, 900, 0.5, 0.95, entity_f1=0.8)
    rows, facts, table = tables(
        report(tmp_path, task="token-classification", student_scores=scores, teacher_scores=teacher)
    )
    assert list(table.columns) == ["", "accuracy", "entity F1", "agrees with teacher"]
    assert rows["student, distilled"] == ("90.0 %", "55.0 %", "75.0 %")
    assert rows["majority class"] == ("15.0 %", "–", "–")
    assert facts["Retention"] == "62.5 % of the teacher's entity F1"
    rows, facts, table = tables(report(tmp_path, task="token-classification"))
    assert list(table.columns) == ["", "accuracy", "agrees with teacher"]
    assert facts["Retention"] == "62.5 % of the teacher's accuracy"

"""`run`, `validate` and `losses` as a person meets them: all modes of output, flags, and what they import."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from entrenar_core.config import parse_config
from entrenar_core.config.losses import DivergenceName
from entrenar_core.config.teachers import ProbeFinetuning, TeacherConfig
from entrenar_distill.assembly import assemble
from entrenar_distill.validation import validate
from hub_server import HubServer
from tiny_jobs import Models, classification, language, merged, write_config, write_rows

Program = Callable[[Sequence[str] | None], int]
Capture = pytest.CaptureFixture[str]
HEAVY = ("torch", "transformers", "datasets", "huggingface_hub", "accelerate", "matplotlib", "numpy", "safetensors")


@pytest.fixture
def config(models: Models, tmp_path: Path) -> Path:
    return write_config(tmp_path / "distill.yaml", classification(models, tmp_path))


def document(program: Program, capsys: Capture, *argv: object) -> dict[str, Any]:
    capsys.readouterr()
    assert program([*map(str, argv), "--json"]) == 0, capsys.readouterr().err
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_run_keeps_the_promises_of_all_modes(
    program: Program, check_output: Callable[..., Any], config: Path, models: Models
) -> None:
    out = str(config.parent / "out")
    report = check_output(
        program,
        ["run", str(config), "--force"],
        values={
            "task": "sequence-classification",
            "output_dir": out,
            "dataset": "rows.jsonl",
            "train_rows": 36,
            "eval_rows": 4,
            "steps": 5,
            "selected_step": 5,
            "seed": 42,
            "baseline_scores": None,
            "perplexity_ratio": None,
        },
        shows=["Scores", "teacher", "student, distilled", "majority class", "Retention", "36 training rows", out],
        lines=["Steps\t5, the weights are those of step 5"],
        quiet=[out],
        repeatable=False,
    )
    assert report["teacher"]["name"] == str(models.classifier)
    assert report["student_scores"].keys() == report["teacher_scores"].keys()
    assert (Path(out) / "model.safetensors").is_file()


def test_a_run_of_a_language_model_shows_perplexity(
    program: Program, capsys: Capture, models: Models, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "lm.yaml", language(models, tmp_path))
    assert program(["run", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert "× the teacher's" in shown
    assert "majority class" not in shown


def test_validate_keeps_the_promises_of_all_modes(
    program: Program, check_output: Callable[..., Any], config: Path
) -> None:
    report = check_output(
        program,
        ["validate", str(config)],
        values={"config": str(config)},
        shows=["is valid", "✓ ok", "2 layers of 32", "text, label"],
        lines=["teacher\t✓ ok\tbert, 2 layers of 32", "vocabulary\t✓ ok\tidentical, 193 tokens"],
        quiet=[],
    )
    names = ["settings", "teacher", "task", "fit", "vocabulary", "columns", "output"]
    assert [check["name"] for check in report["checks"]] == names
    assert (report["vocabulary"]["verdict"], report["vocabulary"]["length"]) == ("identical", 193)
    assert {check["status"] for check in report["checks"]} == {"ok"}
    assert not (config.parent / "out").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    program: Program, check_output: Callable[..., Any], config: Path
) -> None:
    before = sorted(config.parent.rglob("*"))
    check_output(
        program,
        ["run", str(config), "--dry-run"],
        values={"steps": 5, "train_rows": 36, "eval_rows": 4, "examples_per_step": 8, "resumes_from_step": None},
        shows=["Plan", "0.5 × forward_kl(T=2) + 0.5 × CE", "nothing was trained or written"],
        lines=["Steps\t5 of 8 examples, from the beginning"],
        quiet=[str(config.parent / "out")],
    )
    assert sorted(config.parent.rglob("*")) == before


def test_the_losses_are_those_that_a_configuration_may_choose(
    program: Program, check_output: Callable[..., Any]
) -> None:
    from entrenar_core.losses import DIVERGENCES, LOSSES

    assert set(get_args(DivergenceName)) == set(DIVERGENCES)
    for name, row in LOSSES.items():
        values = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
        read = parse_config(values | {"distillation": {"losses": [{"name": name}]}}).distillation.losses
        assert read is not None
        assert {key: getattr(read[0], key) for key in row.parameters} == row.parameters
    found = check_output(
        program,
        ["losses"],
        values={},
        shows=["Losses", "½ Σ |p − q|", "beta 0.5, normalised false", "any number of them"],
        lines=["reverse_kl\tKL(q ‖ p)\tlogits\t\tGu et al. 2024 (MiniLLM)"],
        quiet=list(LOSSES),
    )
    cka = next(loss for loss in found["losses"] if loss["name"] == "cka")
    assert (cka["family"], cka["scope"], cka["needs"]) == ("hidden", "group", "hidden states")
    assert cka["settings"] == {"weight": 1.0, "layers": "uniform", "pool": "mean", "group_size": 8}


def test_a_design_can_be_pasted_and_run(
    program: Program, check_output: Callable[..., Any], capsys: Capture, models: Models, tmp_path: Path
) -> None:
    report = check_output(
        program,
        ["design", "--teacher", str(models.llama), "--ratio", "1.5"],
        values={"teacher": str(models.llama), "family": "llama", "keep": "balanced", "with_head": True},
        shows=["Students, --keep balanced", "parameters are exact", "student: {init_from: {"],
        quiet=["student: {init_from: {teacher_layers: 1, intermediate_size: 60}}"],
    )
    best = report["proposals"][0]
    job = language(models, tmp_path)
    assert best["ratio"] == report["teacher_parameters"] / best["parameters"]
    job["student"] = best["student"]
    plan = document(program, capsys, "run", write_config(tmp_path / "designed.yaml", job), "--dry-run")
    assert plan["student_parameters"] == best["parameters"]


def test_a_design_needs_only_the_config(
    program: Program, capsys: Capture, hub: HubServer, models: Models, tmp_path: Path
) -> None:
    config = (models.llama / "config.json").read_bytes()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_bytes(config)
    hub.add("org/large", {"model.safetensors": b"x", "config.json": config})
    hub.add("org/bare", {"model.safetensors": b"x"})
    for teacher in (tmp_path / "alone", "org/large"):
        found = document(program, capsys, "design", "--teacher", teacher, "--params", "20k", "--keep", "depth")
        assert found["wanted_parameters"] == 20_000
        assert {one["num_layers"] for one in found["proposals"]} == {2}
    assert hub.fetched() == {"config.json"}
    for teacher, says in (("org/bare", "no config.json"), (tmp_path / "none", "does not exist")):
        assert program(["design", "--teacher", str(teacher), "--ratio", "2"]) == 1
        assert says in capsys.readouterr().err


def test_a_known_size_is_a_teacher_too(program: Program, capsys: Capture) -> None:
    found = document(program, capsys, "design", "--teacher", "tinyllama-1.1b", "--ratio", "3")
    assert found["teacher_parameters"] == 1_100_048_384
    assert 2.9 < found["proposals"][0]["ratio"] < 3.1
    assert program(["design", "--teacher", "distilbert", "--ratio", "3", "--revision", "main"]) == 2
    assert "has no revisions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ([], "needs one of --ratio and --params"),
        (["--ratio", "2", "--params", "1k"], "needs one of --ratio and --params"),
        (["--params", "many"], "`many` is not a count"),
        (["--params", "2B"], "not fewer than the teacher's"),
        (["--ratio", "0"], "--ratio"),
        (["--params", "10"], "of them embeddings"),
        (["--ratio", "2", "--keep", "all"], "--keep"),
    ],
)
def test_a_design_that_cannot_be_is_refused(
    program: Program, capsys: Capture, models: Models, size: list[str], says: str
) -> None:
    assert program(["design", "--teacher", str(models.llama), *size]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_the_plan_is_what_the_run_does(program: Program, capsys: Capture, config: Path) -> None:
    plan = document(program, capsys, "run", config, "--dry-run")
    report = document(program, capsys, "run", config)
    assert {key: report[key] for key in ("task", "steps", "train_rows", "eval_rows", "dataset", "output_dir")} == {
        key: plan[key] for key in ("task", "steps", "train_rows", "eval_rows", "dataset", "output_dir")
    }
    assert report["student"]["parameters"] == plan["student_parameters"]


def test_flags_replace_what_the_file_says(
    program: Program, capsys: Capture, config: Path, models: Models, tmp_path: Path
) -> None:
    job = merged(json.loads(config.read_text()), {"student": {"hidden_size": None, "num_layers": None}})
    job["student"] = {"model_id": str(models.classifier)}
    file = write_config(tmp_path / "other.yaml", job)
    flags = ["--teacher", models.other_classifier, "--student", models.small_classifier, "--output", tmp_path / "there"]
    limits = ["--seed", 7, "--max-steps", 2, "--baseline", "--set", "training.batch_size=4"]
    plan = document(program, capsys, "run", "--config", file, *flags, *limits, "--dry-run")
    assert plan["teacher"] == str(models.other_classifier)
    assert plan["student"] == str(models.small_classifier)
    assert plan["output_dir"] == str(tmp_path / "there")
    assert (plan["steps"], plan["examples_per_step"]) == (2, 4)
    report = document(program, capsys, "run", "--config", file, *flags, *limits)
    assert (report["seed"], report["steps"]) == (7, 2)
    assert report["baseline_scores"] is not None


def test_a_model_of_a_flag_replaces_all_that_is_said_of_the_one_before(
    program: Program, capsys: Capture, models: Models, tmp_path: Path
) -> None:
    job = classification(models, tmp_path, teacher={"model_id": "org/large", "revision": "v2", "files": ["a.bin"]})
    job["student"] |= {"dropout": 0.3}
    file = write_config(tmp_path / "job.yaml", job)
    flags = ["--teacher", models.classifier, "--student", models.small_classifier]
    plan = document(program, capsys, "run", file, *flags, "--dry-run")
    assert (plan["teacher"], plan["student"]) == (str(models.classifier), str(models.small_classifier))
    checks = document(program, capsys, "validate", file, *flags, "--output", tmp_path / "there")["checks"]
    assert [check["name"] for check in checks] == [
        "settings",
        "teacher",
        "student",
        "task",
        "vocabulary",
        "columns",
        "output",
    ]
    assert checks[2]["detail"] == "bert, 1 layers of 32"
    assert checks[-1]["detail"] == f"{tmp_path / 'there'} can be written"
    loaded = assemble(
        file,
        ["student.files=[model.safetensors]"],
        {("teacher", "model_id"): ("t", "--teacher"), ("student", "model_id"): ("s", "--student")},
    ).config
    assert loaded.teacher == TeacherConfig(model_id="t", revision=None, files=None)
    assert loaded.student.model_dump(exclude_defaults=True) == {
        "model_id": "s",
        "dropout": 0.3,
        "files": ("model.safetensors",),
    }


def test_a_fitted_teacher_of_a_flag_is_fitted_too(tmp_path: Path) -> None:
    file = write_config(
        tmp_path / "job.yaml",
        {
            "teacher": {"model_id": "a", "revision": "v1", "dtype": "bfloat16", "finetune": {"method": "probe"}},
            "student": {"model_id": "s"},
            "dataset": {"name": "d"},
        },
    )
    teacher = assemble(file, (), {("teacher", "model_id"): ("b", "--teacher")}).config.teacher
    assert teacher.finetune == ProbeFinetuning(method="probe")
    assert (teacher.model_id, teacher.revision, teacher.dtype) == ("b", None, "bfloat16")


def test_a_student_narrowed_by_what_the_teacher_does_on_the_rows_is_trained(
    program: Program, capsys: Capture, models: Models, tmp_path: Path
) -> None:
    init = {"teacher_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24}
    job = language(models, tmp_path)
    job["student"] = {"init_from": init}
    report = document(program, capsys, "run", write_config(tmp_path / "narrow.yaml", job), "--max-steps", "2")
    assert report["student"]["parameters"] < report["teacher"]["parameters"] / 2
    wanted = "1 layers of the teacher with hidden_size 16, num_heads 2, intermediate_size 24"
    assert wanted in json.dumps(report)
    saved = json.loads((Path(report["output_dir"]) / "config.json").read_text())
    assert (saved["hidden_size"], saved["head_dim"], saved["intermediate_size"]) == (16, 8, 24)


def test_flags_alone_can_be_validated(program: Program, capsys: Capture, models: Models, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    flags = ["--teacher", models.llama, "--student", models.small_llama, "--output", tmp_path / "out"]
    settings = ["--set", f"dataset.path={data}", "--set", "dataset.max_length=16"]
    assert document(program, capsys, "validate", *flags, *settings)["config"] == "the command line"


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["validate"]])
def test_a_file_may_be_an_argument_or_an_option(program: Program, config: Path, command: list[str]) -> None:
    assert program([*command, str(config)]) == program([*command, "--config", str(config)]) == 0
    assert program([*command, str(config), "--config", str(config)]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "{config}", "--config", "other.yaml"], "two configurations"),
        (["validate", "{config}", "--config", "other.yaml"], "two configurations"),
        (["run", "{config}", "--resume", "--force"], "--force replaces it"),
        (["run"], "no configuration is given"),
        (["validate"], "no configuration is given"),
        (["run", "{config}x"], "did you mean"),
        (["validate", "{config}x"], "did you mean"),
        (["run", "{config}", "--max-steps", "0"], "--max-steps"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    program: Program, capsys: Capture, config: Path, argv: list[str], message: str
) -> None:
    assert program([item.format(config=config) for item in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "\nhint: " in err
    assert not (config.parent / "out").exists()


def test_a_complete_run_is_resumed_by_telling_its_report(program: Program, capsys: Capture, config: Path) -> None:
    first = document(program, capsys, "run", config)
    weights = (config.parent / "out" / "model.safetensors").stat()
    assert document(program, capsys, "run", config, "--resume") == first
    assert (config.parent / "out" / "model.safetensors").stat() == weights


def test_validate_says_that_a_complete_run_is_in_the_way(program: Program, capsys: Capture, config: Path) -> None:
    assert program(["run", str(config)]) == 0
    checks = document(program, capsys, "validate", config)["checks"]
    assert "--resume or --force" in checks[-1]["detail"]


@pytest.mark.parametrize(
    "argv", [["--help"], ["run", "--help"], ["design", "--help"], ["validate", "{config}"], ["losses"]]
)
def test_light_commands_import_nothing_heavy(config: Path, argv: list[str]) -> None:
    code = (
        "import sys; from entrenar_distill.cli import main; status = main(sys.argv[1:]); "
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr); sys.exit(status)"
    )
    argv = [item.format(config=config) for item in argv]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_module_is_the_program(config: Path) -> None:
    command = [sys.executable, "-m", "entrenar_distill", "validate", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"] == str(config)


def test_validate_is_a_function_too(models: Models, tmp_path: Path) -> None:
    from entrenar_core import parse_config

    report = validate(parse_config(classification(models, tmp_path)), "this job")
    assert report.config == "this job"
    assert {check.status for check in report.checks} == {"ok"}

"""`entrenar-distill estimate` as a user calls it: tables, JSON, other machines, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from entrenar_distill.cli import main

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "architectures": ["LlamaForCausalLM"],
}


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    """A teacher and a student of which nothing but the configurations is there."""
    LlamaConfig(**{**TINY, "hidden_size": 128, "intermediate_size": 256}).save_pretrained(tmp_path / "teacher")
    LlamaConfig(**TINY).save_pretrained(tmp_path / "student")
    return str(tmp_path / "teacher"), str(tmp_path / "student")


def estimated(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["estimate", *arguments, "--json"]) == status, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_tells_a_run_of_two_configurations_in_every_mode(
    models: tuple[str, str], check_output: Callable[..., dict[str, Any]]
) -> None:
    teacher, student = models
    flags = ["--teacher", teacher, "--student", student, "--batch-size", "2", "--sequence-length", "32"]
    found = check_output(
        main,
        ["estimate", *flags, "--available", "80GB", "--device", "cpu"],
        values={"device": "cpu", "devices": 1, "fits": True, "available_bytes": 80_000_000_000},
        shows=["peak, predicted", "teacher weights", "logits and loss", "LoRA, rank 16"],
    )
    (part,) = found["parts"]
    rounding = 64 * (9 * 2 + 3)  # of each tensor, by the allocator
    assert 0 <= part["components"]["teacher weights"] - 4 * part["teacher_parameters"] < rounding
    assert part["parameters"] == 64 * 512 * 2 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert sum(part["components"].values()) == part["peak_bytes"] == found["peak_bytes"]
    assert sum(part["dtypes"].values()) == part["peak_bytes"]
    assert found["needed_bytes"] == found["peak_bytes"] + found["process_bytes"]
    assert max(one["peak_bytes"] for one in part["phases"]) == part["peak_bytes"]


def test_what_does_not_fit_is_told_with_what_would(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = models
    flags = ["--teacher", teacher, "--student", student, "--batch-size", "64", "--sequence-length", "256"]
    whole = estimated(capsys, *flags, "--available", "80GB", "--device", "cpu")
    less = f"{(whole['needed_bytes'] - 50_000_000) / 1e6:.0f}MB"
    found = estimated(capsys, *flags, "--available", less, "--device", "cpu", status=1)
    assert found["fits"] is False
    assert found["enough"]
    peaks = {one["name"]: one["peak_bytes"] for one in found["changes"]}
    if len(found["enough"]) == 1:
        assert peaks[found["enough"][0]] + found["process_bytes"] <= found["available_bytes"]
    savings = [one["saving_bytes"] for one in found["changes"]]
    assert savings == sorted(savings, reverse=True)
    assert all(whole["peak_bytes"] - one["peak_bytes"] == one["saving_bytes"] for one in found["changes"])


def test_what_fits_just_is_told(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = models
    flags = ["--teacher", teacher, "--student", student, "--batch-size", "64", "--sequence-length", "256"]
    flags += ["--device", "cpu", "--available"]
    found = estimated(capsys, *flags, "80GB")
    assert found["at_most_bytes"] == found["needed_bytes"] + round(0.2 * found["peak_bytes"])
    assert main(["estimate", *flags, f"{(found['needed_bytes'] + 10_000_000) / 1e6:.0f}MB"]) == 0
    assert "just: 9" in capsys.readouterr().out


def test_a_teacher_that_is_spread_leaves_room_on_the_device(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = models
    flags = ["--teacher", teacher, "--student", student, "--batch-size", "8", "--sequence-length", "32"]
    flags += ["--device", "cuda", "--available", "8GB"]
    whole = estimated(capsys, *flags)
    beside = estimated(capsys, *flags, "--set", "teacher.device_map=cpu")
    weights = whole["parts"][-1]["components"]["teacher weights"]
    assert beside["parts"][-1]["host_bytes"] == pytest.approx(weights, rel=0.001)  # which an allocator rounds
    assert whole["peak_bytes"] - beside["peak_bytes"] == pytest.approx(weights, rel=0.001)
    parts = estimated(capsys, *flags, "--set", "teacher.device_map=auto", "--devices", "2")
    assert whole["peak_bytes"] > parts["peak_bytes"] > beside["peak_bytes"]
    assert main(["estimate", *flags, "--set", "teacher.device_map={model.layer: 0}"]) == 1
    assert "has no module model.layer" in capsys.readouterr().err


def test_an_optimiser_of_the_configuration_reaches_the_figures(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = models
    flags = ["--teacher", teacher, "--student", student, "--batch-size", "1", "--sequence-length", "16"]
    states = {}
    for name in ("adamw", "adamw-8bit", "sgd"):
        (part,) = estimated(capsys, *flags, "--set", f"training.optimizer={name}")["parts"]
        states[name] = part["components"].get("optimizer", 0) / part["trainable_parameters"]
    assert states["adamw"] == pytest.approx(8, rel=0.03)
    assert states["adamw-8bit"] == pytest.approx(2 + 8 / 256, rel=0.25)  # small parameters are kept at 32 bits
    assert states["sgd"] == 0


def test_the_time_of_a_run_is_that_of_its_steps(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 rows, of which 2 are for evaluation: 5 passes, 3 steps an epoch."""
    teacher, student = models
    rows = "".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(12))
    (tmp_path / "rows.jsonl").write_text(rows)
    config = {
        "task": "causal-lm",
        "teacher": {"model_id": teacher},
        "student": {"model_id": student},
        "dataset": {"path": str(tmp_path / "rows.jsonl"), "eval_rows": 2, "max_length": 16},
        "training": {"epochs": 4, "batch_size": 2, "gradient_accumulation": 2},
        "output": {"dir": str(tmp_path / "out")},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    found = estimated(capsys, str(tmp_path / "run.yaml"), "--calibrate")
    assert found["run_time"]["seconds"] == pytest.approx(12 * found["step_time"]["seconds"])
    assert found["step_time"]["how"] == "measured on 3 steps"


def test_a_teacher_alone_teaches_a_student_of_its_size(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = estimated(capsys, "--teacher", models[0], "--batch-size", "1", "--sequence-length", "16")
    (part,) = found["parts"]
    assert part["parameters"] == part["teacher_parameters"] == part["trainable_parameters"]


def test_adapters_and_devices(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = models
    flags = ["--teacher", teacher, "--student", student, "--batch-size", "8", "--sequence-length", "32"]
    full = estimated(capsys, *flags)
    lora = estimated(capsys, *flags, "--method", "lora", "--rank", "4")
    # q_proj and o_proj, k_proj and v_proj: 2 layers of twice 4 x (64 + 64) and 4 x (64 + 32)
    assert lora["parts"][-1]["trainable_parameters"] == 2 * 2 * (4 * 128 + 4 * 96)
    assert lora["peak_bytes"] < full["peak_bytes"]
    shared = estimated(capsys, *flags, "--devices", "8", "--strategy", "fsdp")
    assert shared["devices"] == 8
    assert shared["peak_bytes"] < full["peak_bytes"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--available", "16"], 2, "`16` has no unit"),
        (["--rank", "8"], 2, "--rank is of adapters"),
        (["--offload", "--device", "cpu"], 2, "--offload keeps weights beside a GPU"),
        (["--method", "lora", "--rank", "1000", "--sequence-length", "16"], 1, "a rank of 1000"),
        (["--sequence-length", "1000"], 2, "1,000"),
    ],
)
def test_mistakes(
    models: tuple[str, str],
    arguments: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher, student = models
    assert main(["estimate", "--teacher", teacher, "--student", student, *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "hint:" in err


def test_a_model_that_transformers_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "model_type": "unheard-of"}))
    assert main(["estimate", "--teacher", str(tmp_path), "--sequence-length", "16"]) == 1
    err = capsys.readouterr().err
    assert "unheard-of" in err
    assert "Traceback" not in err

"""Runs whose models and data are on the Hub, by name, as a person starts them."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hub_server import HubServer
from tiny_jobs import ANIMALS, PLACES
from tiny_models import tiny_llama

pytestmark = pytest.mark.slow

TEACHER, STUDENT = "meta-llama/Llama-2-7b", "TinyLlama/TinyLlama-1.1B"
SUITE = Path(__file__).parent.parent / "fixtures" / "configs" / "suite.yaml"
SHORT = ("training.batch_size=2", "training.warmup_steps=1", "dataset.name=Salesforce/wikitext")


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher and a student of one vocabulary."""
    folder = tmp_path_factory.mktemp("llamas")
    return (
        tiny_llama(folder / "teacher", max_position_embeddings=512),
        tiny_llama(folder / "student", max_position_embeddings=512, num_hidden_layers=1, seed=1),
    )


@pytest.fixture
def served(hub: HubServer, folders: tuple[Path, Path]) -> HubServer:
    """The two models, and a text corpus that has empty lines, as the real one."""
    hub.add(TEACHER, folders[0])
    hub.add(STUDENT, folders[1])
    lines = [{"text": "" if i % 5 == 0 else f"{(ANIMALS, PLACES)[i % 2][: 20 + i % 20]} {i}"} for i in range(700)]
    hub.add("Salesforce/wikitext", {"data/train-00000-of-00001.parquet": parquet(lines)}, kind="dataset")
    return hub


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The documented configuration, without the sections of losses and adapters that it also has."""
    values = yaml.safe_load(SUITE.read_text())
    del values["student"]["lora"], values["distillation"]["progressive"], values["distillation"]["attention"]
    file = tmp_path / "distill.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def entrenar(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder of its own, with the server in its environment."""
    command = [sys.executable, "-m", "entrenar_distill", *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def settings(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.mark.nightly
def test_the_documented_run_ends_with_a_student(served: HubServer, config: Path, tmp_path: Path) -> None:
    names = ["--teacher", TEACHER, "--student", STUDENT, "--config", "distill.yaml", "--output", "./distilled-model"]
    done = entrenar(tmp_path, "run", *names, "--max-steps", "2", *settings(*SHORT), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["task"], report["dataset"], report["steps"]) == ("causal-lm", "Salesforce/wikitext", 2)
    assert report["teacher"]["name"].startswith(TEACHER)
    assert report["student"]["name"] == STUDENT
    assert report["output_dir"] == "distilled-model"
    manifest = json.loads((tmp_path / "distilled-model" / "run.json").read_text())
    assert manifest["config"]["dataset"]["streaming"] is True
    assert manifest["config"]["training"]["mixed_precision"] == "bf16"

    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(tmp_path / "distilled-model")
    assert student.config.num_hidden_layers == 1


def test_the_documented_validation_fetches_no_weights(served: HubServer, config: Path, tmp_path: Path) -> None:
    done = entrenar(tmp_path, "validate", "--config", "distill.yaml", "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["teacher"]["detail"] == "llama, 2 layers of 32"
    assert checks["student"]["status"] == "ok"
    assert checks["columns"]["status"] == "skipped"
    assert not [name for name in served.fetched() if name.endswith((".safetensors", ".parquet"))]
    assert not (tmp_path / "distilled-model").exists()


@pytest.mark.long
def test_validation_skips_what_a_hub_that_is_down_would_tell(served: HubServer, config: Path, tmp_path: Path) -> None:
    served.refuses_with = 503
    done = entrenar(tmp_path, "validate", "--config", "distill.yaml", "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check["status"] for check in json.loads(done.stdout)["checks"]}
    assert checks["settings"] == "ok"
    assert checks["teacher"] == "skipped"


@pytest.mark.parametrize("command", [pytest.param("run", marks=pytest.mark.nightly), "validate"])
def test_a_name_that_the_hub_does_not_know_is_told(
    served: HubServer, config: Path, tmp_path: Path, command: str
) -> None:
    done = entrenar(tmp_path, command, "--config", "distill.yaml", *settings("teacher.model_id=meta-llama/Llama-9"))
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert "meta-llama/Llama-9" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "distilled-model").exists()

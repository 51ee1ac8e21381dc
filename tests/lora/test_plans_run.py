"""Plans that are really trained, in a process that is ended when it takes more than the plan was allowed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrenar_core.units import parse_size
from memory_process import FIXED
from tiny_models import tiny_llama

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

WIDE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    tiny_llama(folder / "model", max_position_embeddings=512, num_key_value_heads=8, **WIDE)
    text = json.dumps({"text": "a row that says the same as others " * 40})
    (folder / "rows.jsonl").write_text(f"{text}\n" * 40)
    return folder


def program(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entrenar_lora", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)


def planned(place: Path, limit: str, quality: str, method: str, file: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report of a plan, which is written where something fits."""
    wanted = ["--vram", limit, "--device", "cpu", "--quality", quality, "--method", method, "--batch-size", "4"]
    wanted += ["--sequence-length", "128", "--dataset", "rows.jsonl", "--write", file, "--force", "--json"]
    done = program(place, "plan", "--model", "model", *wanted)
    return done.returncode, json.loads(done.stdout)


def trained(place: Path, file: str, limit_bytes: int) -> tuple[bool, int]:
    """Whether it came to its end below the limit, and the most bytes that were resident."""
    command = [sys.executable, "-m", "entrenar_lora", "train", file, "--force", "--max-steps", "3"]
    log = (place / "log").open("w")
    process = subprocess.Popen(command, cwd=place, env={**os.environ, **FIXED}, stdout=log, stderr=log)
    peak, status = 0, Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = status.read_text().splitlines() if status.exists() else []
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
        if peak > limit_bytes:
            process.kill()
        time.sleep(0.02)
    log.close()
    assert process.returncode in (0, -9), (place / "log").read_text()
    return process.returncode == 0, peak


@pytest.mark.parametrize(
    ("limit", "quality", "method"),
    [("800MB", "fast", "lora"), ("900MB", "balanced", "qlora"), ("1.4GB", "best", "full")],
)
def test_what_is_planned_fits_and_takes_what_was_predicted(place: Path, limit: str, quality: str, method: str) -> None:
    status, report = planned(place, limit, quality, method, f"{method}.yaml")
    assert status == 0
    finished, peak = trained(place, f"{method}.yaml", parse_size(limit))
    assert finished, f"{peak:,} bytes"
    assert report["chosen"]["needed_bytes"] == pytest.approx(peak, rel=0.1)


def test_what_is_predicted_not_to_fit_does_not(place: Path) -> None:
    status, report = planned(place, "700MB", "fast", "full", "none.yaml")
    assert status == 1
    assert report["missing_bytes"] > 0
    assert not (place / "none.yaml").exists()
    _, roomy = planned(place, "4GB", "fast", "full", "full.yaml")
    assert roomy["chosen"]["needed_bytes"] > parse_size("700MB")
    values = yaml.safe_load((place / "full.yaml").read_text())
    values["training"] |= {"gradient_checkpointing": True, "batch_size": 1, "gradient_accumulation": 4}
    (place / "full.yaml").write_text(yaml.safe_dump(values))
    finished, peak = trained(place, "full.yaml", parse_size("700MB"))
    assert not finished
    assert peak > parse_size("700MB")

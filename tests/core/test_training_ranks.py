"""What is one for all processes: the seed's range, and how often a gradient is divided."""

import random
from pathlib import Path

import pytest

from entrenar_core.config import parse_config
from entrenar_core.training.assembly import make_accelerator
from entrenar_core.training.ranks import seed_rank


def test_every_seed_will_do_for_every_rank() -> None:
    drawn = []
    for rank in range(3):
        seed_rank(2**32 - 1, rank)
        drawn.append(random.random())
    assert len(set(drawn)) == 3


def test_what_a_launcher_sets_does_not_divide_a_loss_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    sections = {"teacher": {"model_id": "a/b"}, "student": {"model_id": "c/d"}, "dataset": {"path": "x.jsonl"}}
    accelerator = make_accelerator(parse_config({**sections, "output": {"dir": str(tmp_path)}}))
    assert accelerator.gradient_accumulation_steps == 1

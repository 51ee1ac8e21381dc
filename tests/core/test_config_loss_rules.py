"""What losses and schedules break is told where it stands, and with what to do."""

from pathlib import Path

import pytest

from entrenar_core.config import load_config
from entrenar_core.config.loss_rules import loss_rules
from entrenar_core.errors import ConfigError

MODELS = (
    "teacher: {model_id: t}\nstudent: {model_id: s}\ndataset: {name: d}\ntraining: {batch_size: 32}\ndistillation:\n"
)


@pytest.mark.parametrize(
    ("lines", "place", "hint"),
    [
        ("losses: [{name: jsd}]\nalpha: 0.5", "7:3", "keep one of the two"),
        (
            "losses:\n  - name: cross_entropy\n  - name: jsd\n  - name: cross_entropy",
            "9:7",
            "add its weight to the first",
        ),
        ("losses:\n  - name: jsd\n    beta: 1", "8:7", "take a number between 0 and 1, or set `normalised: true`"),
        ("losses:\n  - {name: jeffreys,\n     forward: 0, reverse: 0}", "8:8", "raise one"),
        ("divergence: bild\ntop_k: 1", "7:3", "take 2 or more"),
        ("divergence: bild\ntop_k_tail: true", "7:3", "remove it"),
        ("top_k_tail: false\ntop_k: 1", "7:3", "raise it, or leave the tail"),
        ("divergence: cross_entropy_hard\ntop_k: 3", "7:3", "remove it"),
        ("divergence: cross_entropy_hard\ntop_k_tail: true", "7:3", "remove it"),
        ("attention:\n  loss: maps\n  head_mapping: auto", "8:5", "remove it"),
        ("progressive:\n  loss: cka\n  projection: mlp", "8:5", "remove it"),
        ("losses:\n  - name: cka\n    group_size: 5", "8:7", "take a batch size that is a multiple of 5"),
        ("losses:\n  - name: rkd_angle\n    group_size: 2", "8:7", "raise it"),
        ("losses:\n  - {name: jsd, weight: 0}", "6:3", "raise a weight"),
        ("losses: [{name: cka}]\ntemperature: 3", "7:3", "remove it"),
        ("alpha:\n  schedule: constant\n  start: 0.5\n  end: 0.7", "9:5", "remove it, or choose another schedule"),
        ("temperature:\n  schedule: linear\n  start: 2", "6:3", "say what it is in the last step"),
        ("temperature:\n  schedule: cosine\n  start: 2", "6:3", "say what it is in the last step"),
        ("alpha:\n  schedule: exponential\n  start: 0\n  end: 1", "6:3", "take a linear or cosine schedule"),
        ("alpha:\n  schedule: exponential\n  start: 1\n  end: 0", "6:3", "take a linear or cosine schedule"),
        ("relations:\n  weight: {schedule: linear, start: 1}", "7:5", "say what it is in the last step"),
        ("attention:\n  weight: {schedule: exponential, start: 1}", "7:5", "say what it is in the last step"),
        ("losses:\n  - name: jsd\n    weight: {schedule: linear, start: 1}", "8:7", "say what it is in the last step"),
        ("losses:\n  - name: jsd\n    temperature: {schedule: linear, start: 1}", "8:7", "say what it is"),
        (
            "losses:\n  - name: jsd\n    weight:\n      schedule: constant\n      start: 1\n      warmup_from: 2",
            "11:9",
            None,
        ),
    ],
)
def test_a_broken_rule_is_told_where_it_stands(lines: str, place: str, hint: str | None, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MODELS + "".join(f"  {line}\n" for line in lines.splitlines()))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    (problem,) = caught.value.problems
    assert (problem.where or "").removeprefix(f"{file}:") == place
    assert (problem.hint or "").startswith(hint or "")
    assert (problem.hint is None) == (hint is None)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"losses": "jsd"},
        {"losses": [3, None, {"weight": "heavy"}]},
        {"losses": [{"name": "jsd", "beta": 1, "normalised": True}]},
        {"losses": [{"name": "cka", "group_size": 3, "pool": "tokens"}, {"name": "forward_kl", "weight": 0}]},
        {"losses": [{"name": "cka"}, {"name": "forward_kl"}], "temperature": 3.0},
        {"progressive": {"enabled": False, "loss": "cka"}, "relations": 3},
        {"top_k_tail": False, "top_k": 2},
        {"temperature": {"schedule": "constant", "start": 2.0}, "alpha": {"schedule": "linear", "start": 0, "end": 1}},
        {"alpha": {"schedule": "linear", "start": 0, "end": 1, "warmup_from": 0.5, "warmup_steps": 3}},
    ],
)
def test_what_breaks_no_rule_or_is_the_schemas_to_refuse_is_left_alone(settings: dict[str, object]) -> None:
    assert not [broken for broken in loss_rules(settings, {"batch_size": 24}) if broken.path[-1] != "group_size"]

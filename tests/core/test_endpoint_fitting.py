"""What an endpoint cannot tell is refused before a run, with the setting that asks for it."""

from typing import Any

import pytest

from entrenar_core.config import parse_config
from entrenar_core.teachers.endpoint.fitting import check_losses


def problems(distillation: dict[str, Any], **training: Any) -> list[tuple[str | None, str]]:
    config = parse_config(
        {
            "teacher": {"model_id": "t"},
            "student": {"model_id": "s"},
            "dataset": {"name": "d"},
            "distillation": distillation,
            "training": training,
        }
    )
    found = check_losses(config, 20)
    assert all(problem.hint for problem in found)
    return [(problem.where, problem.message) for problem in found]


@pytest.mark.parametrize(
    "distillation",
    [
        {"temperature": 1},
        {"temperature": 1, "divergence": "reverse_kl"},
        {"temperature": 1, "top_k": 20},
        {"temperature": {"schedule": "constant", "start": 1}},
        {"losses": [{"name": "forward_kl", "temperature": 1}, {"name": "cross_entropy"}]},
        {"losses": [{"name": "cross_entropy"}]},
    ],
)
def test_what_needs_no_more_than_the_likeliest_at_temperature_1_is_served(distillation: dict[str, Any]) -> None:
    assert problems(distillation) == []


@pytest.mark.parametrize(
    ("distillation", "where", "message"),
    [
        ({"temperature": 2}, "distillation.divergence", "another temperature than 1"),
        (
            {"temperature": {"schedule": "linear", "start": 3, "end": 1}},
            "distillation.divergence",
            "another temperature than 1",
        ),
        (
            {"temperature": {"schedule": "linear", "start": 1, "end": 0.5}},
            "distillation.divergence",
            "another temperature than 1",
        ),
        (
            {"temperature": 1, "top_k": 21},
            "distillation.divergence",
            "`top_k` 21, and the endpoint is asked for the likeliest 20",
        ),
        ({"temperature": 1, "entropy_threshold": 0.5}, "distillation.divergence", "the teacher's entropy"),
        ({"temperature": 1, "divergence": "bild"}, "distillation.divergence", "the student's likeliest tokens"),
        ({"losses": [{"name": "jsd", "temperature": 4}]}, "distillation.losses[0]", "another temperature than 1"),
        ({"losses": [{"name": "cka"}]}, "distillation.losses[0]", "compares layers"),
    ],
)
def test_what_needs_more_is_refused(distillation: dict[str, Any], where: str, message: str) -> None:
    ((place, text),) = problems(distillation)
    assert place == where
    assert message in text


def test_looking_at_whole_distributions_is_refused() -> None:
    ((place, text),) = problems({"temperature": 1}, diagnose_every=10)
    assert place == "training.diagnose_every"
    assert "whole distribution" in text

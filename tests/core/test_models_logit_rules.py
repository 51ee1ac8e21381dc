"""Losses that would select from fewer tokens or classes than there are."""

from typing import Any

import pytest

from entrenar_core.config import parse_config
from entrenar_core.models.logit_rules import check_logits, selects


def section(**distillation: Any) -> Any:
    values = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    return parse_config(values | {"distillation": distillation}).distillation


@pytest.mark.parametrize(
    ("distillation", "where", "message"),
    [
        ({"top_k": 6}, "distillation.top_k", "6 is more than there are classes: 5"),
        ({"divergence": "bild", "top_k": 6}, "distillation.top_k", "6 is more than there are classes: 5"),
        (
            {"losses": [{"name": "cka"}, {"name": "jsd", "top_k": 100_000}]},
            "distillation.losses[1].top_k",
            "100,000 is",
        ),
        ({"entropy_threshold": 1.61}, "distillation.entropy_threshold", "of 5 classes no entropy is above 1.609"),
        ({"divergence": "cross_entropy_hard", "entropy_threshold": 2.0}, "distillation.entropy_threshold", "nothing"),
        ({"losses": [{"name": "forward_kl", "entropy_threshold": 9}]}, "distillation.losses[0].entropy_threshold", "9"),
    ],
)
def test_a_mistake_is_told_at_its_setting(distillation: dict[str, Any], where: str, message: str) -> None:
    assert selects(section(**distillation))
    (problem,) = check_logits(section(**distillation), 5, "classes")
    assert problem.where == where
    assert problem.message.startswith(f"`{where}` ")
    assert message in problem.message
    assert problem.hint == "lower or remove it"


@pytest.mark.parametrize(
    "distillation",
    [
        {},
        {"divergence": "bild"},  # whose default is more than five
        {"top_k": 5},
        {"entropy_threshold": 1.6},
        {"alpha": 0, "top_k": 9},  # has no weight
        {"losses": [{"name": "cross_entropy"}, {"name": "hidden_mse"}, {"name": "bild"}]},
    ],
)
def test_what_can_be_selected_is_no_mistake(distillation: dict[str, Any]) -> None:
    assert check_logits(section(**distillation), 5, "classes") == []


def test_what_selects_is_known() -> None:
    assert not selects(section())
    assert not selects(section(divergence="bild"))
    assert not selects(section(losses=[{"name": "hidden_mse"}, {"name": "cross_entropy"}]))

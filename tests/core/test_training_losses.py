"""From entries of a configuration to losses: every setting of an entry reaches what is computed."""

from typing import Any

import pytest
import torch

from entrenar_core.config import parse_config
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.losses import LabelLoss, SoftLoss
from entrenar_core.losses import of_logits
from entrenar_core.training.losses import make_core

STUDENT, TEACHER = (torch.randn(5, 12, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (0, 1))


def entry(name: str, **settings: Any) -> Any:
    values = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    losses = [{"name": name, **settings}]
    (term,) = terms_of(parse_config(values | {"distillation": {"losses": losses}}).distillation)
    return term.entry


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("jeffreys", {"forward": 0.9}),
        ("jeffreys", {"reverse": 0.9}),
        ("jsd", {"beta": 0.2}),
        ("jsd", {"normalised": True}),
        ("skew_forward_kl", {"skew": 0.5}),
        ("skew_reverse_kl", {"skew": 0.5}),
        ("bild", {"top_k": 3}),
        ("forward_kl", {"top_k": 3}),
        ("forward_kl", {"top_k": 3, "top_k_tail": False}),
        ("forward_kl", {"entropy_threshold": 1.0}),
        ("bild", {"entropy_threshold": 1.0}),
    ],
)
def test_each_setting_of_a_soft_loss_changes_its_values(name: str, settings: dict[str, Any]) -> None:
    usual, changed = entry(name), entry(name, **settings)
    assert isinstance(usual, SoftLoss)
    assert isinstance(changed, SoftLoss)
    values = [of_logits(make_core(one), STUDENT, TEACHER) for one in (usual, changed)]
    assert not torch.allclose(values[0], values[1])


def test_labels_are_as_smooth_as_the_entry_says() -> None:
    found = entry("cross_entropy", label_smoothing=0.25)
    assert isinstance(found, LabelLoss)
    assert found.label_smoothing == 0.25

"""The settings of `distillation`: each changes what is learnt, and nothing else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from entrenar_core import parse_config
from entrenar_core.losses import DIVERGENCES, LOSSES
from entrenar_core.training.callbacks import StepMetrics
from entrenar_core.training.distillation import plan
from tiny_jobs import Models, classification, language, write_rows
from watched_runs import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


def first_step(kind: Any, models: Models, folder: Path, **distillation: Any) -> StepMetrics:
    return run(kind(models, folder, distillation=distillation, training={"max_steps": 1}))[1].steps[0]


def test_the_temperature_changes_the_soft_loss_alone(tiny: Models, tmp_path: Path) -> None:
    cold, hot = (first_step(classification, tiny, tmp_path, temperature=value).losses for value in (1.0, 8.0))
    assert cold["forward_kl"] != hot["forward_kl"]
    assert cold["cross_entropy"] == hot["cross_entropy"]


@pytest.mark.long
@pytest.mark.nightly
def test_what_is_compared_changes_the_soft_loss_alone(tiny: Models, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [
        *({"divergence": name} for name in DIVERGENCES),
        {"top_k": 3},
        {"top_k": 3, "top_k_tail": False},
        {"entropy_threshold": 4.5},
    ]
    # a tiny teacher is sure of something at a low temperature alone
    found = [first_step(language, tiny, tmp_path, temperature=0.05, **way).losses for way in ways]
    soft = [next(value for name, value in losses.items() if name != "cross_entropy") for losses in found]
    assert len(set(soft)) == len(ways)
    assert all(math.isfinite(value) for value in soft)
    assert len({losses["cross_entropy"] for losses in found}) == 1


def test_a_selection_of_more_classes_than_a_teacher_is_fitted_to_is_told(tiny: Models, tmp_path: Path) -> None:
    job = classification(tiny, tmp_path, distillation={"top_k": 3}, training={"max_steps": 1})
    job["teacher"]["finetune"] = {"method": "probe"}
    report, _ = run(job)
    assert "`distillation.top_k` 3 is more than there are classes: 2, so it leaves nothing out" in report.warnings
    del job["distillation"]
    assert not any("top_k" in warning for warning in run(job)[0].warnings)


def test_smoothing_changes_the_hard_loss_alone(tiny: Models, tmp_path: Path) -> None:
    sharp, smooth = (first_step(language, tiny, tmp_path, label_smoothing=part).losses for part in (0.0, 0.3))
    assert sharp["forward_kl"] == smooth["forward_kl"]
    assert sharp["cross_entropy"] != smooth["cross_entropy"]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_weighs_the_two_losses(tiny: Models, tmp_path: Path, alpha: float) -> None:
    step = first_step(classification, tiny, tmp_path, alpha=alpha)
    assert set(step.losses) == {
        name for name, weight in (("forward_kl", alpha), ("cross_entropy", 1 - alpha)) if weight
    }
    soft, hard = (step.losses.get(name, 0.0) for name in ("forward_kl", "cross_entropy"))
    assert step.loss == pytest.approx(alpha * soft + (1 - alpha) * hard)


def test_schedules_are_followed_and_told(tiny: Models, tmp_path: Path) -> None:
    distillation = {
        "temperature": {"schedule": "linear", "start": 4.0, "end": 2.0},
        "alpha": {"schedule": "exponential", "start": 0.8, "end": 0.2},
        "progressive": {"weight": {"schedule": "cosine", "start": 0.0, "end": 1.0}},
    }
    job = classification(tiny, tmp_path, distillation=distillation, training={"max_steps": 3, "log_every": 1})
    _, watch = run(job)
    told = [step.schedules for step in watch.steps]
    assert [now["forward_kl.temperature"] for now in told] == pytest.approx([4.0, 3.0, 2.0])
    assert [now["forward_kl.weight"] for now in told] == pytest.approx([0.8, 0.4, 0.2])
    assert [now["cross_entropy.weight"] for now in told] == pytest.approx([0.2, 0.6, 0.8])
    assert [now["hidden_mse.weight"] for now in told] == pytest.approx([0.0, 0.5, 1.0])
    for step in watch.steps:
        whole = sum(step.schedules[f"{name}.weight"] * value for name, value in step.losses.items())
        assert step.loss == pytest.approx(whole, rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["schedules"] for line in lines if "schedules" in line] == told


@pytest.mark.parametrize("thought", [0.0, pytest.param(0.5, marks=pytest.mark.nightly), 1.0])
def test_a_reasoning_counts_as_much_as_it_is_weighted(tiny: Models, tmp_path: Path, thought: float) -> None:
    """The loss is linear in the weights, and what it is divided by does not depend on them."""
    rows = [{"q": f"open {i}: ", "r": "the dog jumps over the file. ", "a": "so the river"} for i in range(40)]
    columns = {"prompt_column": "q", "reasoning_column": "r", "completion_column": "a"}
    found = []
    for reasoning, answer in ((thought, 0.25), (1.0, 0.0), (0.0, 1.0)):
        job = language(tiny, tmp_path, training={"max_steps": 1})
        job["dataset"] = {"path": str(write_rows(tmp_path / "rows.jsonl", rows)), **columns, "max_length": 64}
        job["dataset"] |= {"reasoning_weight": reasoning, "completion_weight": answer}
        found.append(run(job)[1].steps[0])
    mixed, of_reasoning, of_answer = found
    for name, value in mixed.losses.items():
        assert value == pytest.approx(thought * of_reasoning.losses[name] + 0.25 * of_answer.losses[name], rel=1e-5)


SHORT: list[tuple[str, dict[str, Any]]] = [
    ("hidden_mse", {"progressive": {"loss": "mse"}}),
    ("hidden_mse", {"progressive": {"projection": "mlp"}}),
    ("hidden_mse", {"progressive": {"layer_mapping": [[0, 0]]}}),
    ("hidden_cosine", {"progressive": {"loss": "cosine"}}),
    ("attention_kl", {"attention": {}}),
    ("attention_kl", {"attention": {"head_weighting": "entropy"}}),
    ("attention_kl", {"attention": {"head_mapping": [[0, 1]]}}),
    ("attention_kl", {"attention": {"layer_mapping": [[0, 0]]}}),
    ("attention_mse", {"attention": {"loss": "mse"}}),
    ("minilm", {"relations": {}}),
    ("minilm", {"relations": {"layer_mapping": [[0, 0]]}}),
    ("rkd_distance", {"relations": {"loss": "rkd_distance"}}),
]


@pytest.mark.long
@pytest.mark.nightly
def test_short_spellings_ask_for_losses_between_layers(tiny: Models, tmp_path: Path) -> None:
    values: list[float] = []
    for name, settings in SHORT:
        step = first_step(classification, tiny, tmp_path, **settings)
        assert set(step.losses) == {"forward_kl", "cross_entropy", name}
        values.append(step.losses[name])
    assert len(set(values)) == len(values), "each setting changes what is compared"
    assert all(math.isfinite(value) and value > 0 for value in values)


@pytest.mark.parametrize("section", ["progressive", "attention", "relations"])
def test_what_is_not_enabled_or_has_no_weight_takes_no_part(tiny: Models, tmp_path: Path, section: str) -> None:
    plain = first_step(classification, tiny, tmp_path)
    off = first_step(classification, tiny, tmp_path, **{section: {"enabled": False}})
    heavy, light = (
        first_step(classification, tiny, tmp_path, **{section: {"weight": weight}}) for weight in (2.0, 1.0)
    )
    assert off == plain
    (name,) = light.losses.keys() - plain.losses.keys()
    assert heavy.loss - plain.loss == pytest.approx(2 * light.losses[name], rel=1e-4)


@pytest.mark.parametrize("kind", [classification, language])
def test_every_loss_of_the_table_trains(tiny: Models, tmp_path: Path, kind: Any) -> None:
    """All at once, each with its own name in the metrics, and none of them in the weights that come out."""
    names = [name for name, row in LOSSES.items() if row.family != "vectors"]  # sentence encoders have those
    job = kind(tiny, tmp_path, distillation={"losses": [{"name": name} for name in names]}, training={"max_steps": 2})
    report, watch = run(job)
    assert set(watch.steps[0].losses) == set(names)
    assert all(math.isfinite(value) for step in watch.steps for value in step.losses.values())
    assert report.final_loss == pytest.approx(sum(watch.steps[-1].losses.values()), rel=1e-4)
    saved = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not [name for name in saved if "projection" in name or "layers_" in name]


def test_layers_are_mapped_by_how_alike_they_are(tiny: Models, tmp_path: Path) -> None:
    step = first_step(classification, tiny, tmp_path, losses=[{"name": "hidden_mse", "layers": "cka"}])
    each = [
        first_step(classification, tiny, tmp_path, losses=[{"name": "hidden_mse", "layers": [[0, layer]]}]).losses
        for layer in range(2)
    ]
    assert step.losses in each, "the student has one layer, and one of the teacher's is the most alike"


def test_a_plan_tells_the_whole_loss(tiny: Models, tmp_path: Path) -> None:
    way = {"divergence": "jsd", "temperature": 3.0, "alpha": 0.75, "label_smoothing": 0.1, "entropy_threshold": 0.2}
    selected = {"top_k": 7, "top_k_tail": False, "attention": {}}
    (tmp_path / "plain").mkdir()
    plain, whole = (
        plan(parse_config(language(tiny, folder, distillation=chosen))).loss
        for folder, chosen in ((tmp_path / "plain", {}), (tmp_path, way | selected))
    )
    assert plain == "0.5 × forward_kl(T=2) + 0.5 × CE"
    assert whole == (
        "0.75 × jsd(T=3, entropy_threshold=0.2, top_k=7, top_k_tail=false) + 0.25 × CE(label_smoothing=0.1) + "
        "0.1 × attention_kl(layers=uniform)"
    )

"""The settings of losses: short spellings become entries, schedules are told right, and rules hold for both."""

from typing import Any

import pytest

from entrenar_core.config import parse_config
from entrenar_core.config.desugaring import terms_of, without_teacher
from entrenar_core.config.formula import formula
from entrenar_core.config.schedules import Remainder, Schedule
from entrenar_core.errors import ConfigError
from entrenar_core.training.schedules import moves, value_at


def section(**distillation: Any) -> Any:
    values = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    return parse_config(values | {"distillation": distillation}).distillation


def mistakes(training: dict[str, Any] | None = None, **distillation: Any) -> list[str]:
    values: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    with pytest.raises(ConfigError) as caught:
        parse_config(values | {"distillation": distillation, "training": training or {}})
    return [problem.message for problem in caught.value.problems]


# ── Short spellings ──


def test_short_spellings_are_entries() -> None:
    short = section(
        temperature=4.0,
        alpha=0.7,
        divergence="jsd",
        top_k=50,
        label_smoothing=0.1,
        progressive={"layer_mapping": [[0, 3], [1, 7]], "projection": "mlp", "loss": "cosine", "weight": 0.3},
        attention={"weight": 0.1, "head_mapping": "grouped", "head_weighting": "entropy"},
        relations={"loss": "rkd_angle", "weight": 2.0},
    )
    long = section(
        temperature=4.0,
        losses=[
            {"name": "jsd", "weight": 0.7, "top_k": 50},
            {"name": "cross_entropy", "weight": 0.3, "label_smoothing": 0.1},
            {"name": "hidden_cosine", "weight": 0.3, "layers": [[0, 3], [1, 7]], "projection": "mlp"},
            {"name": "attention_kl", "weight": 0.1, "heads": "grouped", "head_weights": "entropy"},
            {"name": "rkd_angle", "weight": 2.0},
        ],
    )
    for ours, theirs in zip(terms_of(short), terms_of(long), strict=True):
        assert ours.label == theirs.label
        assert ours.temperature == theirs.temperature
        assert value_at(ours.weight, 0, 10) == pytest.approx(value_at(theirs.weight, 0, 10))
        settings = [term.entry.model_dump(exclude={"weight", "temperature"}) for term in (ours, theirs)]
        assert settings[0] == settings[1]


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ({}, ["forward_kl", "cross_entropy"]),
        ({"alpha": 0}, ["cross_entropy"]),
        ({"alpha": 1}, ["forward_kl"]),
        ({"alpha": {"schedule": "linear", "start": 0.0, "end": 1.0}}, ["forward_kl", "cross_entropy"]),
        ({"progressive": {"enabled": False}}, ["forward_kl", "cross_entropy"]),
        ({"progressive": {"loss": "cka"}, "alpha": 1}, ["forward_kl", "cka"]),
        ({"attention": {"loss": "maps"}, "alpha": 1}, ["forward_kl", "attention_maps"]),
        ({"attention": {"loss": "mse", "weight": 0}, "alpha": 1}, ["forward_kl"]),
        ({"relations": {}, "alpha": 1}, ["forward_kl", "minilm"]),
    ],
)
def test_what_has_no_weight_is_left_out(short: dict[str, Any], names: list[str]) -> None:
    assert [term.label for term in terms_of(section(**short))] == names


def test_a_loss_that_is_listed_twice_has_two_names() -> None:
    listed = section(losses=[{"name": "hidden_mse", "layers": [[0, 1]]}, {"name": "hidden_mse", "layers": [[1, 3]]}])
    assert [term.label for term in terms_of(listed)] == ["hidden_mse", "hidden_mse_2"]


def test_an_entry_has_its_own_temperature_or_that_of_the_section() -> None:
    first, second, third = terms_of(
        section(
            temperature=3.0,
            losses=[{"name": "forward_kl"}, {"name": "reverse_kl", "temperature": 1.5}, {"name": "cross_entropy"}],
        )
    )
    assert (first.temperature, second.temperature, third.temperature) == (3.0, 1.5, None)


def test_a_rival_without_a_teacher_learns_the_labels_as_smooth_as_the_student() -> None:
    (term,) = without_teacher(section(alpha=0.9, label_smoothing=0.2))
    assert (term.label, term.weight, term.entry.model_dump()["label_smoothing"]) == ("cross_entropy", 1.0, 0.2)
    (plain,) = without_teacher(section(losses=[{"name": "forward_kl"}]))
    assert plain.entry.model_dump()["label_smoothing"] == 0.0


# ── Schedules ──


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "constant", "start": 3.0}, [3, 3, 3, 3, 3]),
        ({"schedule": "linear", "start": 4.0, "end": 0.0}, [4, 3, 2, 1, 0]),
        ({"schedule": "cosine", "start": 4.0, "end": 0.0}, [4, 2 + 2**0.5, 2, 2 - 2**0.5, 0]),
        ({"schedule": "exponential", "start": 16.0, "end": 1.0}, [16, 8, 4, 2, 1]),
        ({"schedule": "linear", "start": 4.0, "end": 2.0, "warmup_steps": 2}, [4, 4, 4, 3, 2]),
        ({"schedule": "linear", "start": 4.0, "end": 2.0, "warmup_steps": 2, "warmup_from": 0.0}, [0, 2, 4, 3, 2]),
        ({"schedule": "linear", "start": 4.0, "end": 2.0, "warmup_steps": 9, "warmup_from": 1.0},
         [1, 4 / 3, 5 / 3, 2, 7 / 3]),
    ],
)  # fmt: skip
def test_a_schedule_is_a_function_of_the_step(schedule: dict[str, Any], expected: list[float]) -> None:
    setting = Schedule(**schedule)
    assert [value_at(setting, step, 5) for step in range(5)] == pytest.approx(expected, rel=1e-6)
    assert [value_at(Remainder(setting), step, 5) for step in range(5)] == pytest.approx([1 - v for v in expected])
    assert moves(setting) == (len(set(expected)) > 1)


def test_a_run_of_one_step_is_at_the_start() -> None:
    assert value_at(Schedule(schedule="linear", start=4.0, end=1.0), 0, 1) == 4.0
    assert value_at(2.5, 0, 1) == 2.5
    assert not moves(2.5)


def test_alpha_that_moves_moves_the_labels_against_it() -> None:
    soft, labels = terms_of(section(alpha={"schedule": "linear", "start": 0.9, "end": 0.5}))
    assert [value_at(soft.weight, step, 3) for step in range(3)] == pytest.approx([0.9, 0.7, 0.5])
    assert [value_at(labels.weight, step, 3) for step in range(3)] == pytest.approx([0.1, 0.3, 0.5])


# ── The formula of a plan ──


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, "0.5 × forward_kl(T=2) + 0.5 × CE"),
        ({"alpha": 1, "divergence": "jsd", "top_k": 5, "top_k_tail": False},
         "1 × jsd(T=2, top_k=5, top_k_tail=false)"),
        ({"temperature": {"schedule": "cosine", "start": 4.0, "end": 1.0, "warmup_from": 1.0, "warmup_steps": 3},
          "alpha": {"schedule": "linear", "start": 0.9, "end": 0.5}},
         "(0.9 → 0.5, linear) × forward_kl(T=(1 → 4 → 1, cosine)) + (1 − (0.9 → 0.5, linear)) × CE"),
        ({"alpha": 0, "label_smoothing": 0.1, "progressive": {"layer_mapping": [[0, 3], [1, 7]]}},
         "1 × CE(label_smoothing=0.1) + 0.3 × hidden_mse(layers=0→3 1→7)"),
        ({"losses": [{"name": "minilm", "relations": ["value"], "weight": 2}]},
         "2 × minilm(layers=final, relations=value)"),
    ],
)  # fmt: skip
def test_a_plan_spells_out_what_is_not_usual(settings: dict[str, Any], shown: str) -> None:
    assert formula(section(**settings)) == shown


# ── Mistakes ──


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": [{"name": "forward_kl"}], "alpha": 0.5}, "`distillation.alpha` is a short spelling"),
        ({"losses": [{"name": "forward_kl"}], "progressive": {}}, "`distillation.progressive` is a short spelling"),
        ({"losses": []}, "`distillation.losses` should be a list of losses, not []"),
        ({"losses": [{"name": "foward_kl"}]}, "`distillation.losses[0].name` cannot be 'foward_kl'"),
        ({"losses": [{"name": None}]}, "`distillation.losses[0].name` cannot be null"),
        ({"losses": [{"name": "forward_kl", "weight": 1e308}]},
         "`distillation.losses[0].weight` should be a number from 0 to 1,000,000, or a schedule, not 1e+308"),
        ({"losses": [{"name": "jeffreys", "forward": 1e7}]}, "`distillation.losses[0].forward` should be a number"),
        ({"alpha": {"schedule": "linear", "start": 0.5, "end": 1e300}}, "`distillation.alpha.end` should be a number"),
        ({"relations": {"loss": "in_batch_similarity", "weight": 2e6}}, "`distillation.relations.weight` should be a"),
        ({"losses": [{"name": "in_batch_similarity", "temperature": 1e-300}]},
         "`distillation.losses[0].temperature` should be a number from 0.001 to 1000"),
        ({"losses": [{"weight": 1.0}]}, "`distillation.losses[0].name` is missing"),
        ({"losses": [{"name": "jsd", "beta": 0}]}, "`distillation.losses[0].beta` 0 makes the divergence zero"),
        ({"losses": [{"name": "bild", "top_k": 1}]}, "`distillation.losses[0].top_k` should be a whole"),
        ({"losses": [{"name": "cka", "skew": 0.1}]}, "`distillation.losses[0].skew` is not a setting"),
        ({"losses": [{"name": "forward_kl", "weight": -1}]}, "`distillation.losses[0].weight` should be a number"),
        ({"losses": [{"name": "forward_kl", "temperature": 0}]},
         "`distillation.losses[0].temperature` should be a number from 0.01 to 1000"),
        ({"losses": [{"name": "cross_entropy"}, {"name": "cross_entropy"}]},
         "`distillation.losses[1]` is a second `cross_entropy`"),
        ({"losses": [{"name": "hidden_mse", "layers": "middle"}]}, "`distillation.losses[0].layers` should be uniform"),
        ({"losses": [{"name": "attention_kl", "heads": [[0]]}]}, "`distillation.losses[0].heads` should be auto"),
        ({"losses": [{"name": "cka", "group_size": 5}]}, "`training.batch_size` 32 would cut through groups of 5 rows"),
        ({"progressive": {"layer_mapping": [[0, -3]]}}, "`distillation.progressive.layer_mapping` should be uniform"),
        ({"progressive": {"projection": "conv"}}, "`distillation.progressive.projection` cannot be 'conv'"),
        ({"temperature": {"schedule": "linear", "start": 4.0}}, "`distillation.temperature` is a linear schedule"),
        ({"temperature": {"schedule": "step", "start": 4.0}}, "`distillation.temperature.schedule` cannot be 'step'"),
        ({"temperature": {"schedule": "cosine", "start": 4.0, "end": 0.0}},
         "`distillation.temperature.end` should be a number from 0.01 to 1000, not 0.0"),
        ({"alpha": {"schedule": "exponential", "start": 0.9, "end": 0.0}},
         "`distillation.alpha` cannot go to or from 0 by even factors"),
        ({"alpha": {"schedule": "constant", "start": 0.9, "end": 0.1}}, "`distillation.alpha.end` is not for"),
        ({"alpha": {"schedule": "linear", "start": 0.9, "end": 1.5}}, "`distillation.alpha.end` should be a number"),
        ({"alpha": {"schedule": "linear", "start": 0.9, "end": 0.5, "warmup_from": 0.1}},
         "`distillation.alpha.warmup_from` needs `distillation.alpha.warmup_steps`"),
        ({"divergence": "cross_entropy_hard", "top_k": 5}, "`distillation.top_k` has no meaning"),
        ({"losses": [{"name": "cross_entropy_hard", "top_k": 5}]}, "`distillation.losses[0].top_k` is not a setting"),
        ({"losses": [{"name": "cka", "group_size": 2}]}, "`distillation.losses[0].group_size` must be at least 4"),
        ({"losses": [{"name": "rkd_angle", "group_size": 2}]},
         "`distillation.losses[0].group_size` must be at least 3 for rkd_angle"),
        ({"losses": [{"name": "forward_kl", "weight": 0}, {"name": "cka", "weight": 0.0}]},
         "`distillation.losses` has no loss with a weight"),
        ({"attention": {"loss": "maps", "head_weighting": "learned"}},
         "`distillation.attention.head_weighting` means nothing to the loss maps"),
        ({"progressive": {"loss": "cka", "projection": "mlp"}}, "`distillation.progressive.projection` means nothing"),
        ({"temperature": 9.0, "losses": [{"name": "hidden_mse"}]}, "`distillation.temperature` means nothing here"),
        ({"losses": [{"name": "jeffreys", "forward": 0, "reverse": 0}]}, "`distillation.losses[0]` has neither"),
        ({"attention": {"weight": {"schedule": "linear", "start": 1.0}}},
         "`distillation.attention.weight` is a linear schedule without"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_once_by_the_name_of_its_setting(settings: dict[str, Any], message: str) -> None:
    (found,) = mistakes(**settings)
    assert found.startswith(message)


@pytest.mark.parametrize(
    "settings",
    [
        {"divergence": "cross_entropy_hard"},
        {"losses": [{"name": "cka", "group_size": 2, "pool": "tokens"}]},
        {"losses": [{"name": "forward_kl", "weight": 0}, {"name": "cross_entropy"}]},
        {"losses": [{"name": "jeffreys", "forward": 0}]},
    ],
)
def test_what_is_near_a_mistake_is_none(settings: dict[str, Any]) -> None:
    assert terms_of(section(**settings))


def test_groups_of_a_short_spelling_must_fit_the_batch_too() -> None:
    (found,) = mistakes({"batch_size": 12}, relations={"loss": "rkd_distance"})
    assert found.startswith("`training.batch_size` 12 would cut through groups of 8 rows")


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"divergence": "forwardkl"}, "did you mean 'forward_kl'?"),
        ({"divergence": "JSD"}, "did you mean 'jsd'?"),
        ({"losses": [{"name": "attention_KL"}]}, "did you mean 'attention_kl'?"),
        ({"attention": {"loss": "scores"}}, "choose 'kl', 'mse' or 'maps'"),
    ],
)
def test_a_choice_that_is_nearly_right_is_told_the_right_one(settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**settings)
    assert [problem.hint for problem in caught.value.problems] == [hint]

"""What a training asks for and a teacher does not say is told before a run, with the setting that asks for it."""

import itertools
from typing import Any, get_args

import pytest

from entrenar_core.config import parse_config
from entrenar_core.config.losses import DivergenceName
from entrenar_core.losses.table import LOSSES
from entrenar_core.models.wants import EMBEDDINGS, Wants
from entrenar_core.teachers.promises import of_cache, of_endpoint, of_graph, of_model, of_several, of_texts
from entrenar_core.teachers.signals import Signals, layers_in_words, unmet, unmet_together

ENDPOINT = of_endpoint(20)
TOP_K = of_cache({"name": "topk", "k": 9, "lowest": 1.0, "highest": 4.0}, Wants())
DRAWS = of_cache({"name": "sampled", "temperature": 2.0}, Wants())
HIDDEN = of_cache({"name": "hidden", "precision": "bfloat16"}, Wants(frozenset({0, 3}), frozenset({3})))
VECTORS = of_cache({"name": "vectors"}, Wants())
LIVE, GRAPH, SEVERAL, TEXTS = of_model("float32"), of_graph(), of_several(), of_texts()
ALL = (ENDPOINT, TOP_K, DRAWS, HIDDEN, LIVE, GRAPH, SEVERAL, TEXTS)
T2 = {"temperature": 2.0}


def problems(
    signals: Signals,
    distillation: dict[str, Any],
    *,
    wants: Wants | None = None,
    task: str = "causal-lm",
    **training: Any,
) -> list[tuple[str | None, str]]:
    config = parse_config(
        {
            "teacher": {"model_id": "t"},
            "student": {"model_id": "s"},
            "dataset": {"name": "d"},
            "distillation": distillation,
            "training": training,
        }
    )
    found = unmet(config, task, signals, wants)
    assert all(problem.hint for problem in found)
    return [(problem.where, problem.message) for problem in found]


@pytest.mark.parametrize("signals", ALL, ids=lambda signals: signals.who)
def test_labels_alone_ask_for_nothing(signals: Signals) -> None:
    assert problems(signals, {"losses": [{"name": "cross_entropy"}]}) == []


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_live_teacher_says_whatever_a_loss_asks_for(name: str) -> None:
    of_vectors = LOSSES[name].family == "vectors"
    live = of_model("float32", embeds=of_vectors)
    task = "embedding" if of_vectors else "causal-lm"
    assert problems(live, {"losses": [{"name": name}]}, task=task, diagnose_every=5) == []


@pytest.mark.parametrize(
    "distillation",
    [
        {"temperature": 1},
        {"temperature": 1, "divergence": "reverse_kl"},
        {"temperature": 1, "top_k": 20},
        {"temperature": {"schedule": "constant", "start": 1}},
        {"losses": [{"name": "forward_kl", "temperature": 1}, {"name": "cross_entropy"}]},
    ],
)
def test_what_needs_no_more_than_the_likeliest_at_temperature_1_is_served(distillation: dict[str, Any]) -> None:
    assert problems(ENDPOINT, distillation) == []


@pytest.mark.parametrize("name", get_args(DivergenceName))
@pytest.mark.parametrize("known", ["draws", "likeliest", "all"])
def test_a_loss_is_taught_by_who_knows_as_much_as_it_asks_for(known: str, name: str) -> None:
    order = ("draws", "likeliest", "all")
    signals = {"draws": DRAWS, "likeliest": TOP_K, "all": HIDDEN}[known]
    enough = order.index(known) >= order.index(LOSSES[name].known)
    assert (problems(signals, {"losses": [{"name": name, **T2}]}) == []) is enough


@pytest.mark.parametrize(
    ("signals", "distillation", "where", "message"),
    [
        (ENDPOINT, T2, "distillation.divergence",
         "another temperature than an endpoint knows, which is of temperature 1"),
        (ENDPOINT, {"temperature": {"schedule": "linear", "start": 3, "end": 1}}, "distillation.divergence",
         "another temperature"),
        (ENDPOINT, {"temperature": {"schedule": "linear", "start": 1, "end": 0.5}}, "distillation.divergence",
         "another temperature"),
        (ENDPOINT, {"temperature": 1, "top_k": 21}, "distillation.divergence",
         "`top_k` 21, and an endpoint has the likeliest 20 tokens"),
        (ENDPOINT, {"temperature": 1, "entropy_threshold": 0.5}, "distillation.divergence", "the teacher's entropy"),
        (ENDPOINT, {"temperature": 1, "exits": {"learn_from": "teacher", "divergence": "bild"}}, "distillation.exits",
         "likeliest tokens are to"),
        (ENDPOINT, {"losses": [{"name": "jsd", "temperature": 4}]}, "distillation.losses[0]", "another temperature"),
        (ENDPOINT, {"losses": [{"name": "cka"}]}, "distillation.losses[0]",
         "compares layers, and an endpoint shows none"),
        (TOP_K, {"temperature": 8}, "distillation.divergence", "temperatures from 1 to 4"),
        (TOP_K, T2 | {"top_k": 10}, "distillation.divergence", "the topk cache has the likeliest 9 tokens"),
        (DRAWS, {"temperature": 3}, "distillation.divergence", "drawn at temperature 2"),
        (DRAWS, {"temperature": {"schedule": "constant", "start": 2}}, "distillation.divergence", "at temperature 2"),
        (DRAWS, T2 | {"top_k": 5}, "distillation.divergence", "without bias"),
        (DRAWS, T2 | {"entropy_threshold": 0.5}, "distillation.divergence", "without bias"),
        (HIDDEN, {"losses": [{"name": "cka", "layers": "cka"}]}, "distillation.losses[0]", "looking at both models"),
        (GRAPH, {"progressive": {}}, "distillation.progressive", "an ONNX teacher shows none"),
        (SEVERAL, {"relations": {}}, "distillation.relations", "an ensemble shows none"),
        (VECTORS, {"losses": [{"name": "forward_kl"}]}, "distillation.losses[0]", "gives vectors of sentences"),
    ],
)  # fmt: skip
def test_what_needs_more_is_refused(signals: Signals, distillation: dict[str, Any], where: str, message: str) -> None:
    task = "embedding" if signals is VECTORS else "causal-lm"
    ((place, text),) = problems(signals, distillation, task=task)
    assert place == where
    assert message in text


@pytest.mark.parametrize("signals", [ENDPOINT, TOP_K, DRAWS], ids=lambda signals: signals.who)
def test_looking_at_whole_distributions_is_refused(signals: Signals) -> None:
    at = {"temperature": 1 if signals is ENDPOINT else 2}
    ((place, text),) = problems(signals, at, diagnose_every=10)
    assert place == "training.diagnose_every"
    assert "whole distribution" in text


def test_layers_that_were_not_kept_are_named() -> None:
    asked = {"losses": [{"name": "hidden_mse", "layers": [[0, 0], [1, 3]]}]}
    assert problems(HIDDEN, asked, wants=Wants(frozenset({0, 3}))) == []
    ((place, text),) = problems(HIDDEN, asked, wants=Wants(frozenset({EMBEDDINGS, 0, 5}), frozenset({3, 4})))
    assert place == "teacher.cache"
    assert "compare hidden states of the embeddings and layer 5 and attention of layer 4 of the teacher" in text


def test_sentence_encoders_are_taught_by_those_who_give_vectors() -> None:
    losses = {"losses": [{"name": "embedding_cosine"}]}
    for signals in (SEVERAL, LIVE):
        assert {where for where, _ in problems(signals, losses, task="embedding")} == {"task", "distillation.losses[0]"}
    for signals in (VECTORS, of_graph(embeds=True), of_texts(embeds=True)):
        assert problems(signals, losses, task="embedding") == []


def test_several_teachers_need_whole_distributions() -> None:
    assert list(unmet_together([LIVE, HIDDEN, GRAPH, TEXTS, None])) == []
    for place, signals in itertools.product((0, 1), (ENDPOINT, TOP_K, DRAWS)):
        members = [LIVE, LIVE]
        members[place] = signals
        (problem,) = unmet_together(members)
        assert problem.where == f"teacher.members[{place}]"
        assert signals.who in problem.message


def test_what_a_teacher_says_is_told_in_words() -> None:
    assert str(HIDDEN) == "whole distributions and hidden states of layers 0, 3 and attention of layer 3 in bfloat16"
    assert str(TOP_K) == "the likeliest 9 tokens in float16"
    assert str(DRAWS) == "draws at temperature 2 in float32"
    assert layers_in_words(Wants(frozenset({EMBEDDINGS}))) == "hidden states of the embeddings"

"""The solver against every plan there is: on memory that is made up, and on that of a tiny model."""

from dataclasses import asdict
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.memory.constants import constants_with
from entrenar_lora.planning import Wanted, values_of
from entrenar_lora.planning_jobs import Asked, Predictions
from entrenar_lora.planning_search import DIMENSIONS, FULL, Candidate, Search, preference
from entrenar_lora.profiles import profiles
from entrenar_lora.resolving import Subject
from memory_twins import held

WEIGHTS = {"none": 1600, "int8": 900, "nf4": 500}


def every(values: Any) -> set[Candidate]:
    """All plans."""
    found = set()
    for chosen in product(*values.values()):
        made = Candidate(**dict(zip(values, chosen, strict=True)))
        if made.method == FULL:
            made = Candidate(**{**asdict(made), "modules": None, "quantisation": None, "rank": None})
        found.add(made)
    return found


def made_up(one: Candidate) -> int | None:
    """Something that grows with what memory grows with, and where 8 bits of the optimiser have a cost of their own."""
    kept = one.micro_batch * (10 if one.checkpointing else 120)
    if one.method == FULL:
        return 6000 + kept + (0 if one.optimizer == "adamw-8bit" else 4000)
    assert one.rank is not None
    if one.rank > 128:
        return None
    wide = {"query-value": 1, "attention": 2, "all-linear": 5}[str(one.modules)]
    adapters = one.rank * wide * (1 + (one.method == "dora"))
    state = 30 + adapters if one.optimizer == "adamw-8bit" else 2 * adapters
    workspace = 0 if one.quantisation == "none" else 60
    return WEIGHTS[str(one.quantisation)] + adapters + state + kept + workspace


@given(
    st.sampled_from(["fast", "balanced", "best"]),
    st.sampled_from([1, 4, 6]),
    st.integers(0, 12_000),
    st.sampled_from(["auto", "full", "lora", "qlora", "dora"]),
)
def test_no_plan_that_fits_is_better(quality: Any, rows: int, limit: int, method: Any) -> None:
    values = values_of(profiles()[quality], Wanted(quality=quality, batch_size=rows, method=method))
    fitting = [one for one in every(values) if (needed := made_up(one)) is not None and needed <= limit]
    search = Search(values, made_up, limit)
    chosen, given_up = search.best()
    assert chosen == min(fitting, key=lambda one: preference(one, values), default=None)
    if chosen is None:
        smallest = search.smallest()
        least = min(needed for one in every(values) if (needed := made_up(one)) is not None)
        assert smallest is not None
        assert smallest[1] == least > limit
    for one in given_up:
        assert one.least_bytes is None or one.least_bytes > limit


@given(st.sampled_from(["fast", "balanced", "best"]), st.integers(0, 12_000), st.integers(0, 3000))
def test_more_memory_is_never_worse(quality: Any, limit: int, more: int) -> None:
    values = values_of(profiles()[quality], Wanted(quality=quality))
    small, large = (Search(values, made_up, bound).best()[0] for bound in (limit, limit + more))
    if small is not None:
        assert large is not None
        assert preference(large, values) <= preference(small, values)


def test_runners_up_are_the_best_without_what_was_chosen() -> None:
    values = values_of(profiles()["balanced"], Wanted())
    search = Search(values, made_up, 1400)
    chosen, _ = search.best()
    assert chosen is not None
    other, _ = search.best(without=("rank", chosen.rank))
    assert other is not None
    assert other.rank is not None
    assert chosen.rank is not None
    assert other.rank < chosen.rank
    assert preference(other, values) > preference(chosen, values)


def test_every_profile_values_everything_and_says_why() -> None:
    for profile in profiles().values():
        assert sorted(one.dimension for one in profile.values) == sorted(DIMENSIONS)
        assert all(one.why and one.source and one.order for one in profile.values)
        methods = next(one for one in profile.values if one.dimension == "method")
        assert FULL not in methods.order or profile.values[0] is methods, "full training has no rank and no modules"


def predictions(layers: int = 2) -> Predictions:
    model = held("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=layers)
    asked = Asked(Subject("tiny", model.config, "causal-lm"), 4, 16, "cuda", "bf16")
    return Predictions(asked, constants_with("cuda", None))


def assert_as_brute_force(values: Any) -> None:
    """At limits between the least and the most that plans need, on the memory that is predicted."""
    needs = {one: TINY.needs(one) for one in every(values)}
    known = sorted(needed for needed in needs.values() if needed is not None)
    for limit in (known[0] - 1, *known):
        search = Search(values, needs.__getitem__, limit)
        fitting = [one for one, needed in needs.items() if needed is not None and needed <= limit]
        assert search.best()[0] == min(fitting, key=lambda one: preference(one, values), default=None)
        assert search.asked <= len(needs)


FEW: Any = {
    "method": ["lora"],
    "modules": ["query-value"],
    "quantisation": ["none", "nf4"],
    "rank": [8, 2],
    "checkpointing": [False, True],
    "micro_batch": [4],
    "optimizer": ["adamw"],
}


def test_the_choice_for_a_real_model_is_that_of_brute_force() -> None:
    assert_as_brute_force(FEW)


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_so_it_is_of_many_plans(method: str) -> None:
    more = {"modules": ["all-linear", "query-value"], "micro_batch": [4, 1], "optimizer": ["adamw", "adamw-8bit"]}
    assert_as_brute_force({**FEW, **more, "method": [method]})


TINY = predictions()


@pytest.mark.nightly
def test_all_that_is_taken_for_granted_holds_of_a_tiny_model() -> None:
    values = values_of(profiles()["best"], Wanted(quality="best", batch_size=4))
    small: Any = {**values, "rank": [8, 4], "micro_batch": [4, 1]}
    for one in sorted(every(small), key=str):
        needed = TINY.needs(one)
        assert needed is not None
        if one.rank == 8:
            fewer = TINY.needs(Candidate(**{**asdict(one), "rank": 4}))
            assert fewer is not None
            assert fewer < needed
        if not one.checkpointing:
            with_checkpoints = TINY.needs(Candidate(**{**asdict(one), "checkpointing": True}))
            assert with_checkpoints is not None
            assert with_checkpoints <= needed

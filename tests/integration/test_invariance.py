"""The gradient of an optimiser step does not depend on how its rows were cut, padded, or dealt to processes."""

import itertools
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from datasets import Dataset
from safetensors.torch import load_file

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.losses import DIVERGENCES, LOSSES, Core, top_k, where_uncertain
from entrenar_core.models.rows import Counting
from entrenar_core.training.batches import StoredBatches
from entrenar_core.training.objective import Objective
from entrenar_core.training.step import DistillationStep
from first_steps import (
    HEADS,
    PACKED_TASKS,
    WORLD,
    Folders,
    Side,
    collator,
    cut_of,
    difference,
    entry,
    gradients,
    loaded,
    of_the_table,
    ragged_rows,
    row_terms,
    take_part,
)
from tiny_models import tiny_bert, tiny_llama

CUTS = [(1, 8), (2, 4), (8, 1)]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folders]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "causal-lm": (
            tiny_llama(folder / "llama-teacher", seed=1, initializer_range=0.2),
            tiny_llama(folder / "llama", seed=2, initializer_range=0.1),
        ),
        "sequence-classification": (
            tiny_bert(folder / "bert-teacher", num_labels=3, seed=1, initializer_range=0.2),
            tiny_bert(folder / "bert", num_labels=3, seed=2, initializer_range=0.1, **NO_DROPOUT),
        ),
        "masked-lm": (
            tiny_bert(folder / "masked-teacher", head="MaskedLM", seed=1, initializer_range=0.2),
            tiny_bert(folder / "masked", head="MaskedLM", seed=2, initializer_range=0.1, **NO_DROPOUT),
        ),
        "token-classification": (
            tiny_bert(folder / "tagger-teacher", head="TokenClassification", num_labels=3, seed=1,
                      initializer_range=0.2),
            tiny_bert(folder / "tagger", head="TokenClassification", num_labels=3, seed=2, initializer_range=0.1,
                      **NO_DROPOUT),
        ),
        "embedding": (
            tiny_bert(folder / "sentences-teacher", seed=1, initializer_range=0.3),
            tiny_bert(folder / "sentences", seed=2, hidden_size=16, num_hidden_layers=1, initializer_range=0.2,
                      **NO_DROPOUT),
        ),
    }  # fmt: skip


# A model with absolute positions, as BERT is, reads a row that is padded on the left as another one.
CASES = [
    ("causal-lm", "right"),
    ("causal-lm", "left"),
    ("masked-lm", "right"),
    ("sequence-classification", "right"),
    ("token-classification", "right"),
]


@pytest.mark.parametrize(("task", "side"), CASES)
@pytest.mark.parametrize("teacher_weight", [0.0, 0.5, 1.0])
def test_one_by_eight_two_by_four_and_eight_by_one_give_one_gradient(
    models: dict[str, Folders], tmp_path: Path, task: str, side: Side, teacher_weight: float
) -> None:
    one, two, eight = (
        gradients(task, models[task], tmp_path / str(cut), cut=cut, side=side, rows=row_terms(teacher_weight))
        for cut in CUTS
    )
    bound = 1e-6 if side == "right" else 2e-6  # other padding is other positions, and rotary angles are in 32 bits
    assert difference(two, eight) <= bound
    assert difference(one, eight) <= bound


SELECTIONS: dict[str, Callable[[Core], Core]] = {
    "all": lambda core: core,
    "likeliest": lambda core: top_k(core, 5),
    "scaled": lambda core: top_k(core, 5, tail=False),
    "uncertain": lambda core: where_uncertain(core, 5.61),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "selection"),
    [
        pair
        for pair in itertools.product(DIVERGENCES, SELECTIONS)
        if pair[0] not in ("bild", "cross_entropy_hard") or pair[1] not in ("likeliest", "scaled")
    ],
)
def test_no_divergence_depends_on_how_a_step_is_cut_and_padded(
    models: dict[str, Folders], tmp_path: Path, name: str, selection: str
) -> None:
    """In 64 bits, where what rounding does is far below what a wrong count would do."""
    core = SELECTIONS[selection](DIVERGENCES[name].make())
    cuts: list[tuple[tuple[int, int], Side, bool]] = [
        ((8, 1), "right", True),
        ((1, 8), "right", True),
        ((2, 4), "left", True),
        ((8, 1), "right", False),
    ]
    expected, *others = (
        gradients(
            "causal-lm", models["causal-lm"], tmp_path / f"{cut}{side}{tiled}", cut=cut, side=side, tiled=tiled,
            rows=row_terms(0.5, core), dtype=torch.float64,
        )
        for cut, side, tiled in cuts
    )  # fmt: skip
    for other, (_, side, _) in zip(others, cuts[1:], strict=True):
        assert difference(other, expected) <= (1e-9 if side == "right" else 1e-6), "rotary angles are in 32 bits"


# Those of sentence vectors are in test_sentences.py.
BETWEEN_LAYERS = [name for name, row in LOSSES.items() if row.family not in ("labels", "logits", "vectors")]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@pytest.mark.parametrize("name", BETWEEN_LAYERS)
def test_no_loss_between_layers_depends_on_how_a_step_is_cut_and_padded(
    models: dict[str, Folders], tmp_path: Path, name: str, task: str
) -> None:
    """Losses of groups are cut between groups of four rows."""
    whole = LOSSES[name].scope == "group"
    cuts: list[tuple[tuple[int, int], Side]] = [((8, 1), "right"), ((4, 2) if whole else (1, 8), "right")]
    cuts += [((4, 2), "left")] if task == "causal-lm" else []
    expected, *others = (
        gradients(task, models[task], tmp_path / f"{cut}{side}", cut=cut, side=side, dtype=torch.float64,
                  entries=[entry(name, task)])
        for cut, side in cuts
    )  # fmt: skip
    for other, (_, side) in zip(others, cuts[1:], strict=True):
        assert difference(other, expected) <= (1e-7 if side == "right" else 1e-5), "norms and angles are in 32 bits"


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_alone_depends_on_how_a_step_is_cut(models: dict[str, Folders], tmp_path: Path, name: str) -> None:
    """Every loss of the table, in 32 bits."""
    cuts = [(8, 1), (4, 2)] if LOSSES[name].scope == "group" else [(8, 1), (1, 8)]
    whole, other = (of_the_table(name, models, tmp_path / str(cut), cut, torch.float32) for cut in cuts)
    assert difference(other, whole) <= 1e-6


# The vectors of sentences can be compared as rows of layers are, in groups.
IN_GROUPS = [name for name in BETWEEN_LAYERS if LOSSES[name].family == "relations" and LOSSES[name].scope == "group"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_GROUPS)
def test_no_relation_of_vectors_depends_on_how_a_step_is_cut(
    models: dict[str, Folders], tmp_path: Path, name: str
) -> None:
    whole, other = (
        gradients("embedding", models["embedding"], tmp_path / str(cut), cut=cut, entries=[entry(name, "embedding")],
                  pool="mean", dtype=torch.float64)
        for cut in [(8, 1), (4, 2)]
    )  # fmt: skip
    assert difference(other, whole) <= 1e-7


@pytest.mark.slow
@pytest.mark.long
def test_no_loss_depends_on_how_many_processes_share_a_step(models: dict[str, Folders], tmp_path: Path) -> None:
    """Every loss of the table, alone; of 3 rows one rank has 2 and the other 1. And packed rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.spawn(take_part, args=(port, models, tmp_path), nprocs=WORLD)
    apart = {}
    for name in LOSSES:
        alone = of_the_table(name, models, tmp_path / "alone" / name, cut_of(name))
        both = [load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(WORLD)]
        apart[name] = max(difference(found, alone) for found in both)
    for task in PACKED_TASKS:
        alone = gradients(task, models[task], tmp_path / "alone" / task, cut=(8, 1), dtype=torch.float64)
        both = [load_file(tmp_path / f"{task}-{rank}.safetensors") for rank in range(WORLD)]
        apart[task] = max(difference(found, alone) for found in both)
    assert {name: value for name, value in apart.items() if value > 1e-6} == {}


# Eight examples of 58 tokens in one row, in three that are full, or in four; all of a step at once, or row by row.
PACKINGS = [(60, (1, 1)), (60, (8, 1)), (20, (1, 8)), (20, (2, 4)), (19, (3, 2))]


@pytest.mark.parametrize(("task", "side"), [case for case in CASES if case[0] != "sequence-classification"])
def test_how_examples_share_rows_does_not_reach_the_gradient(
    models: dict[str, Folders], tmp_path: Path, task: str, side: Side
) -> None:
    alone = gradients(task, models[task], tmp_path / "alone", cut=(8, 1))
    for capacity, cut in PACKINGS:
        out = tmp_path / f"{capacity}{cut}"
        packed = gradients(task, models[task], out, cut=cut, side=side, capacity=capacity)
        assert difference(packed, alone) <= (1e-6 if side == "right" else 2e-6), (capacity, cut)
    again = gradients(
        task, models[task], tmp_path / "again", cut=(2, 4), side=side, capacity=20, gradient_checkpointing=True
    )
    assert difference(again, alone) <= (1e-6 if side == "right" else 2e-6)


# Those of groups, and of the vectors of sentences, are refused beside a packing.
IN_PACKED_ROWS = [name for name, row in LOSSES.items() if row.scope != "group" and row.family != "vectors"]


@pytest.mark.parametrize("name", IN_PACKED_ROWS)
def test_no_loss_depends_on_how_examples_share_rows(models: dict[str, Folders], tmp_path: Path, name: str) -> None:
    """Every loss of the table that goes with a packing, alone, in 64 bits; also those that compare whole examples."""
    alone = of_the_table(name, models, tmp_path / "alone", (8, 1))
    for capacity, cut in ((60, (1, 1)), (20, (2, 4))):
        packed = of_the_table(name, models, tmp_path / str(capacity), cut, capacity=capacity)
        assert difference(packed, alone) <= 1e-6


# What is pooled, or weighed, over a whole example, also.
OF_ENCODERS = [{"name": name} for name in ("hidden_mse", "patient", "attention_maps", "attention_kl", "minilm")]
OF_ENCODERS += [{"name": "patient", "pool": pool} for pool in ("last", "mean", "tokens")]
OF_ENCODERS += [{"name": "attention_kl", "head_weights": weights} for weights in ("entropy", "variance", "learned")]


@pytest.mark.parametrize("wanted", OF_ENCODERS, ids=lambda wanted: "-".join(wanted.values()))
def test_no_loss_between_layers_of_an_encoder_depends_on_how_examples_share_rows(
    models: dict[str, Folders], tmp_path: Path, wanted: dict[str, str]
) -> None:
    alone, packed = (
        gradients("masked-lm", models["masked-lm"], tmp_path / str(capacity), cut=cut, capacity=capacity,
                  dtype=torch.float64, entries=[entry(wanted["name"], "masked-lm") | wanted])
        for capacity, cut in ((None, (8, 1)), (20, (2, 4)))
    )  # fmt: skip
    assert difference(packed, alone) <= 1e-6


def test_a_packing_without_positions_or_a_mask_of_its_own_would_not_pass(
    models: dict[str, Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = gradients("masked-lm", models["masked-lm"], tmp_path / "alone", cut=(8, 1))
    monkeypatch.setattr("entrenar_core.models.calling.kept_apart", lambda _packed: nullcontext())
    mixed = gradients("masked-lm", models["masked-lm"], tmp_path / "mixed", cut=(8, 1), capacity=60)
    assert difference(mixed, alone) > 1e-2


def test_the_side_of_the_padding_does_not_reach_the_gradient(models: dict[str, Folders], tmp_path: Path) -> None:
    left, right = (
        gradients("causal-lm", models["causal-lm"], tmp_path / side, cut=(8, 1), side=side)
        for side in ("left", "right")
    )
    assert difference(left, right) <= 2e-6  # rotary angles are of other positions, which rounds differently


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_recomputed_activations_give_the_same_gradient(models: dict[str, Folders], tmp_path: Path, task: str) -> None:
    plain, recomputed = (
        gradients(task, models[task], tmp_path / str(on), cut=(8, 1), gradient_checkpointing=on) for on in (False, True)
    )
    assert difference(recomputed, plain) <= 1e-6


def test_logits_of_masked_tokens_in_tiles_give_the_gradient_of_those_at_once(
    models: dict[str, Folders], tmp_path: Path
) -> None:
    tiled, whole = (
        gradients("masked-lm", models["masked-lm"], tmp_path / str(tiled), cut=(8, 1), tiled=tiled)
        for tiled in (True, False)
    )
    assert difference(tiled, whole) <= 1e-6


@pytest.mark.parametrize("task", [*HEADS])
def test_means_of_micro_batches_would_not_pass(models: dict[str, Folders], tmp_path: Path, task: str) -> None:
    whole = gradients(task, models[task], tmp_path, cut=(8, 1), rows=row_terms(0.0))
    student = loaded(task, models[task][1]).train()
    batches = StoredBatches(
        Dataset.from_list(ragged_rows(task)), collator(), TrainingConfig(batch_size=2, gradient_accumulation=4)
    )
    objective = Objective(Counting(shifted=task == "causal-lm"), row_terms(0.0))
    step = DistillationStep(student, objective)
    for batch in next(batches.steps(0)):
        (step(batch, None, objective.at(0, 1, objective.counts([batch]))).loss / 4).backward()
    means = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
    assert difference(means, whole) > 1e-2

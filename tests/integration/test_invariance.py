"""The gradient of an optimiser step does not depend on how its rows were cut into micro-batches or padded."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import IGNORED, Collator
from entrenar_core.data.masking import Masking
from entrenar_core.losses import DIVERGENCES, LOSSES, Core, layer_pairs, top_k, where_uncertain
from entrenar_core.losses.divergence import forward_kl_core
from entrenar_core.models.loading import seeded
from entrenar_core.models.output_layer import OutputLayer, output_layer_of
from entrenar_core.models.rows import Counting
from entrenar_core.teachers.precomputed import LiveTeacher
from entrenar_core.training.batches import StoredBatches
from entrenar_core.training.layer_terms import LayerTerm, make_layer_term
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.losses import sizes_of
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep
from tiny_models import tiny_bert, tiny_llama

CUTS = [(1, 8), (2, 4), (8, 1)]
Side = Literal["left", "right"]
Row = dict[str, Any]
Gradients = Mapping[str, Tensor]
HEADS = {
    "causal-lm": "CausalLM",
    "masked-lm": "MaskedLM",
    "sequence-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
}
LANGUAGE = ("causal-lm", "masked-lm")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def loaded(task: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    return getattr(transformers, f"AutoModelFor{HEADS[task]}").from_pretrained(folder, dtype=dtype)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
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
    }  # fmt: skip


def ragged_rows(task: str, num_rows: int = 8) -> list[Row]:
    """Rows of 1 to 19 tokens. Of a classifier every third has no label; of a language model some are a prompt.

    A word is two tokens; where words are tagged, every third has no tag.
    """
    random = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for index, length in enumerate([5, 1, 19, 3, 8, 2, 13, 7][:num_rows]):
        ids = torch.randint(5, 100, (length,), generator=random).tolist()
        prompt = index % 4
        tokens = [IGNORED] * min(prompt, length) + ids[prompt:]
        row: Row = {"input_ids": ids, "row": index, "length": length}
        if task == "masked-lm":
            row["words"] = [at // 2 for at in range(length)]
        elif task == "token-classification":
            row["targets"] = [at % 2 == 0 for at in range(length)]
            row["labels"] = [IGNORED if at % 2 or (index + at // 2) % 3 == 0 else at % 3 for at in range(length)]
        else:
            row["labels"] = tokens if task == "causal-lm" else IGNORED if index % 3 == 0 else index % 3
        rows.append(row)
    return rows


def collator(side: Side = "right") -> Collator:
    """As many words as not are masked, so that rows differ in how many count."""
    return Collator(0, side, Masking(4, tuple(range(5, 100)), 0.5, 3))


def output_of(model: Any) -> OutputLayer:
    ids = torch.tensor([[5, 6, 7]])
    found = output_layer_of(model, ids, torch.ones_like(ids))
    assert found is not None
    return found


def terms(teacher_weight: float, divergence: Core = forward_kl_core) -> tuple[RowTerm, ...]:
    return (
        RowTerm("soft", teacher_weight, divergence, 2.0),
        RowTerm("labels", 1 - teacher_weight, smoothing=0.1),
    )


def layer_term(name: str, student: Any, teacher: Any) -> LayerTerm:
    """The loss as an entry of a configuration makes it; its projections are the same each time."""
    groups: dict[str, Any] = {"group_size": 4} if LOSSES[name].scope == "group" else {}
    if name == "attention_maps":  # norms leave no gradient in the sum of squares
        groups = {"power": 3.0}
    (term,) = terms_of(DistillationSection.model_validate({"losses": [{"name": name, "layers": "uniform", **groups}]}))
    sizes = sizes_of(student), sizes_of(teacher)
    pairs = layer_pairs("uniform", sizes[0].num_layers, sizes[1].num_layers)
    with seeded(0):
        return make_layer_term(term, pairs, *sizes)


def gradients(
    task: str,
    folders: tuple[Path, Path],
    out: Path,
    *,
    cut: tuple[int, int],
    side: Side = "right",
    teacher_weight: float = 0.5,
    divergence: Core = forward_kl_core,
    tiled: bool = True,
    dtype: torch.dtype = torch.float32,
    between_layers: str | None = None,
    **training: Any,
) -> Gradients:
    """Those that the first step of the real loop gives to its optimiser; of a language model, in tiles if wanted.

    `between_layers` is a loss in place of those on logits, whose projections have gradients too.
    """
    accelerator = Accelerator(cpu=True)
    teacher, student = loaded(task, folders[0], dtype).eval(), loaded(task, folders[1], dtype)

    counting = Counting(shifted=task == "causal-lm")
    outputs = [output_of(model) if tiled and task in LANGUAGE else None for model in (teacher, student)]
    said = LiveTeacher(teacher, accelerator, counting, outputs[0])
    settings = TrainingConfig(
        batch_size=cut[0], gradient_accumulation=cut[1], max_steps=1, max_grad_norm=None, **training
    )
    objective = Objective(counting, terms(teacher_weight, divergence))
    if between_layers is not None:
        objective = Objective(counting, (), (layer_term(between_layers, student, teacher).to(dtype),))
    step = DistillationStep(student, objective, outputs[1])
    loop = Loop(
        step,
        StoredBatches(Dataset.from_list(ragged_rows(task)), collator(side), settings),
        said.listening(objective.wants(1)),
        accelerator,
        LoopSettings(settings, out, checkpoint_every=9, keep=1, evaluate=_unused, score=_unused),
        (),
        StopRequest(),
    )
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        found.update({name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None})

    loop.optimizer.register_step_pre_hook(keep)
    loop.run(resume=False)
    return found


def _unused(*_: object) -> Any:
    raise AssertionError("nothing is evaluated here")


def difference(actual: Gradients, expected: Gradients) -> float:
    """max|Δg| / max|g|"""
    assert actual.keys() == expected.keys()
    assert expected
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    return max(float((actual[name] - expected[name]).abs().max()) for name in expected) / largest


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
    models: dict[str, tuple[Path, Path]], tmp_path: Path, task: str, side: Side, teacher_weight: float
) -> None:
    one, two, eight = (
        gradients(task, models[task], tmp_path / str(cut), cut=cut, side=side, teacher_weight=teacher_weight)
        for cut in CUTS
    )
    assert difference(two, eight) <= 1e-6
    assert difference(one, eight) <= 1e-6


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
        if pair not in {("bild", "likeliest"), ("bild", "scaled")}
    ],
)
def test_no_divergence_depends_on_how_a_step_is_cut_and_padded(
    models: dict[str, tuple[Path, Path]], tmp_path: Path, name: str, selection: str
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
            "causal-lm", models["causal-lm"], tmp_path / f"{cut}{side}{tiled}", cut=cut, side=side, divergence=core,
            tiled=tiled, dtype=torch.float64,
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
    models: dict[str, tuple[Path, Path]], tmp_path: Path, name: str, task: str
) -> None:
    """Losses of groups are cut between groups of four rows."""
    whole = LOSSES[name].scope == "group"
    cuts: list[tuple[tuple[int, int], Side]] = [((8, 1), "right"), ((4, 2) if whole else (1, 8), "right")]
    cuts += [((4, 2), "left")] if task == "causal-lm" else []
    expected, *others = (
        gradients(task, models[task], tmp_path / f"{cut}{side}", cut=cut, side=side, dtype=torch.float64,
                  between_layers=name)
        for cut, side in cuts
    )  # fmt: skip
    for other, (_, side) in zip(others, cuts[1:], strict=True):
        assert difference(other, expected) <= (1e-7 if side == "right" else 1e-5), "norms and angles are in 32 bits"


def test_the_side_of_the_padding_does_not_reach_the_gradient(
    models: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    left, right = (
        gradients("causal-lm", models["causal-lm"], tmp_path / side, cut=(8, 1), side=side)
        for side in ("left", "right")
    )
    assert difference(left, right) <= 2e-6  # rotary angles are of other positions, which rounds differently


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_recomputed_activations_give_the_same_gradient(
    models: dict[str, tuple[Path, Path]], tmp_path: Path, task: str
) -> None:
    plain, recomputed = (
        gradients(task, models[task], tmp_path / str(on), cut=(8, 1), gradient_checkpointing=on) for on in (False, True)
    )
    assert difference(recomputed, plain) <= 1e-6


def test_logits_of_masked_tokens_in_tiles_give_the_gradient_of_those_at_once(
    models: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    tiled, whole = (
        gradients("masked-lm", models["masked-lm"], tmp_path / str(tiled), cut=(8, 1), tiled=tiled)
        for tiled in (True, False)
    )
    assert difference(tiled, whole) <= 1e-6


@pytest.mark.parametrize("task", [*HEADS])
def test_means_of_micro_batches_would_not_pass(models: dict[str, tuple[Path, Path]], tmp_path: Path, task: str) -> None:
    whole = gradients(task, models[task], tmp_path, cut=(8, 1), teacher_weight=0.0)
    student = loaded(task, models[task][1]).train()
    batches = StoredBatches(
        Dataset.from_list(ragged_rows(task)), collator(), TrainingConfig(batch_size=2, gradient_accumulation=4)
    )
    objective = Objective(Counting(shifted=task == "causal-lm"), terms(0.0))
    step = DistillationStep(student, objective)
    for batch in next(batches.steps(0)):
        (step(batch, None, objective.at(0, 1, objective.counts([batch]))).loss / 4).backward()
    means = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
    assert difference(means, whole) > 1e-2

"""The loop by itself: what it does when numbers are none, and that no good checkpoint is lost to them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Collator
from entrenar_core.errors import TrainingError
from entrenar_core.models.rows import Counting
from entrenar_core.reports import Scores
from entrenar_core.training.batches import StoredBatches
from entrenar_core.training.callbacks import Callback, StepMetrics
from entrenar_core.training.finite import largest
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep


class Fragile(nn.Module):
    """A classifier whose loss depends on the square root of a weight, which has no gradient at zero."""

    def __init__(self, root: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.root = nn.Parameter(torch.tensor([root]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits_C = self.bias + torch.stack([self.root.sqrt()[0], self.bias[1]])
        return SimpleNamespace(logits=logits_C.expand(len(input_ids), 2))


class Breaking(Callback):
    """Does to a weight what a step that overflows would do."""

    def __init__(self, model: Fragile, step: int) -> None:
        self.model, self.step = model, step

    def on_step(self, metrics: StepMetrics) -> None:
        if metrics.step == self.step:
            self.model.root.data.fill_(float("inf"))


def loop(
    model: nn.Module,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    evaluate: Callable[[], Any] = lambda: pytest.fail("not asked for"),
    score: Callable[[Any], float] = lambda _: 0.0,
    **training: Any,
) -> Loop:
    rows = [{"input_ids": [row + 1], "labels": row % 2, "length": 1, "row": row} for row in range(4)]
    config = TrainingConfig(batch_size=4, max_steps=3, schedule="constant", weight_decay=0.0, **training)
    settings = LoopSettings(config, folder, 1, 1, evaluate=evaluate, score=score)
    step = DistillationStep(model, Objective(Counting(shifted=False), (RowTerm("cross_entropy"),)))
    batches = StoredBatches(datasets.Dataset.from_list(rows), Collator(0), config)
    return Loop(step, batches, None, Accelerator(cpu=True), settings, callbacks, StopRequest())


@pytest.mark.parametrize("limit", [1.0, None])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path, limit: float | None) -> None:
    model = Fragile(0.0)
    with pytest.raises(
        TrainingError, match=r"the gradient norm is (inf|nan) at step 1, in the batch of rows"
    ) as raised:
        loop(model, tmp_path, max_grad_norm=limit).run(resume=False)
    assert "there was no checkpoint before it" in str(raised.value)
    assert largest(model) == 0.0


def test_weights_that_a_step_breaks_are_not_saved(tmp_path: Path) -> None:
    model = Fragile(1.0)
    with pytest.raises(TrainingError, match=r"the largest weight is inf at step 2") as raised:
        loop(model, tmp_path, callbacks=[Breaking(model, step=2)]).run(resume=False)
    kept = tmp_path / "checkpoints" / "step-00000001"
    assert f"the last good checkpoint is {kept}" in str(raised.value)
    assert list(kept.parent.iterdir()) == [kept]
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "model.safetensors").values())


def test_the_largest_weight_is_found_whatever_its_sign_and_a_nan_is_not_overlooked() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight[0, 1] = -7.0
        assert largest(model) == 7.0
        model[0].bias[0] = float("nan")
        assert largest(model) != largest(model)


@pytest.mark.parametrize(("patience", "outcome"), [(1, (1, None, True)), (2, (3, 2, False))])
def test_a_score_that_is_no_number_is_never_the_best_and_counts_against_patience(
    tmp_path: Path, patience: int, outcome: tuple[int, int | None, bool]
) -> None:
    values = iter([math.nan, -1.0, math.nan])
    training = {"eval_every": 1, "select": "best", "early_stopping": {"patience": patience}}
    scored = loop(
        Fragile(1.0),
        tmp_path,
        evaluate=lambda: Scores(4, 4, next(values), 0.5),
        score=lambda scores: scores.cross_entropy,
        **training,
    )
    progress = scored.run(resume=False)
    assert (progress.step, progress.best_step, progress.stopped_early) == outcome

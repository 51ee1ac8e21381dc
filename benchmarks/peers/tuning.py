"""What training an adapter costs a step: the loop of a fine-tuning beside one written by hand with peft and torch.

The two take turns, step by step, in one process: a callback of ours runs the other's step, so that what else the
machine does weighs on both alike. Both read rows, pad them, compute the loss, clip, step AdamW and look at the loss;
ours also writes metrics. Both adapters begin with the same numbers, and that the losses agree is checked.
"""

import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from loop import BLOCK, ROWS, Turns, blocks, llama, rows, training
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from entrenar_core.config.adapters import LoraAdapter
from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Collator
from entrenar_core.data.ordering import epoch_batches
from entrenar_core.models.adapted import adapt, trained_tensors
from entrenar_core.models.output_layer import output_layer_of
from entrenar_core.models.rows import Counting
from entrenar_core.training.batches import StoredBatches
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep

RANK = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SIZES = ((2, 64), (4, 256))
"""Layers and their width; the smaller, the more weighs what is not the model."""


class ByHand:
    """The same training as anyone would write it with peft and torch."""

    def __init__(self, model: Any, data: Any, settings: TrainingConfig) -> None:
        wanted = LoraConfig(r=RANK, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        self.model, self.data, self.settings = get_peft_model(model, wanted).train(), data, settings
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        total = settings.max_steps or 1
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / total)
        self.batches = self._batches()
        self.losses: list[float] = []

    def begin_as(self, other: nn.Module) -> None:
        """With the numbers of another adapter of the same kind."""
        own = {name.removeprefix("base_model.model."): one for name, one in self.model.named_parameters()}
        with torch.no_grad():
            for name, tensor in trained_tensors(other).items():
                own[name].copy_(tensor)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        size, epoch = self.settings.batch_size, 0
        while True:
            order = epoch_batches(ROWS, batch_size=size, seed=self.settings.seed, epoch=epoch, lengths=None)
            yield from DataLoader(self.data, batch_sampler=order, collate_fn=self._padded)
            epoch += 1

    def _padded(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.zeros(len(items), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, item in enumerate(items):
            ids[index, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
            mask[index, : len(item["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def step(self) -> None:
        batch = next(self.batches)
        logits = self.model(**batch, use_cache=False).logits
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.settings.max_grad_norm or math.inf)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())


def turns_of(layers: int, hidden: int, steps: int) -> Turns:
    """Trains two equal adapters, ours and theirs by turns, to the same losses."""
    data, settings = rows(2000, 64, None), training(steps, 8)
    torch.manual_seed(0)
    base: Any = llama(layers, hidden)
    torch.manual_seed(0)
    by_hand = ByHand(llama(layers, hidden), data, settings)
    ours = adapt(base, LoraAdapter(rank=RANK, target_modules=TARGETS), "causal-lm", "llama")
    by_hand.begin_as(ours)
    turns = Turns(by_hand)
    batches = StoredBatches(data, Collator(pad_token_id=0), settings)
    ids_BT = torch.arange(8).reshape(1, -1)
    output = output_layer_of(base, ids_BT, torch.ones_like(ids_BT))
    with tempfile.TemporaryDirectory() as folder:
        kept = LoopSettings(settings, Path(folder), 10**9, 1, evaluate=_never, score=lambda _: 0.0)
        step = DistillationStep(ours, Objective(Counting(shifted=True), (RowTerm("cross_entropy"),)), output)
        Loop(step, batches, None, Accelerator(cpu=True), kept, [turns], StopRequest()).run(resume=False)
    differ = max(abs(a - b) for a, b in zip(turns.losses[:20], by_hand.losses[:20], strict=True))
    if differ > 1e-3:
        raise SystemExit(f"the two loops do not do the same: losses differ by {differ:.2g}")
    return turns


def _never() -> Any:
    raise AssertionError("nothing asks for an evaluation here")


def steps_per_second(steps: int) -> dict[str, tuple[float, float, float]]:
    """Of models of some sizes: our steps a second, those of the other, and the median of the ratio of blocks."""
    transformers.logging.set_verbosity_error()
    found = {}
    for layers, hidden in SIZES:
        turns = turns_of(layers, hidden, steps)
        ours, theirs = blocks(turns.ours_s), blocks(turns.theirs_s)
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        rates = [BLOCK / statistics.median(times) for times in (ours, theirs)]
        found[f"{layers} layers of {hidden}"] = (rates[0], rates[1], ratio)
    return found

"""What the training loop costs: time per step against a loop written by hand with the same models, data and losses.

The two take turns, step by step, in one process: a callback of ours runs the other's step, so that what else the
machine does weighs on both alike. Both read rows, pad them, ask the teacher, compute both losses, clip, step AdamW and
look at the loss; ours also writes metrics. Checkpoints and evaluations are outside. That the losses agree is checked.
"""

import importlib.util
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Batch, Collator
from entrenar_core.data.ordering import epoch_batches
from entrenar_core.losses.divergence import forward_kl_core
from entrenar_core.losses.targets import Logits
from entrenar_core.models.rows import Counting
from entrenar_core.teachers.source import Said
from entrenar_core.training.batches import StoredBatches
from entrenar_core.training.callbacks import Callback, StepMetrics
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep

BOUND = 1.05
BLOCK = 10  # steps; one line of metrics in each
ALPHA, TEMPERATURE = 0.9, 2.0
ROWS = 2000


@dataclass(frozen=True)
class Case:
    """Models, rows and how many steps. `teacher` maps ids, mask and row numbers to logits."""

    name: str
    student: Callable[[], nn.Module]
    teacher: Callable[[Tensor, Tensor, Tensor], Tensor]
    rows: Any
    training: TrainingConfig
    causal: bool


def rows(vocabulary: int, longest: int, classes: int | None) -> Any:
    """Random rows of 5 to `longest` tokens, with a class, or with their own tokens as labels."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, longest + 1, (ROWS,), generator=random).tolist()
    ids = [torch.randint(5, vocabulary, (length,), generator=random).tolist() for length in lengths]
    labels = ids if classes is None else torch.randint(0, classes, (ROWS,), generator=random).tolist()
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "length": lengths, "row": range(ROWS)})


def training(steps: int, batch_size: int) -> TrainingConfig:
    return TrainingConfig(max_steps=steps, batch_size=batch_size, log_every=BLOCK, learning_rate=1e-3)


def live(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A teacher that reads the batches."""
    model.eval().requires_grad_(False)

    def logits(ids: Tensor, mask: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask).logits  # type: ignore[no-any-return]

    return logits


def at_hand(classes: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A teacher whose answers are known, as that of the quickstart."""
    answers = torch.randn(ROWS, classes, generator=torch.Generator().manual_seed(1))
    return lambda _ids, _mask, row_numbers: answers[row_numbers]


def bert(layers: int, hidden: int, classes: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=2000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_labels=classes,
        num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def llama(layers: int, hidden: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=2000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def real_student(folder: Path) -> nn.Module:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=33, **dropout)  # type: ignore[no-any-return]


def cases(quick: bool) -> Iterator[Case]:
    """The smallest first: there, what is not model weighs most."""
    steps = 40 if quick else 200
    yield Case(
        "classifier of 2 layers of 32, answers at hand", lambda: bert(2, 32, 8), at_hand(8), rows(2000, 24, 8),
        training(2 * steps, 32), causal=False,
    )  # fmt: skip
    yield Case(
        "language model of 2 layers of 64, live teacher of 4", lambda: llama(2, 64), live(llama(4, 64)),
        rows(2000, 64, None), training(steps, 8), causal=True,
    )  # fmt: skip
    spec = importlib.util.find_spec("cognition")
    if spec is None or not spec.submodule_search_locations:
        print("the quickstart's student is not installed (dependency group `models`), and is left out")
        return
    folder = Path(spec.submodule_search_locations[0]) / "model"
    yield Case(
        "the quickstart's student (4.4 M), answers at hand", lambda: real_student(folder), at_hand(33),
        rows(30000, 32, 33), training(steps, 32), causal=False,
    )  # fmt: skip


class ByHand:
    """The same training as anyone would write it with torch alone."""

    def __init__(self, case: Case, student: nn.Module) -> None:
        self.case, self.student = case, student.train()
        decayed = [p for p in student.parameters() if p.ndim >= 2]
        others = [p for p in student.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": case.training.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=case.training.learning_rate,
            fused=True,
        )
        total = case.training.max_steps or 1
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / total)
        self.batches = self._batches()
        self.losses: list[float] = []

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        size, seed, epoch = self.case.training.batch_size, self.case.training.seed, 0
        while True:
            order = epoch_batches(ROWS, batch_size=size, seed=seed, epoch=epoch, lengths=None)
            yield from DataLoader(self.case.rows, batch_sampler=order, collate_fn=self._padded)
            epoch += 1

    def _padded(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.zeros(len(items), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, item in enumerate(items):
            ids[index, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
            mask[index, : len(item["input_ids"])] = 1
        labels = ids.masked_fill(mask == 0, -100) if self.case.causal else torch.tensor([x["labels"] for x in items])
        return {"ids": ids, "mask": mask, "labels": labels, "rows": torch.tensor([item["row"] for item in items])}

    def step(self) -> None:
        batch = next(self.batches)
        teacher = self.case.teacher(batch["ids"], batch["mask"], batch["rows"])
        logits, labels = self.student(input_ids=batch["ids"], attention_mask=batch["mask"]).logits, batch["labels"]
        if self.case.causal:
            counted = labels[:, 1:] != -100
            logits, teacher, labels = logits[:, :-1][counted], teacher[:, :-1][counted], labels[:, 1:][counted]
        soft = functional.kl_div(
            (logits / TEMPERATURE).log_softmax(-1), (teacher / TEMPERATURE).log_softmax(-1),
            reduction="batchmean", log_target=True,
        ) * TEMPERATURE**2  # fmt: skip
        loss = ALPHA * soft + (1 - ALPHA) * functional.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.case.training.max_grad_norm or math.inf)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())


class Stepping(Protocol):
    """A loop by hand; `losses` are those of its steps."""

    losses: list[float]

    def step(self) -> None:
        """Takes one."""


class Turns(Callback):
    """Takes the time of each of our steps, then of the other's."""

    def __init__(self, by_hand: Stepping) -> None:
        self.by_hand = by_hand
        self.ours_s: list[float] = []
        self.theirs_s: list[float] = []
        self.losses: list[float] = []
        self.since = time.perf_counter()

    def on_step(self, metrics: StepMetrics) -> None:
        """Our step is over: now theirs."""
        now = time.perf_counter()
        self.ours_s.append(now - self.since)
        self.losses.append(metrics.loss)
        began = time.perf_counter()
        self.by_hand.step()
        self.theirs_s.append(time.perf_counter() - began)
        self.since = time.perf_counter()


def measure(case: Case) -> Turns:
    """Trains two equal students, ours and theirs by turns, to the same losses."""
    torch.manual_seed(0)
    ours = case.student()
    torch.manual_seed(0)
    turns = Turns(ByHand(case, case.student()))
    batches = StoredBatches(case.rows, Collator(pad_token_id=0), case.training)
    counting = Counting(shifted=case.causal)
    terms = (RowTerm("forward_kl", ALPHA, forward_kl_core, TEMPERATURE), RowTerm("cross_entropy", 1 - ALPHA))

    def said(batch: Batch) -> Said:
        logits = case.teacher(batch.input_ids_BT, batch.attention_mask_BT, batch.rows_B)
        return Said(Logits(counting.rows(logits, batch)))

    with tempfile.TemporaryDirectory() as folder:
        settings = LoopSettings(case.training, Path(folder), 10**9, 1, evaluate=_never, score=lambda _: 0.0)
        loop = Loop(
            DistillationStep(ours, Objective(counting, terms)),
            batches,
            said,
            Accelerator(cpu=True),
            settings,
            [turns],
            StopRequest(),
        )
        loop.run(resume=False)
    differ = max(abs(a - b) for a, b in zip(turns.losses[:20], turns.by_hand.losses[:20], strict=True))
    if differ > 1e-3:
        raise SystemExit(f"{case.name}: the two loops do not do the same: losses differ by {differ:.2g}")
    return turns


def _never() -> Any:
    raise AssertionError("nothing asks for an evaluation here")


def blocks(times: list[float]) -> list[float]:
    """The seconds of each whole block, without the first, which warms up."""
    return [sum(times[start : start + BLOCK]) for start in range(BLOCK, len(times) - BLOCK + 1, BLOCK)]


def main() -> int:
    """Measures, prints a line for each case, and returns 1 where one is over the bound."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = False
    for case in cases(quick="--quick" in sys.argv[1:]):
        turns = measure(case)
        ours, theirs = blocks(turns.ours_s), blocks(turns.theirs_s)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        low, high = (statistics.median(times) / BLOCK * 1e3 for times in (theirs, ours))
        over = ratio > BOUND
        print(
            f"{case.name}: {high:.2f} ms a step, by hand {low:.2f} ms, ratio {ratio:.3f} (bound {BOUND})"
            f"{' FAILED' if over else ''}"
        )
        failed |= over
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""The same distillation by entrenar's command and by TRL's GKDTrainer, each watched step by step.

Both train the same student on the same batches in the same order, with AdamW, a rate that falls linearly, the gradient
clipped to 1, in fp32 and without gradient checkpointing. The loss is the forward KL over all tokens at temperature 1.
"""

import itertools
import json
import statistics
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY, LENGTH, BATCH, SEED = 32_000, 174, 4, 42
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CORPUS_BYTES = 12_000_000


@dataclass(frozen=True)
class Job:
    """What both are given."""

    folder: Path
    steps: int
    length: int = LENGTH
    batch: int = BATCH
    warm_up: int = 2
    """Steps before those that are measured."""

    @property
    def rows(self) -> Path:
        return self.folder / "data" / "train.jsonl"


def prepare(job: Job) -> None:
    """Writes a teacher of 4 layers of 256, a student of 2 of 128, their tokenizer, and rows for each step."""
    import torch
    import transformers

    texts = list(_sources())
    tokenizer = _tokenizer(texts)
    for name, layers, width, scale in (("teacher", 4, 256, 0.1), ("student", 2, 128, 0.02)):
        torch.manual_seed(layers)
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, initializer_range=scale,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(job.folder / name)
        tokenizer.save_pretrained(job.folder / name)
    long = list(itertools.islice((text for text in texts if len(text) > 12 * LENGTH), job.steps * BATCH + 1))
    job.rows.parent.mkdir()
    job.rows.write_text("".join(json.dumps({"text": text[: 12 * LENGTH]}) + "\n" for text in long[1:]))
    (job.rows.parent / "validation.jsonl").write_text(json.dumps({"text": long[0][: 12 * LENGTH]}) + "\n")


def _sources() -> Iterator[str]:
    """Modules of the standard library, as many as the tokenizer needs."""
    total = 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in file.parts or "test" in file.parts:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        total += len(text)
        yield text
        if total > CORPUS_BYTES:
            return


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIALS.values()),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == VOCABULARY, "the corpus is large enough"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **SPECIALS)


class Watch:
    """Takes CPU time and peak memory of steps after the first ones, which warm up."""

    def __init__(self, warm_up: int) -> None:
        from peers.measuring import reset_peak, resident_bytes

        self.warm_up, self.reset_peak = warm_up, reset_peak
        self.before_bytes = resident_bytes()
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []
        self.losses: list[float] = []
        self.peak_bytes = 0

    def step(self, loss: float | None = None) -> None:
        """A step is over."""
        from peers.measuring import peak_bytes

        self.cpu_s.append(time.process_time())
        self.wall_s.append(time.perf_counter())
        if loss is not None:
            self.losses.append(loss)
        if len(self.cpu_s) == self.warm_up:
            self.reset_peak()
        elif len(self.cpu_s) > self.warm_up:
            self.peak_bytes = peak_bytes()

    def steps(self) -> tuple[list[float], list[float]]:
        """CPU and wall seconds of each step that is measured."""
        cpu_s, wall_s = (
            [b - a for a, b in itertools.pairwise(times[self.warm_up - 1 :])] for times in (self.cpu_s, self.wall_s)
        )
        return cpu_s, wall_s

    def result(self, job: Job) -> dict[str, Any]:
        """Medians of the steps, and the peak over what was there before."""
        cpu_s, wall_s = map(statistics.median, self.steps())
        return {
            "cpu_s_per_step": cpu_s,
            "wall_s_per_step": wall_s,
            "tokens_per_cpu_s": job.batch * job.length / cpu_s,
            "peak_bytes": self.peak_bytes - self.before_bytes,
            "losses": self.losses,
        }


def watched(arguments: Sequence[str], warm_up: int | None) -> Watch:
    """`entrenar-distill run`, in this process so that its display, which is told of each step, can be watched.

    Where it is not said how many steps warm up, half of them do.
    """
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama  # noqa: F401 - as below

    import entrenar_core.training.distillation  # noqa: F401 - memory is counted from after the imports
    from entrenar_distill import running
    from entrenar_distill.cli import main

    watch = Watch(warm_up or 0)

    class Watched(running.Display):
        def on_step(self, metrics: Any) -> None:
            watch.warm_up = metrics.total_steps // 2 if warm_up is None else warm_up
            watch.step(metrics.loss)

    running.Display = Watched  # type: ignore[misc]
    status = main(["--quiet", "run", *arguments])
    if status:
        raise SystemExit(f"the run ended with status {status}")
    return watch


def entrenar(job: Job) -> dict[str, Any]:
    """Our side."""
    file = job.folder / "distill.yaml"
    file.write_text(json.dumps({
        "task": "causal-lm",
        "teacher": {"model_id": str(job.folder / "teacher")},
        "student": {"model_id": str(job.folder / "student")},
        "distillation": {"temperature": 1.0, "alpha": 1.0, "divergence": "forward_kl"},
        "dataset": {"path": str(job.rows.parent), "eval_split": "validation", "eval_rows": 1, "max_length": job.length},
        "training": {
            "max_steps": job.steps, "batch_size": job.batch, "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY, "max_grad_norm": 1.0, "seed": SEED, "log_every": 1,
        },
        "output": {"dir": str(job.folder / "out")},
    }))  # fmt: skip
    return watched([str(file)], job.warm_up).result(job)


def trl(job: Job) -> dict[str, Any]:
    """GKDTrainer with lmbda 0, which learns from the rows as they are, and beta 0, the forward KL."""
    return watched_trl(job).result(job)


def watched_trl(job: Job) -> Watch:
    """The same, step by step."""
    import datasets
    import torch
    import transformers
    import transformers.models.llama.modeling_llama
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from entrenar_core.data.ordering import epoch_batches

    watch = Watch(job.warm_up)

    class Watched(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                watch.losses.append(float(logs["loss"]))

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([item["input_ids"] for item in items])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

    tokenizer = transformers.AutoTokenizer.from_pretrained(job.folder / "student")
    rows = [json.loads(line)["text"] for line in job.rows.read_text().splitlines()]
    epochs = (
        epoch_batches(len(rows), batch_size=job.batch, seed=SEED, epoch=epoch)
        for epoch in range(job.steps * job.batch // len(rows))
    )
    order = itertools.chain.from_iterable(itertools.chain.from_iterable(epochs))
    ids = [tokenizer(rows[i])["input_ids"][: job.length] for i in order]
    assert {len(row) for row in ids} == {job.length}, "rows are long enough"
    student, teacher = (
        transformers.AutoModelForCausalLM.from_pretrained(job.folder / name) for name in ("student", "teacher")
    )
    settings = GKDConfig(
        output_dir=str(job.folder / "trl"), max_steps=job.steps, per_device_train_batch_size=job.batch,
        learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=1.0, lr_scheduler_type="linear",
        warmup_steps=0, lmbda=0.0, beta=0.0, use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        logging_steps=1, save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True, seed=SEED,
        train_sampling_strategy="sequential", max_length=job.length,
    )  # fmt: skip
    trainer = GKDTrainer(
        student, teacher, settings, data_collator=collate, processing_class=tokenizer, callbacks=[Watched()],
        train_dataset=datasets.Dataset.from_dict({"input_ids": ids}),
    )  # fmt: skip
    trainer.train()
    return watch


SIDES = {"entrenar": entrenar, "TRL GKD": trl}

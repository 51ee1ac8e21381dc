"""The one schema of a distillation. Every key has one meaning, and it is stated here; unknown keys are errors.

Older spellings are turned into this one by `spellings.py` before validation. The reference page of the settings
is generated from the descriptions below.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from entrenar_core.config.adapters import DtypeName, Quantization, StudentLora
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.losses import RowPool
from entrenar_core.config.teachers import ModelSource, Teacher
from entrenar_core.config.types import (
    Count,
    Folder,
    Fraction,
    Index,
    MixName,
    NonNegative,
    Positive,
    Probability,
    Rate,
    Section,
    Seed,
    Switch,
    Text,
    Weight,
)

Task = Literal["causal-lm", "masked-lm", "sequence-classification", "token-classification", "embedding"]
OutputFormat = Literal["safetensors", "gguf", "apr", "apr-json", "onnx"]
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # what accelerate's LoggerType offers; a test compares them


def _layers(value: object) -> object:
    """One message for both forms, where a union would report the failure of each."""
    indices = value if isinstance(value, list | tuple) else [value]
    if not indices or not all(type(index) is int and index >= 0 for index in indices) or value == 0:
        raise ValueError("should be a list of layer indices such as [0, 2, 4], or how many layers to copy")
    return value


class InitFrom(Section):
    """Starts the student as a copy of the teacher: of some of its layers, of a part of their width, or both."""

    teacher_layers: Annotated[int | tuple[int, ...], BeforeValidator(_layers)] | None = Field(
        None,
        title="a whole number, or a list of them",
        description="Indices of the teacher's layers to copy, in order, or how many; all if not given.",
    )
    layers_from: Literal["uniform", "first", "last"] = Field(
        "uniform", description="Which layers a number of them means: spaced evenly, the first ones or the last ones."
    )
    hidden_size: Count | None = Field(None, description="Width of the student's residual stream; else the teacher's.")
    num_heads: Count | None = Field(
        None, description="Attention heads, of the teacher's size; as many as the teacher's or as `hidden_size` holds."
    )
    num_kv_heads: Count | None = Field(
        None, description="Key and value heads; so many that each serves as many heads as in the teacher."
    )
    intermediate_size: Count | None = Field(None, description="Width of the feed-forward layers; else the teacher's.")
    width: Literal["truncate", "interpolate", "importance"] = Field(
        "importance",
        description="What is kept of a width: its first numbers, heads and neurons, a mixture of neighbours, or those "
        "that matter most.",
    )
    importance: Literal["activation", "magnitude"] = Field(
        "activation",
        description="By what it shows what matters: what the teacher does on the first training rows, or its weights.",
    )
    embeddings: Literal["slice", "svd"] = Field(
        "slice",
        description="How the embeddings, and with them the residual stream, become narrower: as `width` says, or "
        "turned into their principal directions, which unties the head.",
    )


class StudentConfig(ModelSource):
    """The model to train: a reference, an architecture given by sizes, or layers of the teacher."""

    model_id: Text | None = Field(None, description="A pretrained student: a reference as for the teacher.")
    init_from: InitFrom | None = Field(None, description="Copy layers of the teacher, whole or narrower.")
    architecture: Text | None = Field(
        None,
        description="Family of a student given by sizes, such as `llama`; `transformer` is the teacher's family. Or a "
        "known model, which brings its sizes: `tinyllama-1.1b`, `distilbert`, `small-1b` or `tiny-500m`.",
    )
    hidden_size: Count | None = Field(None, description="Width of a student given by sizes.")
    num_layers: Count | None = Field(None, description="Depth of a student given by sizes.")
    num_heads: Count | None = Field(None, description="Attention heads of a student given by sizes.")
    num_kv_heads: Count | None = Field(
        None, description="Key and value heads; as many as attention heads if not given."
    )
    intermediate_size: Count | None = Field(
        None, description="Width of the feed-forward layers; 4 × hidden if not given."
    )
    dropout: Probability | None = Field(
        None, description="Every dropout probability of the student in training; the model's own if not given."
    )
    pooling: RowPool | None = Field(
        None, description="As `teacher.pooling`; the teacher's for layers of it, if not given."
    )
    lora: StudentLora | None = Field(
        None, description="Train low-rank adapters of a pretrained student in place of all of its weights."
    )
    quantization: Quantization | None = Field(
        None, description="Hold the frozen weights of a student with adapters in 4 or 8 bits (QLoRA)."
    )
    dtype: DtypeName = Field(
        "float32", description="Precision of frozen weights in memory, beside adapters; what trains is in 32 bits."
    )

    @property
    def adapter(self) -> StudentLora | None:
        """What trains in place of all weights, if that is switched on."""
        return self.lora if self.lora is not None and self.lora.enabled else None


class DatasetConfig(Section):
    """The rows to learn from and the rows to be judged on."""

    source: Literal["huggingface", "local", "builtin"] | None = Field(
        None, description="Where `name` or `path` is looked up; found from them if not given."
    )
    name: Text | None = Field(
        None, description="Name on the Hub or of a built-in; with `path`, only what reports call it."
    )
    subset: Text | None = Field(None, description="Configuration of a Hub data set that has several.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    path: Text | None = Field(
        None, description="A parquet, json, jsonl, csv, tsv or txt file, a folder of them, or a pattern."
    )
    split: Text = Field("train", description="Split to train on.")
    eval_split: Text | None = Field(None, description="Split to evaluate on; else rows are held out of `split`.")
    eval_fraction: Fraction | None = Field(
        None, description="Share of `split` held out for evaluation, of a classifier's labelled rows; 0.1 if not given."
    )
    eval_rows: Count | None = Field(
        None, description="At most this many evaluation rows; when streaming, the first rows."
    )
    max_rows: Count | None = Field(None, description="Use only the first rows of `split`.")
    labelled_rows: Count | None = Field(
        None, description="Keep the labels of this many training rows, drop the others'."
    )
    streaming: Switch = Field(False, description="Read rows as they are needed instead of all at the start.")
    text_column: Text = Field("text", description="Column of the text.")
    label_column: Text = Field(
        "label", description="Column of the class, or of a list of one tag a word; empty where a row has no label."
    )
    tokens_column: Text = Field("tokens", description="Column of the words that are tagged, a list of them.")
    prompt_column: Text | None = Field(None, description="Column of a prompt, which is read but not learnt.")
    completion_column: Text | None = Field(None, description="Column of what follows the prompt, which is learnt.")
    reasoning_column: Text | None = Field(
        None, description="Column of a reasoning between prompt and completion, which is learnt, too."
    )
    reasoning_weight: Weight = Field(1.0, description="What the losses of a token of the reasoning count.")
    completion_weight: Weight = Field(1.0, description="What those of a token of the completion count beside it.")
    messages_column: Text | None = Field(None, description="Column of chats: lists of `{role, content}`.")
    mask_probability: Fraction = Field(
        0.15, description="Share of the words of a row that a masked language model has to tell."
    )
    route_column: Text | None = Field(
        None, description="Column that says which of several teachers teaches a row (`teacher.members[].rows`)."
    )
    max_length: Count = Field(512, description="Tokens of a row; what is longer is cut.")
    packing: Switch = Field(
        False, description="Put several examples into each training row of `max_length` tokens, kept apart."
    )
    num_proc: Count = Field(1, description="Processes that tokenise.")


class EarlyStopping(Section):
    """Stops when evaluation has not improved for a while."""

    patience: Count = Field(description="Evaluations in a row without improvement before stopping.")
    min_delta: NonNegative = Field(0.0, description="Smallest change of the score that counts as improvement.")


OptimizerName = Literal["adamw", "adamw-8bit", "sgd", "adafactor"]


class TrainingConfig(Section):
    """How the student is trained."""

    epochs: Count = Field(
        3,
        description="Passes over the training rows. A stream is read on for as many usable rows as it has rows.",
    )
    max_steps: Count | None = Field(None, description="Stop after this many optimiser steps, whatever `epochs` says.")
    batch_size: Count = Field(
        32,
        description="Rows in a forward and backward pass, over all processes together; with `dataset.packing`, rows "
        "of several examples.",
    )
    gradient_accumulation: Count = Field(1, description="Passes in an optimiser step.")
    eval_batch_size: Count | None = Field(None, description="Rows in an evaluation pass; `batch_size` if not given.")
    optimizer: OptimizerName = Field(
        "adamw",
        description="AdamW; the same with its state in 8 bits, by bitsandbytes; SGD without momentum, which keeps no "
        "state; Adafactor, which keeps a row and a column of each matrix.",
    )
    learning_rate: Rate = Field(1e-4, description="Peak learning rate.")
    weight_decay: Weight = Field(0.01, description="The optimiser's decay of weights; norms and biases are spared.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after warm-up.")
    warmup_steps: Index = Field(0, description="Optimiser steps over which the learning rate rises from 0.")
    max_grad_norm: Positive | None = Field(1.0, description="Clip the gradient to this norm; null: do not clip.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Autocast of the student and the teacher.")
    gradient_checkpointing: Switch = Field(False, description="Recompute activations in the backward pass.")
    group_by_length: Switch = Field(False, description="Batch rows of similar length together, to pad less.")
    dataloader_workers: Index = Field(0, description="Processes that prepare batches.")
    log_every: Count = Field(10, description="Optimiser steps between lines of metrics.jsonl.")
    diagnose_every: Count | None = Field(
        None,
        description="Optimiser steps between looks at gradients and at the distance to the teacher; none if not given.",
    )
    eval_every: Count | None = Field(
        None, description="Optimiser steps between evaluations; only at the end if not given."
    )
    select: Literal["last", "best"] = Field(
        "last", description="Which weights become the result: the last, or the best."
    )
    early_stopping: EarlyStopping | None = Field(None, description="Stop when evaluation stops improving.")
    trackers: tuple[Tracker, ...] = Field(
        (),
        title="a list such as [tensorboard]",
        description="Experiment trackers of accelerate that also get the metrics.",
    )
    seed: Seed = Field(42, description="Seed of everything random.")
    baseline: Switch = Field(
        False, description="Also train the student on the labels alone, to show what the teacher adds."
    )

    @property
    def evaluation_batch_size(self) -> int:
        """Rows in an evaluation pass."""
        return self.eval_batch_size or self.batch_size


class OutputConfig(Section):
    """What is written where."""

    dir: Folder = Field(Path("distilled"), description="Folder of the result, made if it is not there.")
    formats: Annotated[tuple[OutputFormat, ...], Field(min_length=1, title="a list such as [safetensors, gguf]")] = (
        Field(("safetensors",), description="File formats of the student; safetensors is always among them.")
    )
    quantize: MixName | None = Field(
        None, description="What the weights of a GGUF are quantised to; as they were trained if not given."
    )
    verify: Switch = Field(
        False, description="Run the GGUF in llama.cpp, and warn where it does not answer as the student does."
    )
    checkpoint_every: Count | None = Field(
        None, description="Optimiser steps between checkpoints; a tenth of the run if not given."
    )
    merge: Switch = Field(
        False,
        description="Merge an adapter into the weights that it belongs to, as a model in the folder `merged`, of which "
        "further formats are made.",
    )
    keep: Count = Field(2, description="How many checkpoints stay, the newest first; the best weights stay besides.")


class DistillationConfig(Section):
    """A whole distillation, as written in a YAML file."""

    task: Task | None = Field(None, description="What the student learns to do; found from the models if not given.")
    teacher: Teacher = Field(description="What to learn from.")
    student: StudentConfig
    distillation: DistillationSection = DistillationSection()
    dataset: DatasetConfig
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()

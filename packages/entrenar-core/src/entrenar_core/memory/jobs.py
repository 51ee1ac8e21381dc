"""What memory is predicted for: models as they are held, and a training or a generation with them.

A job is data. Whoever asks (a configuration, a command line, a planner of adapters) makes one, and `predict` answers.
Models are given by their configuration alone; no weight is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from entrenar_core.config.schema import OptimizerName

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from entrenar_core.config.adapters import AnyAdapter, Quantization
    from entrenar_core.config.desugaring import Term

LoadIn = Literal["nf4", "fp4", "int8"]
Attention = Literal["sdpa", "eager"]
MixedPrecision = Literal["no", "bf16", "fp16"]
Strategy = Literal["ddp", "zero1", "zero2", "fsdp"]
DeviceType = Literal["cpu", "cuda", "mps"]
CacheKind = Literal["hidden", "topk", "sampled", "logits"]

SEQ2SEQ = "seq2seq-lm"
"""The task of an encoder with a decoder, which entrenar does not train, but whose memory can be told."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model in memory.

    `load_in` quantises its linear layers as bitsandbytes does, with `double_quantized` constants or not; these then
    compute in `compute_dtype`, that of the other weights if not given. `stored_bytes` is what its weights take in a
    file that is used as it is, such as a GGUF.
    """

    name: str
    config: "PreTrainedConfig"
    task: str
    dtype: str = "float32"
    load_in: LoadIn | None = None
    double_quantized: bool = False
    compute_dtype: str | None = None
    attention: Attention = "sdpa"
    stored_bytes: int | None = None
    trust_remote_code: bool = False

    def quantised(self, how: "Quantization") -> "HeldModel":
        """The same with its linear layers quantised."""
        return replace(
            self,
            load_in=how.load_in,
            double_quantized=how.double_quantization and how.bits == 4,
            compute_dtype=how.compute_dtype,
        )


@dataclass(frozen=True, slots=True)
class CachedSignals:
    """What a cache says of a position in place of the teacher: as many tokens as `count`, or a hidden state; and what
    of it is held in memory all the time.
    """

    kind: CacheKind
    count: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Spreading:
    """How the weights of a model that is only read lie on several devices of one process: `how` is `auto`, `balanced`,
    `sequential`, `cpu` (where it then computes) or a table of modules; each of `devices` has `room_bytes` for them, and
    `host_bytes` are in main memory, without a limit if not given.
    """

    how: str | Mapping[str, int | str]
    devices: int
    room_bytes: int
    host_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Teaching:
    """A teacher: its model, live unless `cached`, how many rows it reads at once, and where its parts lie, if not all
    beside the student.
    """

    model: HeldModel
    batch_size: int | None = None
    cached: CachedSignals | None = None
    spreading: Spreading | None = None


@dataclass(frozen=True, slots=True)
class Sharding:
    """How many devices share a training, and what each of them has of the models; `offload` keeps weights and the
    optimiser's state in main memory.
    """

    devices: int = 1
    strategy: Strategy = "ddp"
    offload: bool = False


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Optimiser steps of a student, with teachers or without.

    `batch_size` are the rows of a forward and backward pass over all devices together, `length` the tokens of the
    longest row, and `counted` the positions that losses count in a batch of one device: all of them, if not given.
    Where it is `padded`, some rows are shorter, and attention needs a mask. `terms` are the losses; the cross-entropy
    with labels, if none is given. `adapters` train in place of all weights. With `all_logits` logits are all there at
    once, as in programs without a fused loss. `evaluation_rows` are read in an evaluation while the optimiser's state
    is there.
    """

    student: HeldModel
    batch_size: int
    length: int
    teachers: tuple[Teaching, ...] = ()
    terms: "tuple[Term, ...] | None" = None
    counted: int | None = None
    padded: bool = True
    adapters: "AnyAdapter | None" = None
    optimizer: OptimizerName = "adamw"
    mixed_precision: MixedPrecision = "no"
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    all_logits: bool = False
    evaluation_rows: int | None = None
    device: DeviceType = "cpu"
    sharding: Sharding = Sharding()

    @property
    def positions(self) -> int:
        """Of the longest row, with the virtual tokens that adapters put before it."""
        before = getattr(self.adapters, "method", None) in _BEFORE_ROWS
        return self.length + (getattr(self.adapters, "virtual_tokens", 0) if before else 0)


_BEFORE_ROWS = ("prompt", "prefix")


@dataclass(frozen=True, slots=True)
class InferenceJob:
    """The reading of `context` tokens of each of `batch_size` rows and the writing of one more, with the keys and
    values of all of them kept in `cache_dtype`.
    """

    model: HeldModel
    batch_size: int
    context: int
    cache_dtype: str | None = None
    device: DeviceType = "cpu"
    sharding: Sharding = Sharding()
    spreading: Spreading | None = None


@dataclass(frozen=True, slots=True)
class ReadingJob:
    """A teacher that reads rows before a training, and is gone when it begins."""

    model: HeldModel
    batch_size: int
    length: int
    mixed_precision: MixedPrecision = "no"
    padded: bool = True
    device: DeviceType = "cpu"
    spreading: Spreading | None = None


Job = TrainingJob | ReadingJob | InferenceJob

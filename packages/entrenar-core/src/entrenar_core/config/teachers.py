"""The `teacher` section: a model, several of them, a server, or the student's own past."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from entrenar_core.config.losses import RowPool
from entrenar_core.config.types import (
    Count,
    Decay,
    Folder,
    Positive,
    Rate,
    Section,
    Size,
    Switch,
    Text,
    Texts,
)
from entrenar_core.teachers.cache.settings import Precision

WeightFormatName = Literal["safetensors", "gguf", "pytorch", "onnx"]
DtypeName = Literal["float32", "bfloat16", "float16"]
LoadIn = Literal["nf4", "fp4", "int8"]
DeviceMapName = Literal["auto", "balanced", "sequential", "cpu"]


class ProbeFinetuning(Section):
    """Fits a linear head on the teacher's frozen, mean-pooled, normalised embeddings of the labelled rows."""

    method: Literal["probe"] = Field(description="Leaves the teacher as it is.")
    l2: Positive | None = Field(
        None, description="Strength of the L2 penalty; chosen by cross-validation if not given."
    )


class GradientFinetuning(Section):
    """Trains the teacher's classification head, or the whole teacher, on the labelled rows."""

    method: Literal["head", "full"] = Field(description="What is trained.")
    epochs: Count = Field(3, description="Passes over the labelled rows.")
    learning_rate: Rate = Field(5e-5, description="Peak learning rate.")
    batch_size: Count = Field(32, description="Labelled rows in an optimiser step.")


Finetuning = Annotated[ProbeFinetuning | GradientFinetuning, Field(discriminator="method")]


class ModelSource(Section):
    """Where the weights of a model come from."""

    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub model.")
    format: WeightFormatName | None = Field(None, description="Which weights to take where there are several kinds.")
    files: Texts | None = Field(None, description="Which weight files to take, by name.")
    allow_pickle: Switch = Field(False, description="Read PyTorch `.bin` files, which are pickles (`weights_only`).")
    trust_remote_code: Switch = Field(False, description="Run the Python code that comes with the model.")


_DEVICE = re.compile(r"cpu|disk|mps|(?:cuda|xpu)(?::\d+)?")


def _device_map(value: object) -> object:
    """One message for both forms, where a union would report the failure of each."""
    named = isinstance(value, str) and value in get_args(DeviceMapName)
    table = isinstance(value, Mapping) and value and all(map(_is_place, value.items()))
    if not (named or table):
        raise ValueError(
            "should be auto, balanced, sequential, cpu, or a table of modules, each with the number of a GPU, cpu or "
            "disk"
        )
    return value


def _is_place(entry: tuple[object, object]) -> bool:
    module, device = entry
    number = type(device) is int and device >= 0
    return isinstance(module, str) and (number or (isinstance(device, str) and _DEVICE.fullmatch(device) is not None))


class CacheUse(Section):
    """What the teacher said once, on disk or in memory, in place of asking it in every epoch."""

    dir: Folder | None = Field(
        None, description="What `entrenar-distill cache build` kept of it: the teacher itself is then not loaded."
    )
    missing: Literal["refuse", "live"] = Field(
        "refuse", description="Rows that the folder lacks: refuse the run, or load the teacher and let it read them."
    )
    memory: Size | None = Field(
        None, description="In place of a folder: let the teacher read every row before training, and hold so much."
    )
    precision: Precision = Field("float32", description="Of what is held in memory.")


class TeacherConfig(ModelSource):
    """A model to learn from."""

    TAG: ClassVar = "model"

    model_id: Text = Field(
        description="`org/name[@revision]`, a folder, a `.gguf` or `.onnx` file, or `pkg://package/path`."
    )
    dtype: DtypeName = Field("float32", description="Precision of the teacher's weights in memory.")
    load_in: LoadIn | None = Field(
        None,
        description="Quantise the teacher's linear layers with bitsandbytes as it is loaded; its head, embeddings and "
        "norms stay at `dtype`, which is what it computes in.",
    )
    device_map: Annotated[DeviceMapName | dict[str, int | str], BeforeValidator(_device_map)] | None = Field(
        None,
        title="auto, balanced, sequential, cpu, or a table of modules and devices",
        description="Where the teacher's parts are: spread over the GPUs, and what does not fit in main memory and on "
        "disk, or as a table says, such as `{model.layers.0: 0, model.layers.1: cpu}`. If not given, the teacher is on "
        "one device, the student's.",
    )
    batch_size: Count | None = Field(
        None, description="Rows that the teacher reads at once; those that the student reads, if not given."
    )
    finetune: Finetuning | None = Field(None, description="Fit the teacher to the labelled rows before it teaches.")
    pooling: RowPool | None = Field(
        None,
        description="Which vector is a sentence's: of its first or last token, or their mean; as its folder says, or "
        "mean, if not given.",
    )
    cache: CacheUse | None = Field(None, description="Ask it once; or the folder alone, as `cache: ./teacher-cache`.")


def _as_texts(value: object) -> object:
    """Values of a column may be numbers."""
    return [str(item) if type(item) is int else item for item in value] if isinstance(value, list | tuple) else value


class MemberTeacher(TeacherConfig):
    """One of several teachers."""

    weight: Positive = Field(1.0, description="Of its probabilities beside those of the others; together they are 1.")
    rows: Annotated[Texts | None, BeforeValidator(_as_texts)] = Field(
        None, description="With `dataset.route_column`: the values of that column in the rows that it teaches."
    )


class EnsembleTeacher(Section):
    """Several teachers, whose probabilities are averaged, or of which each teaches rows of its own."""

    TAG: ClassVar = "ensemble"
    members: Annotated[tuple[MemberTeacher, ...], Field(min_length=2, title="a list of at least two teachers")] = Field(
        description="The teachers."
    )
    weighting: Literal["fixed", "confidence", "learned"] = Field(
        "fixed",
        description="Weights as the members say; times exp(−entropy) of each in each row; or those with which they "
        "tell the labels of the training rows best.",
    )


class EndpointTeacher(Section):
    """A model that a server runs, which tells the log-probabilities of the likeliest tokens."""

    TAG: ClassVar = "endpoint"
    endpoint: Text = Field(description="Where its `/completions` is: `http://127.0.0.1:8080/v1`.")
    model: Text = Field(description="Which of the models that it serves.")
    top_logprobs: Count = Field(20, description="How many of the likeliest tokens it is asked for at each position.")
    concurrency: Count = Field(4, description="How many rows it is asked for at once.")
    api_key_env: Text | None = Field(
        None,
        description="Environment variable that holds its key; `OPENAI_API_KEY` where it is set, and only to this "
        "machine or over https, if not given.",
    )
    timeout_s: Positive = Field(120.0, description="How long one answer may take, in seconds.")
    patience_s: Positive = Field(
        300.0, description="How long a server that fails is asked again, in seconds, once it has answered."
    )
    cache: CacheUse | None = Field(None, description="As of a model.")


class MovingAverage(Section):
    """How slowly the average follows the student."""

    decay: Decay = Field(0.999, description="What of the average stays in an optimiser step; the rest is the student.")
    warmup: Switch = Field(True, description="Begin with less, (1 + step) ÷ (10 + step), while the student is young.")


class MovingAverageTeacher(Section):
    """The exponential moving average of the student's own weights."""

    TAG: ClassVar = "moving_average"
    moving_average: MovingAverage = Field(description="How slowly it follows.")


def _kind(value: Any) -> str:
    """Which of them a section means, by the setting that it alone has."""
    for kind in (EnsembleTeacher, EndpointTeacher, MovingAverageTeacher):
        own = next(iter(kind.model_fields))
        if isinstance(value, kind) or (isinstance(value, dict) and own in value):
            return str(kind.TAG)
    return str(TeacherConfig.TAG)


Teacher = Annotated[
    Annotated[TeacherConfig, Tag(TeacherConfig.TAG)]
    | Annotated[EnsembleTeacher, Tag(EnsembleTeacher.TAG)]
    | Annotated[EndpointTeacher, Tag(EndpointTeacher.TAG)]
    | Annotated[MovingAverageTeacher, Tag(MovingAverageTeacher.TAG)],
    Discriminator(_kind),
]

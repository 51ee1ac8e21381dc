"""The schema of a fine-tuning: a model that learns from labels alone, by adapters or as a whole.

Its data set, training and output are those of a distillation.
"""

from pathlib import Path

from pydantic import Field

from entrenar_core.config.adapters import Adapter, DtypeName, LoraAdapter, Quantization, StudentLora
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.config.schema import DatasetConfig, OutputConfig, StudentConfig, Task, TrainingConfig
from entrenar_core.config.teachers import ModelSource, TeacherConfig
from entrenar_core.config.types import Folder, Probability, Section, Text


class TunedModel(ModelSource):
    """The model that is trained."""

    model_id: Text = Field(description="`org/name[@revision]`, a folder, a `.gguf` file, or `pkg://package/path`.")
    dtype: DtypeName = Field(
        "float32", description="Precision of frozen weights in memory; what trains is always in 32 bits."
    )
    quantization: Quantization | None = Field(None, description="Hold frozen weights in 4 or 8 bits (QLoRA).")
    dropout: Probability | None = Field(
        None, description="Every dropout probability of the model in training; its own if not given."
    )


class TunedOutput(OutputConfig):
    """What is written where."""

    dir: Folder = Field(Path("finetuned"), description="Folder of the result, made if it is not there.")


class FineTuneConfig(Section):
    """A whole fine-tuning, as written in a YAML file."""

    task: Task | None = Field(None, description="What the model learns to do; found from the model when not given.")
    model: TunedModel
    adapter: Adapter | None = Field(None, description="What trains in place of all weights; all of them, if not given.")
    dataset: DatasetConfig
    training: TrainingConfig = TrainingConfig()
    output: TunedOutput = TunedOutput()


def as_run(config: FineTuneConfig) -> OneTeacher:
    """A fine-tuning as most of the program reads it: a student that learns from labels alone. The model stands in for
    the teacher, which nobody asks.
    """
    model = config.model
    source = {name: getattr(model, name) for name in ModelSource.model_fields}
    lora = config.adapter if isinstance(config.adapter, LoraAdapter) else None
    return OneTeacher(
        task=config.task,
        teacher=TeacherConfig(model_id=model.model_id, **source),
        student=StudentConfig(
            model_id=model.model_id,
            **source,
            dropout=model.dropout,
            lora=None if lora is None else StudentLora(**lora.model_dump(exclude={"method"})),
            quantization=model.quantization,
            dtype=model.dtype,
        ),
        distillation=DistillationSection(alpha=0.0),
        dataset=config.dataset,
        training=config.training,
        output=config.output,
    )

"""A teacher's model, loaded as the configuration says: its weights by transformers, or an ONNX graph by onnxruntime."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import Accelerator
from torch import nn

from entrenar_core.formats import WeightFormat
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.loading import load_model
from entrenar_core.models.placing import Placing, is_quantized
from entrenar_core.models.teacher_rules import told

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation


@dataclass(frozen=True, slots=True)
class LoadedTeacher:
    """A model with how many parameters its files have. `copyable` is what a student may copy layers from, if the model
    is that.
    """

    model: nn.Module
    parameters: int
    copyable: "PreTrainedModel | None"
    notes: tuple[str, ...] = ()


def load_teacher(prepared: "Preparation", accelerator: Accelerator) -> LoadedTeacher:
    """The teacher before it is fitted to anything.

    Raises:
        ModelError: it cannot be loaded.
    """
    if prepared.teacher.format is WeightFormat.ONNX:
        return _onnx(prepared, accelerator)
    settings, placing = prepared.config.teacher, placing_of(prepared, accelerator)
    model = load_whole(prepared) if placing is None else load_whole(prepared, placing)
    notes = [f"the teacher is {said}"] if (said := told(prepared.teacher.format, settings)) else []
    return LoadedTeacher(model, _count(model), model if placing is None else None, tuple(notes))


def placing_of(prepared: "Preparation", accelerator: Accelerator) -> Placing | None:
    """How the teacher is quantised and where its parts go, if it is or they do."""
    settings = prepared.config.teacher
    if settings.load_in is None and settings.device_map is None:
        return None
    return Placing(settings.load_in, settings.device_map, accelerator.device)


def _count(model: "PreTrainedModel") -> int:
    """Also of a model whose weights share bytes: as transformers counts them."""
    return int(model.num_parameters()) if is_quantized(model) else parameter_count(model)


def load_whole(prepared: "Preparation", placing: Placing | None = None) -> "PreTrainedModel":
    """The teacher's weights at `teacher.dtype`, on the CPU without `placing`; raises as `load_model`."""
    settings = prepared.config.teacher
    return load_model(
        prepared.teacher,
        prepared.task,
        dtype=settings.dtype,
        label_names=prepared.label_names,
        trust_remote_code=settings.trust_remote_code,
        seed=prepared.config.training.seed,
        pad_token_id=prepared.teacher_tokenizer.pad_token_id,
        placing=placing,
    )


def _onnx(prepared: "Preparation", accelerator: Accelerator) -> LoadedTeacher:
    from entrenar_core.models.onnx_model import load_onnx

    model = load_onnx(prepared.teacher, prepared.task, accelerator.device)
    on_cpu = accelerator.device.type != "cpu" and model.provider == "CPUExecutionProvider"
    slow = f"the teacher runs on the CPU: this onnxruntime has nothing for {accelerator.device.type}"
    notes = (f"the teacher is {told(WeightFormat.ONNX, prepared.config.teacher)}", *((slow,) if on_cpu else ()))
    return LoadedTeacher(model, model.num_parameters, None, notes)

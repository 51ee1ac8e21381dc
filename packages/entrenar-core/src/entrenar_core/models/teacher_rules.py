"""What the way a teacher is loaded rules out; without torch, so that `validate` answers at once."""

from collections.abc import Iterator
from importlib.util import find_spec

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.config.teachers import ModelSource, TeacherConfig
from entrenar_core.errors import Problem
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.onnx import read_graph
from entrenar_core.models.onnx_rules import NO_RUNTIME, SENTENCE, check_graph, has_runtime, output_of

_IS_ONNX = "the teacher is ONNX"
_NO_MATTER = {
    "dtype": "has the precision that it was exported in",
    "load_in": "has the precision that it was exported in",
    "device_map": "onnxruntime runs on one device",
}
_OTHER = "or take the teacher in safetensors or GGUF"


def has_bitsandbytes() -> bool:
    """Whether bitsandbytes is there; it is not imported."""
    return find_spec("bitsandbytes") is not None


def no_bitsandbytes(what: str) -> tuple[str, str]:
    """What is wrong where bitsandbytes is missing, and what to do; `what` needs it."""
    message = f"{what} needs bitsandbytes, which is not installed"
    return message, "install it with `pip install 'entrenar[quantized]'`, or do without"


def check_loading(
    config: OneTeacher, task: str | None, teacher: ModelArtifact | None, student: ModelArtifact | None
) -> list[Problem]:
    """Every setting that the formats of the models rule out, what is wrong with an ONNX graph, and what is not
    installed. `where` of a problem is the dotted name of the setting.
    """
    found: list[Problem] = []
    if config.teacher.load_in is not None and config.teacher.cache is None and not has_bitsandbytes():
        found.append(Problem(*no_bitsandbytes("`teacher.load_in`"), "teacher.load_in"))
    if config.training.optimizer == "adamw-8bit" and not has_bitsandbytes():
        found.append(Problem(*no_bitsandbytes("`training.optimizer: adamw-8bit`"), "training.optimizer"))
    if teacher is not None and teacher.format is WeightFormat.ONNX:
        found += _of_onnx(config)
        if teacher.weight_files:
            found += check_graph(teacher, task)
            found += _pooled(config, task, teacher) if not found else ()
    if student is not None and student.format is WeightFormat.ONNX:
        message = f"{student.reference} is ONNX, which has no weights that can be trained"
        found.append(Problem(message, "take the same model in safetensors or GGUF", "student.model_id"))
    return found


def told(format: WeightFormat, source: ModelSource) -> str:  # noqa: A002 - as the setting is called
    """What becomes of the weights when a model is loaded, where it is not what they are; of a student, in 32 bits."""
    if format is WeightFormat.ONNX:
        return "ONNX, run by onnxruntime"
    dtype = source.dtype if isinstance(source, TeacherConfig) else "float32"
    parts = [f"a GGUF, dequantised to {dtype}"] if format is WeightFormat.GGUF else []
    if isinstance(source, TeacherConfig) and source.load_in is not None:
        parts.append(f"quantised to {source.load_in} as it is loaded")
    return ", then ".join(parts)


def _of_onnx(config: OneTeacher) -> Iterator[Problem]:
    """An ONNX teacher says logits, or vectors, and can neither be looked into nor changed."""
    if not has_runtime() and config.teacher.cache is None:
        yield Problem(*NO_RUNTIME, "teacher.model_id")
    if config.dataset.packing:
        message = f"`dataset.packing` tells models which tokens belong together, and {_IS_ONNX}, which cannot be told"
        yield Problem(message, f"remove it, {_OTHER}", "dataset.packing")
    if config.student.init_from is not None:
        message = f"`student.init_from` copies weights of the teacher, and {_IS_ONNX}, which has none to copy"
        yield Problem(message, f"give sizes or a `model_id`, {_OTHER}", "student.init_from")
    if config.teacher.finetune is not None:
        message = (
            f"`teacher.finetune` needs what is inside of the teacher, and {_IS_ONNX}, which shows its output alone"
        )
        yield Problem(message, f"remove it, {_OTHER}", "teacher.finetune")
    for name, why in _NO_MATTER.items():
        if name in config.teacher.model_fields_set and getattr(config.teacher, name) is not None:
            message = f"`teacher.{name}` changes nothing: {_IS_ONNX}, which {why}"
            yield Problem(message, "remove it", f"teacher.{name}")


def _pooled(config: OneTeacher, task: str | None, teacher: ModelArtifact) -> Iterator[Problem]:
    output = output_of(read_graph(teacher.weight_files[0]), task or "")
    if output is not None and output.name == SENTENCE and config.teacher.pooling is not None:
        message = f"`teacher.pooling` changes nothing: the teacher's graph gives one vector a text (`{SENTENCE}`)"
        yield Problem(message, "remove it", "teacher.pooling")

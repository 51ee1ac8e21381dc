"""Whether a student can be written in the formats that a run is to end with; without torch, for `validate`."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from entrenar_core.architectures import families
from entrenar_core.architectures.reference_sizes import reference_sizes
from entrenar_core.config.rules import OF_THE_TEACHER
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.conversion.gguf_families import GgufFamily, written_family
from entrenar_core.errors import ModelError, Problem
from entrenar_core.models.heads import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from entrenar_core.quantization.encoding import EVERYWHERE
from entrenar_core.quantization.mixes import MIXES

_FORMATS = "output.formats"
_NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript")}
_GGML = "xllamacpp"


def output_problems(
    config: DistillationConfig, task: str | None, student: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None
) -> Iterator[Problem]:
    """What stands in the way of `output.formats`.

    Args:
        task: what the student learns, if it is known.
        student: its config.json, where it has one already.
        teacher: the teacher's, which a student without one takes after.
    """
    if "gguf" in config.output.formats:
        yield from _of_gguf(config, task, student, teacher)
    for name, packages in _NEEDED.items():
        missing = [package for package in packages if find_spec(package) is None]
        if name in config.output.formats and missing:
            what = f"`{_FORMATS}` names {name}, for which {', '.join(missing)} is not installed"
            yield Problem(what, f"install it with `pip install 'entrenar[{name}]'`", _FORMATS)


def _of_gguf(
    config: DistillationConfig, task: str | None, student: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None
) -> Iterator[Problem]:
    output = config.output
    try:
        family = _family(config, student, teacher)
    except ModelError as error:
        yield Problem(f"`{_FORMATS}` names gguf, and {error.message}", "remove gguf from it", _FORMATS)
        return
    if family is not None and task is not None and not _runs(family, task):
        what = f"`{_FORMATS}` names gguf, and llama.cpp runs no {family.name} for {task}"
        yield Problem(what, "remove gguf from it, or take onnx", _FORMATS)
    if output.quantize == "q2_k_s":
        what = "`output.quantize: q2_k_s` needs an importance matrix, which a run does not compute"
        yield Problem(what, "take q2_k, or export the result with --calibration", "output.quantize")
    if find_spec(_GGML) is not None:
        return
    hint = "install it with `pip install 'entrenar[xllamacpp]'`"
    if output.quantize is not None and MIXES[output.quantize].base.name not in EVERYWHERE:
        yield Problem(f"`output.quantize: {output.quantize}` needs ggml's own routine", hint, "output.quantize")
    if output.verify:
        yield Problem("`output.verify` needs llama.cpp, which is not installed", hint, "output.verify")


def _family(
    config: DistillationConfig, student: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None
) -> GgufFamily | None:
    """The student's; None where it is not known yet.

    Raises:
        ModelError: no GGUF of it is written.
    """
    if student is not None:
        return written_family(student, "the student")
    named = config.student.architecture
    if named not in (None, OF_THE_TEACHER):
        known = reference_sizes().get(named or "")
        return written_family({"model_type": _model_type(known.family if known else named or "")}, "the student")
    return None if teacher is None or "model_type" not in teacher else written_family(teacher, "the student")


def _model_type(name: str) -> str:
    """What transformers calls a family; `name` may be that already."""
    family = families().get(name)
    return name if family is None else family.model_types[0]


def _runs(family: GgufFamily, task: str) -> bool:
    """Whether llama.cpp has the head of a task."""
    if family.family.kind == "decoder":
        return task == CAUSAL_LM
    return task == EMBEDDING or (task == CLASSIFICATION and bool(family.classifier))

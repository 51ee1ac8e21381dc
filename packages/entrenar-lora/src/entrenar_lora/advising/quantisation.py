"""4 bits against 8: how far the weights of a model are off when they are quantised, measured for each matrix.

The error is the length of the difference over that of the matrix, ‖W − W̃‖ ÷ ‖W‖. Of Gaussian weights in blocks of 64 it
is 0.092 in NF4 and 0.122 in FP4; rows in 8 bits are off by about a hundredth. Of large matrices whole rows are taken,
evenly spread.

Sources: Dettmers et al. 2023, arXiv:2305.14314 (NF4); Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8()).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from entrenar_core.errors import EntrenarError
from entrenar_core.models.teacher_rules import has_bitsandbytes
from entrenar_lora.reports.advice import LayerError, QuantisationAdvice

if TYPE_CHECKING:
    from torch import Tensor

    from entrenar_core.stored_model import StoredModel
    from entrenar_lora.resolving import Subject

KINDS = ("nf4", "fp4", "int8")
MOST_VALUES = 1 << 18
"""Of one matrix that are quantised."""
_WORST = 3
_OUTLYING = 1.25
"""A matrix whose error in NF4 is so many times that of Gaussian weights has values that stand out."""
GAUSSIAN_NF4 = 0.092


def quantisation_advice(subject: "Subject") -> QuantisationAdvice:
    """The measured errors; or why there are none."""
    if subject.at_hand is None:
        return QuantisationAdvice(measured=False, why_not="the weights are not at hand")
    if not has_bitsandbytes():
        return QuantisationAdvice(measured=False, why_not="bitsandbytes is not installed")
    try:
        errors = list(_errors(subject))
    except EntrenarError as error:
        return QuantisationAdvice(measured=False, why_not=error.message)
    if not errors:
        return QuantisationAdvice(measured=False, why_not="no matrix of it can be quantised, or they are already")
    overall = {kind: _together(errors, kind) for kind in KINDS}
    worst = tuple(sorted(errors, key=lambda one: -one.errors["nf4"])[:_WORST])
    return QuantisationAdvice(
        measured=True, matrices=len(errors), overall=overall, worst=worst, says=_says(overall, errors)
    )


def _together(errors: list[LayerError], kind: str) -> float:
    """Root mean square, by the number of values."""
    total = sum(one.parameters for one in errors)
    return float((sum(one.errors[kind] ** 2 * one.parameters for one in errors) / total) ** 0.5)


def _says(overall: dict[str, float], errors: list[LayerError]) -> str:
    outlying = [one for one in errors if one.errors["nf4"] > _OUTLYING * GAUSSIAN_NF4]
    if not outlying:
        return (
            f"4 bits in NF4 move weights by {overall['nf4']:.3f} of their length, as of weights without outliers; "
            f"8 bits by {overall['int8']:.3f}"
        )
    worst = max(outlying, key=lambda one: one.errors["nf4"])
    return (
        f"{len(outlying)} of {len(errors)} matrices have values that stand out: NF4 moves {worst.name} by "
        f"{worst.errors['nf4']:.3f} of its length, and 8 bits by {worst.errors['int8']:.3f}; prefer 8 or 16 bits"
    )


def _errors(subject: "Subject") -> Iterator[LayerError]:
    from entrenar_core.memory.fakes import empty_model
    from entrenar_core.models.placing import linear_layers
    from entrenar_core.models.quiet import mute_bitsandbytes
    from entrenar_core.references import parse_reference
    from entrenar_core.stored_model import open_model

    mute_bitsandbytes()
    empty = empty_model(subject.held("fp32"))
    prefix = f"{empty.base_model_prefix}."
    with open_model(parse_reference(subject.reference)) as stored:
        for name, quantisable in linear_layers(empty):
            place = next((one for one in (name, name.removeprefix(prefix)) if f"{one}.weight" in stored.tensors), None)
            if quantisable and place is not None and (weight := _matrix(stored, f"{place}.weight")) is not None:
                module: Any = empty.get_submodule(name)
                transposed = type(module).__name__ == "Conv1D"
                yield LayerError(name, module.weight.numel(), errors_of(weight.T if transposed else weight))


def _matrix(stored: "StoredModel", name: str) -> "Tensor | None":
    """Whole rows of it, at 32 bits; None of one that is stored in blocks."""
    import numpy as np
    import torch

    values = stored.array(name)
    if values.ndim != 2 or (values.dtype.kind not in "fV" and "float" not in str(values.dtype)):
        return None
    rows = max(1, MOST_VALUES // values.shape[1])
    step = max(1, -(-values.shape[0] // rows))
    return torch.from_numpy(np.ascontiguousarray(values[::step]).astype(np.float32))


def errors_of(weight: "Tensor") -> dict[str, float]:
    """The relative error of a matrix, (out, in), for each kind of quantisation, as bitsandbytes does it."""
    import torch
    from bitsandbytes import functional

    length = float(torch.linalg.vector_norm(weight)) or 1.0
    found = {}
    for kind in KINDS[:2]:
        packed, state = functional.quantize_4bit(weight.contiguous(), quant_type=kind, compress_statistics=True)
        found[kind] = float(torch.linalg.vector_norm(functional.dequantize_4bit(packed, state) - weight)) / length
    scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    found["int8"] = float(torch.linalg.vector_norm((weight / scale).round() * scale - weight)) / length
    return found

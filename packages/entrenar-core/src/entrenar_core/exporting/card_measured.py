"""What a model card says of how exported files answer beside the model that they were made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from entrenar_core.exporting.card_files import code, escaped
from entrenar_core.units import bound, nats, percent, perplexity

if TYPE_CHECKING:
    from entrenar_core.verification.result import ClassAgreement

_WHOLE = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Measured:
    """How a file answered beside the model that it was made of, over `positions` tokens of the same text.

    `kl` is KL(original ‖ file) in nats per token, exact or a lower bound; `agreement` the share of positions where both
    prefer the same next token. The perplexities are of that text.
    """

    positions: int
    kl: float
    kl_is_exact: bool
    agreement: float
    perplexity: float
    original_perplexity: float


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file that was written, in one of the formats `safetensors`, `gguf`, `onnx`, `apr` and `apr-json`.

    `quantization` is the type, or the mix of types, that its weights are stored in, such as `Q4_K_M` or `F16`;
    `bits_per_weight` counts all tensors. `cosine` is the smallest between a vector of a sentence encoder and that of
    the original, `difference` the largest between what onnxruntime and torch compute, and `moved` what eight bits
    changed of that, as a share of its root mean square. What was not measured is None.
    """

    name: str
    format: str
    size_bytes: int
    quantization: str | None = None
    bits_per_weight: float | None = None
    measured: Measured | None = None
    cosine: float | None = None
    classes: "ClassAgreement | None" = None
    difference: float | None = None
    moved: float | None = None

    @property
    def is_measured(self) -> bool:
        """Whether it was run beside the original."""
        found = (self.measured, self.cosine, self.classes, self.difference, self.moved)
        return any(one is not None for one in found)

    @property
    def is_quantized(self) -> bool:
        """Whether weights lost more than a rounding to a shorter float."""
        return self.quantization is not None and self.quantization.upper() not in _WHOLE


def comparison(exported: Sequence[ExportedFile]) -> list[str]:
    """Lines of a card: what was measured beside the original, and of which files nothing was."""
    lines = ["Measured beside the model that the files were made of, on the same inputs:", ""]
    predicting = [(file.name, file.measured) for file in exported if file.measured is not None]
    if predicting:
        lines += [
            "| file | tokens | KL, nats per token | same next token | perplexity | of the original |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_measured_row(name, found) for name, found in predicting),
        ]
    lines += [sentence for file in exported for sentence in _sentences(file)]
    unmeasured = [code(file.name) for file in exported if not file.is_measured and file.format != "safetensors"]
    return [*lines, "", f"Not measured: {', '.join(unmeasured)}."] if unmeasured else lines


def _sentences(file: ExportedFile) -> Iterator[str]:
    name = code(file.name)
    if file.cosine is not None:
        yield f"The vectors of {name} have a cosine of {file.cosine:.5f} or more with those of the original."
    if (found := file.classes) is not None:
        same = percent(found.agreement)
        yield f"{name} gives {same} of {found.texts} texts the same class: a KL divergence of {nats(found.kl_mean)}."
    if file.difference is not None:
        most = bound(file.difference)
        yield f"What onnxruntime computes with {name} is {most} at most from what torch does."
    if file.moved is not None:
        moved = f"{percent(file.moved)} of what torch does (root mean square)"
        yield f"Eight bits moved what onnxruntime computes with {name} by {moved}."


def _measured_row(name: str, found: Measured) -> str:
    bound = "" if found.kl_is_exact else "at least "
    return (
        f"| {escaped(name)} | {found.positions:,} | {bound}{found.kl:.4f} | {percent(found.agreement)} "
        f"| {perplexity(found.perplexity)} | {perplexity(found.original_perplexity)} |"
    )

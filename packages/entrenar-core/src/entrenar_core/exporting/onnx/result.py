"""What an export to ONNX wrote and measured: plain values, without torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Int8Change:
    """How far eight bits moved what a graph gives, over all positions of `shape` (rows, tokens).

    `relative_rms` is the root mean square of the change over that of what torch gives, `cosine` the mean over
    positions, and `top_1_agreement` the share of positions at which the largest number is the same one; None where
    numbers are no choice, as those of a vector. `kept` matrices of `matrices` stayed in 32 bits.
    """

    largest_difference: float
    relative_rms: float
    cosine: float
    top_1_agreement: float | None
    shape: tuple[int, int]
    matrices: int
    kept: int


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """A graph that is there. `largest_difference` is between onnxruntime's and torch's numbers, both in 32 bits, over
    all real tokens of batches of the `shapes` (rows, tokens), and `relative_difference` that over the root mean square
    of torch's. `int8` has what eight bits changed then, if they were asked for.
    """

    output: Path
    files: tuple[str, ...]
    size_bytes: int
    task: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    largest_difference: float
    relative_difference: float
    shapes: tuple[tuple[int, int], ...]
    int8: Int8Change | None
    notes: tuple[str, ...]

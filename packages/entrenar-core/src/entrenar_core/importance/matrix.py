"""An importance matrix: of each matrix of a model, how large the numbers are that it reads, on the mean over a text.

Quantising makes Σ_i E[x_i²] (w_i - q_i)² small instead of Σ_i (w_i - q_i)²: the error of what a row puts out, if its
inputs x_i were uncorrelated.

Source: llama.cpp's tools/imatrix and tools/quantize, which sum up the squares and divide by the number of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from entrenar_core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WITHOUT = ("token_embd.weight", "per_layer_token_embd.weight")  # looked up, and multiplied by nothing


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What the matrices of one tensor read: one matrix, or those of M experts, with rows of I weights.

    `sums_MI` are the squares of every input added up, in float32, `counts_M` over how many tokens. What has the older
    form of file counts chunks, and holds experts in one row.
    """

    sums_MI: "NDArray[np.float32]"
    counts_M: "NDArray[np.int64]"

    @property
    def means(self) -> "NDArray[np.float32]":
        """Mean squares (M, I) in float32; for an expert that saw no token all the same, which is 1."""
        import numpy as np

        counts_M1 = self.counts_M[:, None]
        means_MI = np.divide(self.sums_MI, np.maximum(counts_M1, 1), dtype=np.float32)
        return np.where(counts_M1 > 0, means_MI, np.float32(1))


@dataclass(frozen=True, slots=True, eq=False)
class ImportanceMatrix:
    """The inputs of matrices by what GGUF calls their tensors, such as `blk.0.attn_q.weight`.

    `chunk_count` and `chunk_size` say over how many pieces of text of how many tokens, 0 where that is not known;
    `datasets` names the texts.
    """

    inputs: Mapping[str, Inputs]
    chunk_count: int
    chunk_size: int
    datasets: tuple[str, ...] = ()

    def means(self, name: str, row: int, matrices: int = 1) -> "NDArray[np.float32] | None":
        """The weights of a tensor's columns, of shape (matrices, row), as `ggml_quantize_chunk` takes them for each of
        the matrices; None where nothing is known of it: then it is quantised as without an importance matrix.

        Raises:
            ModelError: they are of a tensor of other sizes.
        """
        found = self.inputs.get(name)
        if found is None:
            return None
        if found.sums_MI.size == row * matrices:
            return found.means.reshape(matrices, row)
        if name in _WITHOUT:
            return None
        of = f"{matrices} x {row:,}" if matrices > 1 else f"{row:,}"
        raise ModelError(
            f"the importance matrix has {found.sums_MI.size:,} values for tensor {name}, whose inputs are {of}",
            "take the importance matrix of this model, or compute one from a text",
        )

"""What an adapter's change is beside the matrix that it changes: how large, and whether it brings in new directions.

Intruder dimensions are singular vectors of the changed matrix, among those of its largest singular values, that are
like none of the base model's: no cosine with any of these reaches a threshold. Source: Shuttleworth et al. 2024, "LoRA
vs Full Fine-tuning: An Illusion of Equivalence", arXiv:2410.21228.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrenar_core.adapters.adapter import Adapter, Pair, as_matrix
from entrenar_core.adapters.base import BaseWeights
from entrenar_core.adapters.leading import leading_vectors
from entrenar_core.adapters.spectrum import Spectrum

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Matrix = NDArray[np.floating]

_WHOLE = 1024
"""Matrices of which no side but one is longer are decomposed whole: half a second or less."""
_NOTHING = 1e-12
"""Of the square of the largest singular value, in float64."""
_DEEPER = 2
"""How many times as many vectors of the base matrix are looked at, of matrices that are not: a change that brings in
vectors above one pushes it down by as many places.
"""


@dataclass(frozen=True, slots=True)
class IntruderSearch:
    """Which singular vectors of the changed matrix are held against the base's, and the cosine that makes two alike."""

    top: int = 10
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class BesideBase:
    """Of one module. `change` and `weight` are Frobenius norms, `relative` is their quotient (None where the weight is
    all zeros).

    `intruders` of `searched` leading vectors are like none of the base's; None where they were not looked for. With
    `exact` all vectors of the base were compared, else its `compared` largest: a vector that is like a smaller one
    counts as an intruder, so that the number is an upper estimate.
    """

    change: float
    weight: float
    relative: float | None
    intruders: int | None = None
    searched: int = 0
    compared: int = 0
    exact: bool = False


def beside_base(
    adapter: Adapter, pair: Pair, base: BaseWeights, spectrum: Spectrum, search: IntruderSearch | None
) -> BesideBase:
    """Compares the change of one module with the base's matrix, which alone is read.

    Args:
        spectrum: of the change, at its scale.
        search: how to look for intruders; None to leave that out.

    Raises:
        ModelError: the base has no such module, or its matrix is of another shape.
    """
    import numpy as np

    weight = base.values(pair.module, shape=pair.shape)
    length = float(np.linalg.norm(weight.reshape(-1).astype(np.float32)))
    dora = pair.magnitude is not None
    changed = changed_matrix(adapter, pair, weight) if dora or search is not None else None
    moved = float(np.linalg.norm(changed - weight)) if dora and changed is not None else spectrum.frobenius
    relative = moved / length if length else None
    if changed is None or search is None or pair.embedding:
        return BesideBase(moved, length, relative)
    count, compared = intruders(weight, changed, search)
    every = min(weight.shape)
    return BesideBase(moved, length, relative, count, min(search.top, every), compared, compared == every)


def changed_matrix(adapter: Adapter, pair: Pair, weight: "Matrix") -> "Matrix":
    """W + s · B · A as torch multiplies by it; of DoRA its rows have the lengths that the adapter says.

    Source: Liu et al. 2024, "DoRA", arXiv:2402.09353, eq. 5.
    """
    import numpy as np

    product: Any = as_matrix(adapter.values(pair.up) @ adapter.values(pair.down), pair)
    changed = weight + np.float32(pair.scale or 0.0) * product
    if pair.magnitude is None:
        return np.asarray(changed)
    magnitude = adapter.values(pair.magnitude).reshape(-1)
    lengths = np.linalg.norm(changed, axis=0 if pair.embedding else 1)  # peft's lengths of an embedding are of columns
    factors = np.divide(magnitude, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.asarray(changed * (factors if pair.embedding else factors[:, None]))


def intruders(weight: "Matrix", changed: "Matrix", search: IntruderSearch) -> tuple[int, int]:
    """How many of the leading left singular vectors of `changed` are like none of those of `weight`, and how many of
    these were compared.
    """
    import numpy as np

    top = min(search.top, min(weight.shape))
    whole = min(weight.shape) <= _WHOLE
    before = _all_vectors(weight) if whole else _leading(weight, _DEEPER * top)
    after = _leading(changed, top)
    closest = np.abs(after.T @ before).max(axis=1)
    return int((closest < search.threshold).sum()), min(weight.shape) if whole else before.shape[1]


def _all_vectors(matrix: "Matrix") -> "Matrix":
    """The left singular vectors, by way of the Gram matrix of the smaller side, which takes a fifth of the time;
    without those of singular values that are nothing beside the largest.
    """
    import torch

    exact = _tensor(matrix).double()
    tall = exact.shape[0] > exact.shape[1]
    values, vectors = torch.linalg.eigh(exact.T @ exact if tall else exact @ exact.T)
    if tall:
        kept = values > _NOTHING * values[-1]
        vectors = exact @ (vectors[:, kept] / values[kept].sqrt())
    found: Matrix = vectors.float().numpy()
    return found


def _leading(matrix: "Matrix", count: int) -> "Matrix":
    found: Matrix = leading_vectors(_tensor(matrix), count).numpy()
    return found


def _tensor(matrix: "Matrix") -> "Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))

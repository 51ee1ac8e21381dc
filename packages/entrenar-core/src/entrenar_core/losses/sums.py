"""A loss before division, and the precision that losses are computed in."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossSum:
    """`total / count` is the mean of the loss, and the sums of two batches add up."""

    total: Tensor
    count: int | Tensor

    def __add__(self, other: "LossSum") -> "LossSum":
        return LossSum(self.total + other.total, self.count + other.count)


def at_least_fp32(values: Tensor) -> Tensor:
    """Half precision loses a third of a KL over 32k tokens; float64 stays what it is."""
    return values if values.element_size() >= 4 else values.float()

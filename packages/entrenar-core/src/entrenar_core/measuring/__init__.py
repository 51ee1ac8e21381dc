"""Figures of stored tensors, computed from their bytes: what is not finite, statistics, differences, effective rank.

Files are read a block at a time by several threads or processes, into buffers that each keeps: memory stays bounded for
files of any size, and a file that is cut short meanwhile is an error. `results` has what comes out, and needs no numpy.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing
from entrenar_core.measuring.results import Difference, Distribution, EffectiveRank, NonFinite, TensorStatistics

if TYPE_CHECKING:
    from entrenar_core.measuring.differences import difference, digest, same_bytes
    from entrenar_core.measuring.finite import non_finite
    from entrenar_core.measuring.rank import effective_rank
    from entrenar_core.measuring.statistics import statistics_of

__all__ = [
    "Difference",
    "Distribution",
    "EffectiveRank",
    "NonFinite",
    "TensorStatistics",
    "difference",
    "digest",
    "effective_rank",
    "non_finite",
    "same_bytes",
    "statistics_of",
]

_HOMES = {
    "difference": "differences",
    "digest": "differences",
    "effective_rank": "rank",
    "non_finite": "finite",
    "same_bytes": "differences",
    "statistics_of": "statistics",
}
__getattr__ = importing(__name__, _HOMES)

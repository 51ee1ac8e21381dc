"""Statistics of several tensors together, from those of each: no value is read again, and nothing is estimated.

Source: Chan, Golub & LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
"""

import math
from collections.abc import Sequence

from entrenar_core.measuring.results import OUTLIER_DEVIATIONS, Distribution, TensorStatistics


def merged(parts: Sequence[TensorStatistics]) -> TensorStatistics:
    """The statistics of all values of `parts` together; of a single part, that part.

    Of several, two figures do not follow from those of each: `outliers` counts, for each tensor, those by its own mean
    and deviation, and `histogram` is empty, since the bins of one tensor are not those of another.
    """
    if len(parts) == 1:
        return parts[0]
    finite = [part.finite for part in parts if part.finite is not None]
    return TensorStatistics(
        sum(part.count for part in parts),
        sum(part.nan for part in parts),
        sum(part.inf for part in parts),
        _together(finite) if finite else None,
    )


def _together(parts: Sequence[Distribution]) -> Distribution:
    values = sum(part.values for part in parts)
    shares = [part.values / values for part in parts]
    mean = math.fsum(share * part.mean for share, part in zip(shares, parts, strict=True))
    # What each spreads about its mean, and what the means spread about that of all; no square here can overflow.
    std = math.hypot(
        *(
            math.sqrt(share) * spread
            for share, part in zip(shares, parts, strict=True)
            for spread in (part.std, part.mean - mean)
        )
    )
    minimum, maximum = min(part.minimum for part in parts), max(part.maximum for part in parts)
    return Distribution(
        values=values,
        mean=mean,
        std=std,
        minimum=minimum,
        maximum=maximum,
        abs_mean=math.fsum(share * part.abs_mean for share, part in zip(shares, parts, strict=True)),
        l2_norm=math.hypot(*(part.l2_norm for part in parts)),
        zeros=sum(part.zeros for part in parts),
        outliers=sum(part.outliers for part in parts),
        low=max(minimum, mean - OUTLIER_DEVIATIONS * std),
        high=min(maximum, mean + OUTLIER_DEVIATIONS * std),
        histogram=(),
    )

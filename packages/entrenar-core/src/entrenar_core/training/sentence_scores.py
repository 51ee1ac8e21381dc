"""How good vectors of sentences are: by what their cosines find, and by how far they agree with those of a teacher.

Everything is computed from the vectors in 64 bits, on the CPU.

Shapes: N vectors or queries, M candidates, H width, P pairs.
"""

import torch
from torch import Tensor

from entrenar_core.losses.geometry import unit

PAIRS = 1_000_000
"""Of more pairs, so many are drawn, always the same."""
_QUERIES_AT_ONCE, _PAIRS_AT_ONCE = 128, 16_384


def mean_cosine(one_NH: Tensor, other_NH: Tensor) -> float:
    """The mean of cos(one, other) over rows."""
    return float((_directions(one_NH) * _directions(other_NH)).sum(-1).mean())


def retrieval(
    queries_NH: Tensor, queried_N: Tensor, candidates_MH: Tensor, labels_M: Tensor, own_N: Tensor | None = None
) -> tuple[float, float]:
    """Precision at 1 and mean average precision of candidates that are sorted by their cosines with a query.

    Right are those with the query's label. Of equal cosines the wrong ones come first, so that vectors which are all
    the same find nothing. With a single right candidate the average precision is 1 / its rank, and the mean of it the
    mean reciprocal rank. Every query needs a right candidate.

    Source: Manning, Raghavan & Schütze 2008, section 8.4.

    Args:
        queries_NH: their vectors.
        queried_N: their labels.
        candidates_MH: vectors of what is looked for.
        labels_M: their labels.
        own_N: the candidate that a query is itself, and that it is not to find.
    """
    candidates_MH = _directions(candidates_MH)
    first, average = [], []
    for rows in torch.split(torch.arange(len(queries_NH)), _QUERIES_AT_ONCE):
        cosines_NM = _directions(queries_NH[rows]) @ candidates_MH.T
        right_NM = queried_N[rows].unsqueeze(1) == labels_M
        if own_N is not None:
            cosines_NM[torch.arange(len(rows)), own_N[rows]] = -torch.inf
            right_NM[torch.arange(len(rows)), own_N[rows]] = False
        wrong_first_NM = right_NM.int().argsort(stable=True)
        by_cosine_NM = cosines_NM.gather(1, wrong_first_NM).argsort(descending=True, stable=True)
        found_NM = right_NM.gather(1, wrong_first_NM.gather(1, by_cosine_NM)).double()
        precision_NM = found_NM.cumsum(1) / torch.arange(1, found_NM.shape[1] + 1)
        first.append(found_NM[:, 0])
        average.append((precision_NM * found_NM).sum(1) / found_NM.sum(1))
    return float(torch.cat(first).mean()), float(torch.cat(average).mean())


def rank_correlation(one_NH: Tensor, other_NK: Tensor) -> float | None:
    """Spearman's ρ between the cosines of pairs of rows, by the vectors of the one and of the other model.

    Over all pairs, or `PAIRS` of them, drawn with replacement. None where there is no order to compare: with fewer
    than two pairs, or where all cosines are equal.

    Source: Spearman 1904, with mean ranks for ties.
    """
    pairs_2P = _pairs(len(one_NH))
    return _correlation(*(_ranks(_cosines(vectors, pairs_2P)) for vectors in (one_NH, other_NK)))


def cosine_spread(vectors_NH: Tensor) -> tuple[float, float] | None:
    """The mean and the standard deviation of the cosines of pairs of rows, over the pairs of `rank_correlation`; None
    with fewer than two.
    """
    cosines_P = _cosines(vectors_NH, _pairs(len(vectors_NH)))
    return (float(cosines_P.mean()), float(cosines_P.std())) if len(cosines_P) > 1 else None


def _directions(vectors_NH: Tensor) -> Tensor:
    return unit(vectors_NH.detach().cpu().double())


def _pairs(rows: int) -> Tensor:
    if rows * (rows - 1) // 2 <= PAIRS:
        return torch.triu_indices(rows, rows, 1)
    generator = torch.Generator().manual_seed(0)
    first_P = torch.randint(rows, (PAIRS,), generator=generator)
    return torch.stack([first_P, (first_P + 1 + torch.randint(rows - 1, (PAIRS,), generator=generator)) % rows])


def _cosines(vectors_NH: Tensor, pairs_2P: Tensor) -> Tensor:
    vectors_NH = _directions(vectors_NH)
    parts = ((vectors_NH[one] * vectors_NH[other]).sum(-1) for one, other in torch.split(pairs_2P, _PAIRS_AT_ONCE, 1))
    return torch.cat(list(parts))


def _ranks(values_P: Tensor) -> Tensor:
    """From 1; the mean of their ranks where values are equal."""
    places_P: Tensor
    counts: Tensor
    _, places_P, counts = torch.unique(values_P, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[places_P]


def _correlation(one_P: Tensor, other_P: Tensor) -> float | None:
    if len(one_P) < 2:
        return None
    one_P, other_P = one_P - one_P.mean(), other_P - other_P.mean()
    spread = float(one_P.norm() * other_P.norm())
    return float(one_P @ other_P) / spread if spread > 0 else None

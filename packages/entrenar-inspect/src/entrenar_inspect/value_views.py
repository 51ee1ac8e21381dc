"""How the values of tensors look: their figures, a strip of shades for the histogram, and effective ranks."""

from collections.abc import Iterator, Sequence

from entrenar_common.tables import Cell, Column, Table
from entrenar_core.measuring.results import OUTLIER_DEVIATIONS, Distribution, EffectiveRank, TensorStatistics
from entrenar_core.units import percent
from entrenar_inspect.reports.layers import LayerRow

_SHADES = " ▁▂▃▄▅▆▇█"
_STRIP = 16  # cells of a strip: each has two bins of the histogram


def value_tables(rows: Sequence[LayerRow], what: str) -> Iterator[Table]:
    """Two tables of statistics, each narrow enough for a terminal, and one of ranks, where there are any. `what` the
    rows of statistics are: tensors or layers.
    """
    counted = [
        (row.name, row.statistics) for row in rows if row.statistics is not None or "statistics" in row.unmeasured
    ]
    ranked = [row for row in rows if row.rank is not None or "rank" in row.unmeasured]
    if counted:
        yield _distributions(counted, what)
        yield _shares(counted, what)
    if ranked:
        yield _ranks(ranked)


def _distributions(rows: Sequence[tuple[str, TensorStatistics | None]], what: str) -> Table:
    strips = [_strip(_finite(found)) for _, found in rows]
    titles = ("mean", "std", "min", "max", *(("histogram",) if any(strips) else ()))
    columns: tuple[Column | str, ...] = (what, *(Column(title, "right") for title in titles))
    lines = tuple(
        (name, *_figures(_finite(found)), strip)[: len(columns)]
        for (name, found), strip in zip(rows, strips, strict=True)
    )
    told = ("histograms go from the smallest to the largest value, or to where outliers begin",) if any(strips) else ()
    unseen = any((finite := _finite(found)) is not None and not finite.histogram for _, found in rows)
    return Table(
        "Values", columns, lines, (*told, *(("--verbose tells of each tensor, with its histogram",) if unseen else ()))
    )


def _finite(found: TensorStatistics | None) -> Distribution | None:
    return None if found is None else found.finite


def _figures(found: Distribution | None) -> tuple[Cell, ...]:
    if found is None:
        return (None,) * 4
    return tuple(f"{number:.3g}" for number in (found.mean, found.std, found.minimum, found.maximum))


def _shares(rows: Sequence[tuple[str, TensorStatistics | None]], what: str) -> Table:
    titles = ("zeros", "outliers", "NaN", "infinite")
    columns: tuple[Column | str, ...] = (what, *(Column(title, "right") for title in titles))
    lines = tuple(
        (name, *_parts(_finite(found)), *((None, None) if found is None else (found.nan, found.inf)))
        for name, found in rows
    )
    note = f"outliers lie further than {OUTLIER_DEVIATIONS:g} deviations from the mean of their tensor"
    return Table("Zeros, outliers, and what is no finite number", columns, lines, (note,))


def _parts(found: Distribution | None) -> tuple[Cell, ...]:
    return (None, None) if found is None else (percent(found.sparsity), percent(found.outlier_ratio, 3))


def _strip(found: Distribution | None) -> str:
    """The histogram as shades, the highest bin full; what is not empty is never blank."""
    if found is None or not found.histogram:
        return ""
    step = max(1, len(found.histogram) // _STRIP)
    bins = [sum(found.histogram[start : start + step]) for start in range(0, len(found.histogram), step)]
    most = max(bins)
    if not most:
        return ""
    levels = (max(1, round(number / most * (len(_SHADES) - 1))) if number else 0 for number in bins)
    return "".join(_SHADES[level] for level in levels)


def _ranks(rows: Sequence[LayerRow]) -> Table:
    titles = ("effective rank", "of", "stable rank")
    columns: tuple[Column | str, ...] = ("matrix", "shape", *(Column(title, "right") for title in titles))
    lines = tuple((row.name, " × ".join(map(str, row.shape or ())), *_of_matrix(row.rank)) for row in rows)
    note = (
        "effective rank is exp of the entropy of the singular values over their sum, ± its standard error where it was "
        "estimated; stable rank is the squared Frobenius norm over the squared largest singular value"
    )
    return Table("Effective rank", columns, lines, (note,))


def _of_matrix(found: EffectiveRank | None) -> tuple[Cell, ...]:
    if found is None:
        return (None,) * 3
    share = percent(found.entropy_rank / min(found.rows, found.columns))
    return _with_error(found), share, f"{found.stable_rank:.1f}"


def _with_error(found: EffectiveRank) -> str:
    error = "" if found.standard_error is None else f" ± {found.standard_error:.1f}"
    return f"{found.entropy_rank:.1f}{error}"

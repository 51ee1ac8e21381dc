"""How `inspect` looks: the adapter at a glance, a strip of shades by layer, and the figures of kinds of modules."""

from collections.abc import Iterator, Sequence

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Column, Table, key_values
from entrenar_core.units import count, moved, percent
from entrenar_lora.reports.inspect import Figures, GroupRow, InspectReport, ModuleRow, ScaleRow, Strip

_SHADES = "▁▂▃▄▅▆▇█"
_DEAD, _EXPLODING, _NONE = "×", "!", " "
_TITLES = {
    "relative": "Length of the change over that of the matrix",
    "norm": "Length of the change (Frobenius norm)",
    "spectral": "Spectral norm of the change",
    "utilization": "Effective rank over rank",
    "effective-rank": "Effective rank",
    "stable-rank": "Stable rank",
    "k99": "Directions that keep 99 % of the energy",
    "intruders": "Intruder dimensions",
}
_MOST_NAMED = 6


def inspection(report: InspectReport) -> list[Block]:
    """The summary, the strip, the kinds; then layers and modules, where asked for."""
    if report.figures is None:
        return [_other(report)]
    blocks: list[Block] = [_summary(report, report.figures)]
    if report.strip is not None:
        blocks.append(_strip(report.strip))
    blocks.append(_groups("Kinds of modules", "module", report.kinds))
    if report.by_layer:
        blocks.append(_groups("Layers", "layer", report.layers))
    if report.by_module:
        blocks.append(_modules(report.modules))
    if report.scale_table:
        blocks.append(_scales(report.scale_table, report.ranks[0]))
    findings = Table(
        "What follows", ("",), tuple((f"{place}. {text}",) for place, text in enumerate(report.findings, 1))
    )
    return [*blocks, findings]


def quiet(report: InspectReport) -> Sequence[str]:
    """The rank that would do."""
    return [] if report.rank_needed is None else [str(report.rank_needed)]


def _other(report: InspectReport) -> Table:
    return key_values(
        f"Adapter Analysis: {report.name}",
        {
            "Method": report.method,
            "What it is": report.about,
            "Base": report.base,
            "Tensors": report.tensors,
            "Total Parameters": Amount(report.parameters, f"{report.parameters:,} ({count(report.parameters)})"),
        },
        report.notes,
    )


def _summary(report: InspectReport, figures: Figures) -> Table:
    facts: dict[str, Cell] = {
        "Method": report.method + (f", begun as {report.init}" if report.init else ""),
        "Base": report.base,
        "Rank": _numbers(report.ranks),
        "Alpha": _numbers(report.alphas) or None,
        "Scale": f"{_numbers(report.scales)} ({'alpha/√rank' if report.rslora else 'alpha/rank'})"
        if report.scales
        else None,
        "Target Modules": _targets(report),
        "Total Parameters": Amount(report.parameters, f"{report.parameters:,} ({count(report.parameters)})"),
        "Effective Rank (SVD)": Amount(
            figures.effective_rank, f"{figures.effective_rank:.1f} ({percent(figures.utilization)} utilization)"
        ),
        "Stable Rank": f"{figures.stable_rank:.2f}",
        "Participation": f"{figures.participation:.2f}",
        "k90, k99": f"at most {figures.k90} and {figures.k99} directions",
        "Unused Directions": figures.unused,
        "Sparsity": f"{percent(figures.sparsity)} (A {percent(figures.zeros_down)}, B {percent(figures.zeros_up)})",
        "Norm of the Change": f"{figures.frobenius:.4g} (Frobenius), {figures.spectral:.4g} (largest spectral)",
    }
    if report.compared_with is not None:
        facts["Relative Change"] = (
            None if figures.relative is None else f"{moved(figures.relative)} of {report.compared_with}"
        )
    if figures.intruders is not None:
        facts["Intruder Dimensions"] = f"{figures.intruders:,} of {figures.searched:,} leading directions"
    if report.whole:
        facts["Whole Tensors"] = _listed(report.whole)
    return key_values(f"Adapter Analysis: {report.name}", facts, tuple(f"! {note}" for note in report.notes))


def _numbers(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _targets(report: InspectReport) -> str:
    layers = {(row.stack, row.layer) for row in report.modules if row.layer is not None}
    in_layers = f" × {len(layers)} layers" if layers else ""
    return f"{len(report.modules)} ({_listed(report.targets)}{in_layers})"


def _strip(strip: Strip) -> Table:
    """A character for each layer: a shade of the largest value, or a mark."""
    largest = max((value for row in strip.rows.values() for value in row if value is not None), default=0.0)
    rows = tuple((name, _shades(strip, name, row, largest)) for name, row in strip.rows.items())
    legend = [f"█ is {largest:.4g}, ▁ at most an eighth of it"]
    legend += [f"{_DEAD} changes nothing"] if strip.dead else []
    legend += [f"{_EXPLODING} stands out"] if strip.exploding else []
    return Table(_TITLES[strip.figure], ("layer", Column(_ruler(strip.layers), "left")), rows, ("; ".join(legend),))


def _ruler(layers: Sequence[int]) -> str:
    """Every tenth layer's number, above its cell."""
    ruler = ""
    for place, layer in enumerate(layers):
        if layer % 10 == 0 and len(ruler) <= place:
            ruler = ruler.ljust(place) + str(layer)
    return ruler or str(layers[0])


def _shades(strip: Strip, name: str, row: Sequence[float | None], largest: float) -> str:
    cells = []
    for layer, value in zip(strip.layers, row, strict=True):
        if (name, layer) in strip.dead:
            cells.append(_DEAD)
        elif (name, layer) in strip.exploding:
            cells.append(_EXPLODING)
        elif value is None:
            cells.append(_NONE)
        else:
            shade = int(value / largest * len(_SHADES)) if largest else 0
            cells.append(_SHADES[min(shade, len(_SHADES) - 1)])
    return "".join(cells)


def _groups(title: str, what: str, rows: Sequence[GroupRow]) -> Table:
    beside = any(row.figures.relative is not None for row in rows)
    intruding = any(row.figures.intruders is not None for row in rows)
    heads = (what, "modules", "rank", *_heads(beside, intruding))
    lines = tuple((row.name, row.modules, _numbers(row.ranks), *_cells(row.figures, beside, intruding)) for row in rows)
    return Table(title, _columns(heads), lines)


def _modules(rows: Sequence[ModuleRow]) -> Table:
    beside = any(row.figures.relative is not None for row in rows)
    intruding = any(row.figures.intruders is not None for row in rows)
    heads = ("module", "rank", "scale", *_heads(beside, intruding), "")
    lines = tuple(
        (row.module, row.rank, row.scale, *_cells(row.figures, beside, intruding), row.fate or "") for row in rows
    )
    told = tuple(f"! {row.module} is {row.fate}: {row.reason}" for row in rows if row.fate)
    return Table("Modules", _columns(heads), lines, told)


def _scales(rows: Sequence[ScaleRow], own: int) -> Table:
    """What alpha each rank needs to have the adapter's scale, and the scales that its alpha would have there."""
    heads = ("rank", "alpha of the same scale", "its alpha / rank", "its alpha / √rank", "")
    lines = tuple(
        (row.rank, row.same_scale_alpha, row.scale, row.rslora_scale, "its own" if row.rank == own else "")
        for row in rows
    )
    return Table("Alpha and scale by rank", heads, lines)


def _columns(heads: Sequence[str]) -> tuple[Column, ...]:
    return tuple(Column(head, "right" if place else "left") for place, head in enumerate(heads))


def _heads(beside: bool, intruding: bool) -> Iterator[str]:
    yield from ("parameters", "effective", "stable", "k90", "k99", "unused", "norm", "spectral")
    if beside:
        yield "relative"
    if intruding:
        yield "intruders"


def _cells(one: Figures, beside: bool, intruding: bool) -> Iterator[Cell]:
    yield Amount(one.parameters, count(one.parameters))
    yield Amount(one.effective_rank, f"{one.effective_rank:.1f}")
    yield Amount(one.stable_rank, f"{one.stable_rank:.2f}")
    yield from (one.k90, one.k99, one.unused)
    yield Amount(one.frobenius, f"{one.frobenius:.3g}")
    yield Amount(one.spectral, f"{one.spectral:.3g}")
    if beside:
        yield None if one.relative is None else Amount(one.relative, moved(one.relative))
    if intruding:
        yield one.intruders

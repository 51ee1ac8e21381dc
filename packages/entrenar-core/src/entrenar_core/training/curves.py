"""The loss of a run as a drawing."""

import io
from collections.abc import Sequence
from typing import Any


def loss_svg(lines: Sequence[dict[str, Any]]) -> str:
    """The loss and its parts by step, and the evaluation's cross-entropy, as an SVG with text that can be selected."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    axes.plot(*zip(*points, strict=True), label="loss", linewidth=2)
    for name in dict.fromkeys(name for line in lines for name in line.get("losses", ())):
        points = [(line["step"], line["losses"][name]) for line in lines if name in line.get("losses", ())]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    points = [(line["step"], line["evaluation"]["cross_entropy"]) for line in lines if "evaluation" in line]
    if points:
        axes.plot(*zip(*points, strict=True), "o", label="cross-entropy on evaluation rows", markersize=4)
    axes.set(xlabel="optimiser step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    drawing = io.StringIO()
    FigureCanvasSVG(figure).print_svg(drawing, metadata={"Date": None})
    return drawing.getvalue()

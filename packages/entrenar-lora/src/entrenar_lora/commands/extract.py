"""The command `extract`."""

from pathlib import Path
from typing import Annotated

import typer

from entrenar_lora.reports.extract import AdapterReport

EXAMPLES = """
entrenar-lora extract --base ./model --tuned ./tuned --rank 64 --output ./lora

entrenar-lora extract --base ./model --tuned ./tuned --energy 0.99 --output ./lora   a rank for each matrix

entrenar-lora extract --base org/model --tuned ./tuned --rank 16 --targets attention --output ./lora

entrenar-lora extract --base ./model --tuned ./tuned --rank 16 --modules-to-save classifier --output ./lora

entrenar-lora extract --adapter ./lora --rank 16 --output ./smaller   an adapter of a smaller rank, without its base
"""


def extract(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the adapter, as peft loads it.")],
    base: Annotated[
        str | None, typer.Option("--base", "-b", metavar="MODEL", help="The model that the other was trained from.")
    ] = None,
    tuned: Annotated[
        str | None, typer.Option("--tuned", "-t", metavar="MODEL", help="The model after its training.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", "-a", metavar="ADAPTER", help="Instead of two models: an adapter to be cut to --rank."
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of every matrix.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: the share of each change, in squares, that is to be kept: 0.99.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="attention, query-value, all-linear, or names: q_proj,v_proj; all that changed, else."
        ),
    ] = None,
    modules_to_save: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Modules that the adapter is to hold whole: lm_head,classifier.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the adapter: bf16, fp16 or fp32.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of the random directions by which large matrices are looked at.")] = 42,
    alpha: Annotated[
        float | None, typer.Option(help="Of an --adapter whose files do not say it, as it was trained.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read PyTorch files too. Nothing in them is run.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier adapter in the output.")] = False,
) -> AdapterReport:
    """Make a low-rank adapter of the difference between two models, and say how much of it that keeps."""
    from entrenar_lora.extracting import ExtractRequest, run_extract

    return run_extract(
        ExtractRequest(
            base=base,
            tuned=tuned,
            adapter=adapter,
            output=output,
            rank=rank,
            energy=energy,
            targets=targets,
            modules_to_save=modules_to_save,
            dtype=dtype,
            seed=seed,
            alpha=alpha,
            allow_pickle=allow_pickle,
            force=force,
        )
    )

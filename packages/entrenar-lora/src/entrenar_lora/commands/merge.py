"""The command `merge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from entrenar_lora.reports.merge import AdapterReport, MergeReport

EXAMPLES = """
entrenar-lora merge --base ./model --adapter ./lora --output ./merged

entrenar-lora merge --base ./model --adapter ./lora --output ./merged --verify   compares logits with peft's

entrenar-lora merge --base ./model --adapter ./lora --output model.gguf --to gguf --quantize q4_k_m

entrenar-lora merge --base ./model --adapter ./a --adapter ./b --weights 0.7,0.3 --output ./merged

entrenar-lora merge --base ./model --adapter ./a --adapter ./b --combine ties --density 0.2 --output ./merged

entrenar-lora merge --adapter ./a --adapter ./b --combine svd --rank 16 --as-adapter --output ./both

entrenar-lora merge --base model.safetensors --adapter lora.safetensors --alpha 32 --output merged.safetensors
"""
MethodName = Literal["linear", "cat", "svd", "ties", "dare"]
FormatName = Literal["safetensors", "gguf", "apr", "apr-json", "pytorch"]


def merge(
    adapter: Annotated[
        list[str],
        typer.Option(
            "--adapter", "-a", metavar="ADAPTER", help="A folder that peft saved, or a file; may be repeated."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file, where it ends as the format does; else a folder.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            "-b",
            metavar="MODEL",
            help="What it was trained on: a folder, a file, org/name, pkg://package/path.",
        ),
    ] = None,
    scale: Annotated[float, typer.Option(help="Multiplies the change of the weights: 0.5 is half of it.")] = 1.0,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W", help="Of several adapters, in their order; 1 each, if not given.")
    ] = None,
    combine: Annotated[
        MethodName,
        typer.Option(
            help="Several adapters: their exact sum (linear, or cat as peft calls it), that sum cut to a rank (svd), "
            "TIES or DARE, both on the change of each matrix."
        ),
    ] = "linear",
    density: Annotated[
        float | None, typer.Option(help="TIES, DARE: the share of values that is kept of each matrix.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="svd: the rank; the largest of theirs, if not given.")] = None,
    seed: Annotated[int, typer.Option(help="DARE: of what is dropped.")] = 42,
    dtype: Annotated[
        str | None, typer.Option(help="Of all weights: bf16, fp16, fp32 or fp64; as the base has them, if not given.")
    ] = None,
    to: Annotated[
        FormatName | None, typer.Option("--to", help="The format; as --output ends, else safetensors.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="TYPE", help="GGUF: q8_0, q6_k, q5_k_m, q4_k_m, q4_0 and others; APR: q4_k_m.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Files of at most this size; those of the base, if not given.")
    ] = None,
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write the combination as an adapter; no base is needed.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Compare logits with those of base and adapter in peft; exit 1 where rounding is not why."
        ),
    ] = False,
    alpha: Annotated[
        float | None, typer.Option(help="Of adapters whose files do not say it, as they were trained.")
    ] = None,
    rslora: Annotated[
        bool, typer.Option("--rslora", help="The scale of such adapters is alpha / √rank, and not alpha / rank.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read PyTorch files too. Nothing in them is run.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a base on the Hub.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier model in the output.")] = False,
) -> MergeReport | AdapterReport:
    """Merge adapters into their base model, and say what storing it loses of them."""
    from entrenar_lora.merging import MergeRequest, run_as_adapter, run_merge

    request = MergeRequest(
        base=base,
        adapters=tuple(adapter),
        output=output,
        scale=scale,
        weights=weights,
        combine=combine,
        density=density,
        rank=rank,
        seed=seed,
        dtype=dtype,
        to=to,
        quantize=quantize,
        shard_size=shard_size,
        verify=verify,
        alpha=alpha,
        rslora=rslora,
        allow_pickle=allow_pickle,
        revision=revision,
        dry_run=dry_run,
        force=force,
    )
    return run_as_adapter(request) if as_adapter else run_merge(request)

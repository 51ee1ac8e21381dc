"""The command `compare`."""

from typing import Annotated, Literal

import typer

from entrenar_lora.commands.options import Precision, Revision, Task
from entrenar_lora.reports.compare import CompareReport

EXAMPLES = """
entrenar-lora compare --model 7B --methods full,lora-16,lora-64,qlora-4bit

entrenar-lora compare --model 7B --vram 24GB --gradient-checkpointing   every method, and which of them fit

entrenar-lora compare --model ./model --methods full,lora-8,ia3,prompt-20 --calibrate   with real steps on this machine
"""
_METHODS = "full,lora-16,lora-64,dora-16,qlora-4bit,qlora-8bit,ia3,prompt-20,prefix-20,bias,adaption-prompt"


def compare(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="org/name, a folder, a .gguf, pkg://package/path, or a known size: 1B, 3B, 7B, 8B, 13B, 70B.",
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(help="Separated by commas; a number is a rank, or how many virtual tokens. qlora has rank 64."),
    ] = _METHODS,
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Say which fit: 16GB, of a GPU; else what this machine has left.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda", "mps"] | None,
        typer.Option(help="The kind of device; of a known size, cuda.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a pass.", min=1, max=4096)] = 4,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a row.", min=2)] = 1024,
    precision: Precision = None,
    checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations anew in the backward pass.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure speed with real steps here, of every method that fits.")
    ] = False,
    task: Task = None,
    revision: Revision = None,
) -> CompareReport:
    """Set methods of fine-tuning a model side by side."""
    from entrenar_lora.comparing import Wanted
    from entrenar_lora.comparing import compare as look

    wanted = Wanted(
        methods=methods,
        vram=vram,
        device=device,
        batch_size=batch_size,
        sequence_length=sequence_length,
        precision=precision,
        checkpointing=checkpointing,
        calibrate=calibrate,
        revision=revision,
        task=task,
    )
    return look(model, wanted)

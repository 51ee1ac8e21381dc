"""Options of commands that predict memory: what trains, on which devices, and of what machine."""

from typing import Annotated, Literal

import typer

Method = Annotated[Literal["full", "lora", "qlora"], typer.Option(help="What of the model is trained.")]
MethodAsked = Annotated[
    Literal["full", "lora", "qlora"] | None,
    typer.Option(help="What of the student is trained, in place of what the configuration says.", show_default=False),
]
Rank = Annotated[int | None, typer.Option(help="Of adapters; 16 if not given.", min=1, show_default=False)]
Devices = Annotated[int, typer.Option(help="How many devices share it.", min=1)]
StrategyName = Annotated[
    Literal["ddp", "zero1", "zero2", "fsdp"], typer.Option(help="What each of several devices has of the models.")
]
DeviceName = Annotated[
    Literal["cpu", "cuda", "mps"] | None,
    typer.Option(help="What kind of device; that of this machine if not given.", show_default=False),
]
Available = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory of another machine than this one: 16GB.", show_default=False)
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Also take real steps, with random weights: their time and memory.")
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep weights and the optimiser's state in main memory, as FSDP can.")
]

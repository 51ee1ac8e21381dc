"""Options that several commands have."""

from typing import Annotated, Literal

import typer

TaskName = Literal["causal-lm", "masked-lm", "sequence-classification", "token-classification"]
Task = Annotated[TaskName | None, typer.Option(help="What it learns; else what the model says.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
Precision = Annotated[
    Literal["bf16", "fp32"] | None,
    typer.Option(help="Of frozen weights and the computation; fp32 on a cpu, else bf16.", show_default=False),
]

"""The commands of `entrenar-lora`, each in a module of its own."""

import typer

from entrenar_lora.commands.compare import EXAMPLES as COMPARE
from entrenar_lora.commands.compare import compare
from entrenar_lora.commands.convert import EXAMPLES as CONVERT
from entrenar_lora.commands.convert import convert
from entrenar_lora.commands.extract import EXAMPLES as EXTRACT
from entrenar_lora.commands.extract import extract
from entrenar_lora.commands.inspect import EXAMPLES as INSPECT
from entrenar_lora.commands.inspect import inspect
from entrenar_lora.commands.merge import EXAMPLES as MERGE
from entrenar_lora.commands.merge import merge
from entrenar_lora.commands.plan import EXAMPLES as PLAN
from entrenar_lora.commands.plan import plan
from entrenar_lora.commands.train import EXAMPLES as TRAIN
from entrenar_lora.commands.train import train

app = typer.Typer(help="Plan, train, merge and inspect low-rank adapters.")

for command, examples in (
    (plan, PLAN),
    (compare, COMPARE),
    (train, TRAIN),
    (merge, MERGE),
    (inspect, INSPECT),
    (convert, CONVERT),
    (extract, EXTRACT),
):
    app.command(epilog=examples)(command)

"""How long `entrenar-distill` takes to answer, as ratios to a Typer program that prints one rich table.

Runs are interleaved, so that what else the machine does weighs on all three alike. Fails beyond the bounds, or where
an answer has imported a library that it does not need.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = "configs/quickstart.yaml"
ROUNDS = 25
PEER = '''
import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer()


@app.command()
def show(rows: int = 3) -> None:
    """Print a table."""
    table = Table("name", "value", title="Peer")
    for row in range(rows):
        table.add_row(f"row {row}", str(row))
    Console().print(table)


app()
'''
COMMANDS = {"--help": (["--help"], 1.2), f"validate {CONFIG}": (["validate", CONFIG], 1.6)}
HEAVY = ("torch", "transformers", "datasets")
IMPORTED = f"""
import sys
from entrenar_distill.cli import main
status = main(sys.argv[1:])
print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
sys.exit(status)
"""


def seconds(command: list[str]) -> float:
    """How long a command takes; it must succeed."""
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def imported(arguments: list[str]) -> list[str]:
    """Which of the heavy libraries a command imports."""
    command = [sys.executable, "-c", IMPORTED, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr.split()


def main() -> int:
    """Measures, prints a line for each command, and returns 1 where one is over its bound."""
    program = str(Path(sys.executable).with_name("entrenar-distill"))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        peer = Path(folder) / "peer.py"
        peer.write_text(PEER)
        commands = [[sys.executable, str(peer)], *([program, *arguments] for arguments, _ in COMMANDS.values())]
        for command in commands:  # byte code and file cache
            seconds(command)
        rounds = [[seconds(command) for command in commands] for _ in range(ROUNDS)]
    peer_s, *ours = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"a Typer program with one rich table: {peer_s:.3f} s (median of {ROUNDS} interleaved runs)")
    for median_s, (name, (arguments, bound)) in zip(ours, COMMANDS.items(), strict=True):
        ratio, heavy = median_s / peer_s, imported(arguments)
        over = ratio > bound or bool(heavy)
        print(
            f"entrenar-distill {name}: {median_s:.3f} s, {ratio:.2f} times that (bound {bound}), "
            f"imports {', '.join(heavy) or 'none'} of {', '.join(HEAVY)}{' FAILED' if over else ''}"
        )
        failed |= over
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

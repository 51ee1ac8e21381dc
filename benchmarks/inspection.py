"""How fast files are looked into, each figure beside a program that does as little with as many bytes.

`info` of a 12.5 GB file, which is sparse, against a Typer program that prints one rich table; the scan for values that
are not finite against `cat FILE > /dev/null`; statistics and comparison by their rates; conversion against `cp`. But
for `info`, files lie in the page cache and imports are not counted. Sides take turns; medians of the rounds.

(Not called inspect.py: a script's folder is searched first, and the standard library has a module of that name.)
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

INFO_RATIO, INFO_BYTES = 1.5, 90_000_000
SCAN_RATIO, STATS_RATE, COMPARE_RATE, CONVERT_RATIO = 0.8, 1.2e9, 1e9, 1.3
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
LAYERS, HIDDEN, NEURONS, VOCABULARY = 33, 4096, 9344, 32000  # 300 tensors, 12.5 GB in half precision


def sparse_model(path: Path) -> Path:
    """A Llama of 6.7 billion weights whose file has a header and no data blocks."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    shapes["model.norm.weight"] = (HIDDEN,)
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        shapes |= {f"{place}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{place}.mlp.{name}_proj.weight": (NEURONS, HIDDEN) for name in ("gate", "up")}
        shapes[f"{place}.mlp.down_proj.weight"] = (HIDDEN, NEURONS)
        shapes |= {f"{place}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


def dense_model(path: Path, size_bytes: int, seed: int) -> Path:
    """Matrices of random bfloat16 weights, as of a model of that size; what is written is in the page cache."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    shapes = [(4096, 4096), (11008, 4096), (4096,)] * (size_bytes // 2 // (4096 * (4096 + 11008)))
    tensors = {
        f"model.layers.{number}.w.weight": (torch.randn(shape, generator=generator) * 0.02).bfloat16()
        for number, shape in enumerate(shapes)
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def run(command: list[str], cache: Path | None = None) -> dict[str, float]:
    """Seconds and peak resident memory of a program, which must succeed. What Python compiles is kept in `cache`, as an
    installed program's is: where Python may not write, every run would compile what it imports.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = None if cache is None else {**kept, "PYTHONPYCACHEPREFIX": str(cache)}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: {complaint.decode()}")
    return {"s": time.perf_counter() - began, "peak_bytes": usage.ru_maxrss * 1024}


def worked(what: str, *paths: Path) -> dict[str, float]:
    """What one of `WORK` took, in a process of its own, after its imports."""
    command = [sys.executable, __file__, "--worker", what, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def scan(path: Path) -> Callable[[], Any]:
    from entrenar_core.measuring.finite import non_finite

    return lambda: non_finite(_model(path))


def stats(path: Path) -> Callable[[], Any]:
    import torch  # noqa: F401 - no import is to be counted, whoever makes it

    from entrenar_core.measuring.statistics import statistics_of

    model = _model(path)
    return lambda: [statistics_of(model, tensor) for tensor in model.tensors.values()]


def differences(first: Path, second: Path) -> Callable[[], Any]:
    import torch  # noqa: F401 - no import is to be counted, whoever makes it

    from entrenar_inspect.comparing import compare

    return lambda: compare(_model(first), _model(second), values=True)  # starts its processes each time


def convert(path: Path, output: Path) -> Callable[[], Any]:
    from entrenar_core.conversion import convert as written
    from entrenar_core.formats import WeightFormat

    return lambda: written(_model(path), WeightFormat.SAFETENSORS, output, force=True)


def _model(path: Path) -> Any:
    from entrenar_core.references import PathReference
    from entrenar_core.stored_model import open_model

    return open_model(PathReference(str(path)))


def dense(path: Path, size_bytes: Path, seed: Path) -> Callable[[], Any]:
    return lambda: dense_model(path, int(str(size_bytes)), int(str(seed)))


WORK: dict[str, Callable[..., Callable[[], Any]]] = {
    "dense": dense, "scan": scan, "stats": stats, "differences": differences, "convert": convert,
}  # fmt: skip


def work(what: str, paths: list[Path]) -> dict[str, float]:
    """Imports, then does the work and says how long it took."""
    job = WORK[what](*paths)
    began = time.perf_counter()
    job()
    taken = time.perf_counter() - began
    return {"s": taken, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def measured(folder: Path, size_bytes: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every side, which take turns."""
    peer, big = folder / "peer.py", sparse_model(folder / "big.safetensors")
    peer.write_text(PEER)
    first, second = (folder / f"{seed}.safetensors" for seed in (0, 1))
    for seed, path in enumerate((first, second)):  # by a program of its own: a child's peak starts at its parent's
        worked("dense", path, Path(str(size_bytes)), Path(str(seed)))
    copy, output = folder / "copy.safetensors", folder / "output.safetensors"
    program = str(Path(sys.executable).with_name("entrenar-inspect"))
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "Typer and a table": lambda: run([sys.executable, str(peer)], folder / "compiled"),
        "info": lambda: run([program, "info", str(big)], folder / "compiled"),
        "cat": lambda: run(["cat", str(first)]),
        "scan": lambda: worked("scan", first),
        "stats": lambda: worked("stats", first),
        "compare": lambda: worked("differences", first, second),
        "compare, equal": lambda: worked("differences", first, first),
        "cp": lambda: _fresh(first, copy, lambda: run(["cp", str(first), str(copy)])),
        "convert": lambda: _fresh(first, output, lambda: worked("convert", first, output)),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            for path in (first, second):  # a machine may have given the pages to others meanwhile
                run(["cat", str(path)])
            result = side()
            if turn:  # the first fills the page cache and compiles what is imported
                found[name].append(result)
                print(f"  round {turn} of {rounds}: {name}: {result['s']:.3f} s", file=sys.stderr, flush=True)
    size = first.stat().st_size
    return {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]} | {"bytes": size}
        for name, results in found.items()
    }


def _fresh(source: Path, target: Path, job: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What is written is written anew, since to overwrite a file in the page cache is something else; and where as much
    was written and removed just before: neither side waits for pages that a virtual machine has given back, or for
    those that another side has not written out.
    """
    for _ in range(2):
        run(["cp", str(source), str(target)])
        target.unlink()
    os.sync()
    found = job()
    target.unlink()
    return found


def judged(sides: dict[str, dict[str, float]]) -> list[tuple[str, float, float, bool]]:
    """Every figure with its aim, and whether it is met: what is measured, how much, the aim, met."""
    rate = {name: side["bytes"] / side["s"] for name, side in sides.items()}
    found = {name: side["s"] for name, side in sides.items()}
    info, scan_rate = found["info"] / found["Typer and a table"], rate["scan"] / rate["cat"]
    converted = found["convert"] / found["cp"]
    return [
        ("info, of the time of a Typer program", info, INFO_RATIO, info <= INFO_RATIO),
        (
            "info, peak in MB",
            sides["info"]["peak_bytes"] / 1e6,
            INFO_BYTES / 1e6,
            sides["info"]["peak_bytes"] < INFO_BYTES,
        ),
        ("scan, of the rate of cat", scan_rate, SCAN_RATIO, scan_rate >= SCAN_RATIO),
        ("statistics, GB/s", rate["stats"] / 1e9, STATS_RATE / 1e9, rate["stats"] >= STATS_RATE),
        ("compare, GB/s of each file", rate["compare"] / 1e9, COMPARE_RATE / 1e9, rate["compare"] >= COMPARE_RATE),
        ("convert, of the time of cp", converted, CONVERT_RATIO, converted <= CONVERT_RATIO),
    ]


def main() -> int:
    """Measures, prints a line for each figure, and returns 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the files with values")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    parser.add_argument("--worker", nargs="+", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(work(options.worker[0], list(map(Path, options.worker[1:])))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sides = measured(Path(folder), round(options.gigabytes * 1e9), 1 if options.quick else options.rounds)
    figures = judged(sides)
    met = all(fine for *_, fine in figures)
    if options.json:
        from peers.machine import machine

        print(json.dumps({"machine": machine(), "sides": sides, "figures": figures, "met": met}, indent=1))
        return int(not met)
    for name, side in sides.items():
        print(f"{name}: {side['s']:.3f} s, peak {side['peak_bytes'] / 1e6:.0f} MB")
    for what, figure, aim, fine in figures:
        print(f"{what}: {figure:.2f} (aim {aim:g}){'' if fine else ' FAILED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())

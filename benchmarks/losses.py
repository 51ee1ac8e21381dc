"""What a distillation loss of a language model costs, forward and backward: entrenar's against those of its peers.

Everyone computes the same mean from the same hidden states and heads, and the gradients of the student's. Each case has
a process of its own with one thread: a call to warm up, then the median of the CPU seconds and of the peak memory over
what was there before. That values and gradients agree is checked. The peers come with `tools/uv sync --group peers`.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

ROWS = {32_000: 1024, 128_256: 512, 151_936: 512}  # of Llama 2, Llama 3 and Qwen 2.5
STUDENT, TEACHER = 256, 512  # widths
TIMES = {0.0: 1.0, 0.5: 0.6}  # the aims: of the time of the fastest peer, by the share of rows that are masked
PEAKS = {32_000: 1 / 3, 128_256: 0.5, 151_936: 0.5}  # of that peer's extra peak
AGREEMENT = 1e-4
DIVERGENCES = ("forward KL", "JSD")
OURS = "entrenar"
LIBRARIES = [
    "entrenar_core.losses.kernel",
    "liger_kernel.chunked_loss",
    "trl.experimental.gkd",
    "trl.kernels.chunked_divergence",
]


@dataclass(frozen=True)
class Case:
    """What is computed, and how often."""

    vocabulary: int
    rows: int
    masked: float
    divergence: str
    repeats: int

    @property
    def name(self) -> str:
        return f"V = {self.vocabulary:,}, {self.divergence}, {'half' if self.masked else 'none'} of {self.rows} masked"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """In the order of the table."""
    for vocabulary in options.vocabulary:
        for divergence in options.divergence:
            for masked in TIMES:
                rows = options.rows or ROWS.get(vocabulary, 512)
                yield Case(vocabulary, rows, masked, divergence, options.repeats)


def work(contender: str, case: Case) -> dict[str, Any]:
    """What one contender needs for one case. Runs in a process of its own."""
    import torch
    from peers.losses import CONTENDERS, drawn
    from peers.measuring import cost

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    inputs = drawn(case.rows, case.vocabulary, STUDENT, TEACHER, case.masked)

    def run(name: str) -> tuple[Any, ...]:
        loss = made[name](inputs)
        return loss.detach(), *torch.autograd.grad(loss, inputs.leaves)

    made = {name: CONTENDERS[name].make(case.divergence) for name in (contender, OURS)}
    value, *gradients = run(contender)
    costs = [cost(lambda: run(contender)) for _ in range(case.repeats)]
    our_value, *our_gradients = run(OURS)
    return {
        "cpu_s": statistics.median(seconds for seconds, _ in costs),
        "all_cpu_s": [seconds for seconds, _ in costs],
        "peak_bytes": statistics.median(peak for _, peak in costs),
        "value": value.item(),
        "value_difference": abs(value - our_value).item() / abs(our_value).item(),
        "gradient_difference": max(
            ((theirs - ours).abs().max() / ours.abs().max()).item()
            for theirs, ours in zip(gradients, our_gradients, strict=True)
        ),
    }


def processes() -> ProcessPoolExecutor:
    """Makes a process for each task, forked from one that has loaded the libraries and computed nothing."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


def measured(contender: str, case: Case, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """The same, in that process; and whether it computes what ours does."""
    from peers.losses import CONTENDERS

    result = pool.submit(work, contender, case).result()
    differs = CONTENDERS[contender].value_differs
    if result["gradient_difference"] > AGREEMENT or (differs is None and result["value_difference"] > AGREEMENT):
        raise SystemExit(f"{contender}, {case.name}: does not compute what the others do: {result}")
    return {"contender": contender, **asdict(case), **result, "value_is": differs or "ours"}


def verdict(results: list[dict[str, Any]], case: Case) -> dict[str, Any] | None:
    """Ours against the fastest peer, and against the aims; nothing where no peer was measured."""
    ours, peers = results[0], results[1:]
    if not peers:
        return None
    fastest = min(peers, key=lambda result: result["cpu_s"])
    time, peak = (ours[key] / fastest[key] for key in ("cpu_s", "peak_bytes"))
    time_aim, peak_aim = TIMES[case.masked], PEAKS.get(case.vocabulary, 0.5)
    return {
        "case": case.name,
        "fastest": fastest["contender"],
        "time_ratio": time,
        "time_aim": time_aim,
        "peak_ratio": peak,
        "peak_aim": peak_aim,
        "met": time <= time_aim and peak <= peak_aim,
    }


def shown(case: Case, results: list[dict[str, Any]], outcome: dict[str, Any] | None) -> Table:
    """One table for each case."""
    table = Table(title=case.name, title_justify="left", caption_justify="left")
    table.add_column("")
    for column in ("CPU s", "fastest to slowest", "extra peak, MB", "value"):
        table.add_column(column, justify="right")
    for result in results:
        times = result["all_cpu_s"]
        table.add_row(
            result["contender"],
            f"{result['cpu_s']:.2f}",
            f"{min(times):.2f} to {max(times):.2f}",
            f"{result['peak_bytes'] / 1e6:.0f}",
            f"{result['value']:.5f}{'' if result['value_is'] == 'ours' else ' *'}",
        )
    notes = [f"* {x['contender']}: {x['value_is']}" for x in results if x["value_is"] != "ours"]
    if outcome is not None:
        time, peak = (
            f"{outcome[f'{x}_ratio']:.2f} of the {x} (aim {outcome[f'{x}_aim']:.2g})" for x in ("time", "peak")
        )
        notes.append(f"{time} and {peak} of {outcome['fastest']}{'' if outcome['met'] else ': MISSED'}")
    table.caption = "\n".join(notes)
    return table


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=list(ROWS), help="tokens")
    parser.add_argument("--divergence", nargs="+", choices=DIVERGENCES, default=list(DIVERGENCES))
    parser.add_argument("--contender", nargs="+", default=None, help="which peers; ours always runs")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="32,000 tokens alone")
    parser.add_argument("--json", action="store_true", help="results as JSON instead of tables")
    options = parser.parse_args(arguments)
    if options.quick:
        options.vocabulary = [32_000]
    return options


def contenders(wanted: list[str] | None) -> list[str]:
    """Ours, then the peers that are installed."""
    from peers.losses import CONTENDERS

    if unknown := set(wanted or ()) - set(CONTENDERS):
        raise SystemExit(f"no such contender: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    found = []
    for name, contender in CONTENDERS.items():
        if importlib.util.find_spec(contender.requires) is None:
            print(f"{name} is not installed (dependency group `peers`), and is left out", file=sys.stderr)
        elif name == OURS or wanted is None or name in wanted:
            found.append(name)
    return found


def main() -> int:
    """Measures, prints a table for each case, and returns 1 where an aim is missed."""
    options = options_of(sys.argv[1:])
    from peers.losses import CONTENDERS
    from peers.machine import machine

    names, everything, outcomes = contenders(options.contender), [], []
    with processes() as pool:
        for case in cases(options):
            able = [name for name in names if case.divergence in CONTENDERS[name].divergences]
            results = [measured(name, case, pool) for name in able]
            everything += results
            if (outcome := verdict(results, case)) is not None:
                outcomes.append(outcome)
            if not options.json:
                Console().print(shown(case, results, outcome), "")
    if options.json:
        print(json.dumps({"machine": machine(), "results": everything, "outcomes": outcomes}, indent=2))
    return int(not all(outcome["met"] for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

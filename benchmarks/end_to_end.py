"""A whole distillation of a language model: `entrenar-distill run` against TRL's GKDTrainer.

The same models (a Llama of 2 layers of 128 learns from one of 4 of 256, 32,000 tokens), the same batches in the same
order, the same loss and optimiser, one thread each; that the losses agree is checked. The two take turns, each time in
a process of its own. TRL comes with `tools/uv sync --group peers`.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SPEED, PEAK = 1.5, 0.5  # the aims: tokens per second, and the peak memory over that after the imports
AGREEMENT = 1e-3
OURS, PEER = "entrenar", "TRL GKD"


def trained(side: str, folder: Path, steps: int) -> dict[str, Any]:
    """What a run of one side took, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for name in ("teacher", "student", "data"):
            (Path(work) / name).symlink_to(folder / name)
        command = [sys.executable, __file__, "--worker", side, "--folder", work, "--steps", str(steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(side: str, folder: Path, steps: int) -> dict[str, Any]:
    """The run itself."""
    import torch
    from peers.runs import SIDES, Job

    torch.set_num_threads(1)
    return SIDES[side](Job(folder, steps))


def measured(steps: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Medians of both sides over runs that take turns."""
    from peers.runs import Job, prepare

    with tempfile.TemporaryDirectory() as folder:
        prepare(Job(Path(folder), steps))
        runs = [{side: trained(side, Path(folder), steps) for side in (OURS, PEER)} for _ in range(repeats)]
    for run in runs:
        pairs = zip(run[OURS]["losses"], run[PEER]["losses"], strict=True)
        if (worst := max(abs(a - b) / abs(b) for a, b in pairs)) > AGREEMENT:
            raise SystemExit(f"the two do not do the same: losses differ by {worst:.2g}")
    return {
        side: {key: statistics.median(run[side][key] for run in runs) for key in runs[0][side] if key != "losses"}
        | {"losses": runs[0][side]["losses"]}
        for side in (OURS, PEER)
    }


def main() -> int:
    """Measures, prints a line for each side and the ratios, and returns 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one run of each")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(work(options.worker, Path(options.folder), options.steps)))
        return 0
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed (dependency group `peers`), so there is nothing to compare with", file=sys.stderr)
        return 0
    sides = measured(options.steps, 1 if options.quick else options.repeats)
    from peers.machine import machine

    speed = sides[OURS]["tokens_per_cpu_s"] / sides[PEER]["tokens_per_cpu_s"]
    peak = sides[OURS]["peak_bytes"] / sides[PEER]["peak_bytes"]
    met = speed >= SPEED and peak <= PEAK
    if options.json:
        found = {"machine": machine(), "sides": sides, "speed_ratio": speed, "peak_ratio": peak, "met": met}
        print(json.dumps(found, indent=2))
        return int(not met)
    for name, side in sides.items():
        print(
            f"{name}: {side['tokens_per_cpu_s']:.0f} tokens per CPU second, {side['cpu_s_per_step']:.2f} CPU s a step, "
            f"peak {side['peak_bytes'] / 1e6:.0f} MB over that after the imports"
        )
    print(
        f"{speed:.2f} times the tokens per second (aim {SPEED}), {peak:.2f} of the peak (aim {PEAK})"
        f"{'' if met else ' MISSED'}"
    )
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())

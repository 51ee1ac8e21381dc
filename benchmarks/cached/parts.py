"""The parts of the benchmark: what each measures, the lines that it prints, and which of its aims are missed."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cached.bench import CACHED, PEER, Bench, Side
from cached.jobs import CACHES, ENCODERS, LABELS, LIVE, work

SPEEDS: Mapping[str, float] = {"hidden, bfloat16": 1.4, "top-k, 100": 1.6}  # of live, on SmolLM2 and six of its layers
ENCODER_SPEED = 3.0  # of the first of `ENCODERS`
READING = 200e6  # bytes a second
READ = ("hidden, bfloat16", "top-k, 100")
READ_S = 8.0
EXACT = "hidden, float32"
SEEDS = (0, 1, 2, 3, 4)
AT_ONCE = 2  # students of the part `quality`, of one thread each
QUALITY_BATCH, QUALITY_RATE = 4, 3e-4


@dataclass(frozen=True, slots=True)
class Part:
    """What was found, as JSON and as lines, and the aims that are missed."""

    found: Any
    lines: Sequence[str]
    missed: Sequence[str] = ()


def sizes(bench: Bench) -> Part:
    """Bytes of a position and the rate of the build of each kind, beside full logits in 16 bits."""
    config = bench.ready()
    full = work("logits", threads=2, config=str(config), folder=str(bench.folder))
    lines = [
        f"full logits, float16: {full['bytes_per_position']:,.0f} bytes, {full['positions_per_s']:.0f} positions/s"
    ]
    found: dict[str, Any] = {"full logits, float16": full}
    for name in CACHES:
        manifest = bench.manifest(name)
        per_position = sum(shard["bytes"] for shard in manifest["shards"]) / manifest["positions"]
        rate, told = manifest["built"]["positions_per_s"], manifest["measured"]
        found[name] = {
            "bytes_per_position": per_position,
            "of_full_logits": per_position / full["bytes_per_position"],
            "positions_per_s": rate,
            **told,
        }
        lines.append(
            f"{name}: {per_position:,.1f} bytes, 1/{full['bytes_per_position'] / per_position:.0f} of full logits, "
            f"{rate:.0f} positions/s, gradient at {told['gradient_angle']:.2f}° "
            f"({told['position_angle']:.2f}° a position)"
        )
    return Part(found, lines)


def speed(bench: Bench) -> Part:
    """Steps of the second epoch."""
    runs = bench.language_runs()
    found: dict[str, Any] = {"SmolLM2": {side: _speed(runs[side], runs) for side in runs}}
    missed = [
        f"{side}: {ratio:.2f} of live, aim {aim}"
        for side, aim in SPEEDS.items()
        if (ratio := found["SmolLM2"][side]["times_live"]) < aim
    ]
    for name, sides in bench.encoders().items():
        found[name] = {side: _speed(sides[side], sides) for side in sides}
    first = ENCODERS[0].name
    if (ratio := found[first][CACHED]["times_live"]) < ENCODER_SPEED:
        missed.append(f"{first}: {ratio:.2f} of live, aim {ENCODER_SPEED}")
    lines = [
        f"{name}: {side}: {told['steps_per_cpu_s']:.3g} steps/CPU s, {told['steps_per_s']:.3g} steps/s, "
        f"{told['times_live']:.2f} times live ({_span(told['times_live_by_round'])})"
        + (f", {told['times_peer']:.2f} times {PEER}" if "times_peer" in told else "")
        for name, sides in found.items()
        for side, told in sides.items()
    ]
    return Part(found, lines, missed)


def _speed(rounds: Sequence[Side], sides: Mapping[str, Sequence[Side]]) -> Side:
    """Ratios are of CPU seconds in the same round."""
    told: Side = {
        f"steps_per_{clock}": 1 / statistics.mean(run[key] for run in rounds)
        for clock, key in (("cpu_s", "cpu_s_per_step"), ("s", "wall_s_per_step"))
    }
    told["steps"] = sum(run["steps"] for run in rounds)
    for key, other in (("times_live", LIVE), ("times_peer", PEER)):
        if other in sides:
            pairs = zip(sides[other], rounds, strict=True)
            ratios = [theirs["cpu_s_per_step"] / ours["cpu_s_per_step"] for theirs, ours in pairs]
            told |= {key: statistics.mean(ratios), f"{key}_by_round": ratios}
    return told


def memory(bench: Bench) -> Part:
    """Peaks of resident memory in the second epoch; of cached runs, pages of the cache that were read are in them."""
    found: dict[str, Any] = {}
    for name, sides in {"SmolLM2": bench.language_runs(), **bench.encoders()}.items():
        found[name] = {
            side: {key: [run[key] for run in rounds] for key in ("peak_bytes", "peak_over_imports_bytes")}
            for side, rounds in sides.items()
        }
    lines = [
        f"{name}: {side}: {max(told['peak_bytes']) / 1e6:.0f} MB, of them "
        f"{max(told['peak_over_imports_bytes']) / 1e6:.0f} over those after the imports"
        for name, sides in found.items()
        for side, told in sides.items()
    ]
    return Part(found, lines)


def reading(bench: Bench) -> Part:
    """A loop that does no work."""
    found: dict[str, Any] = {}
    for name in READ:
        bench.manifest(name)
        arguments = {"config": str(bench.ready()), "cache": str(bench.language.cache(name)), "seconds": READ_S}
        found[name] = work("reading", **arguments)
    lines = [
        f"{name}: {told['bytes_per_s'] / 1e6:.0f} MB/s, {told['bytes_per_cpu_s'] / 1e6:.0f} MB per CPU s, "
        f"{told['rows_per_s']:,.0f} rows/s"
        for name, told in found.items()
    ]
    missed = [
        f"reading {name}: {rate / 1e6:.0f} MB per CPU s, aim {READING / 1e6:.0f}"
        for name, told in found.items()
        if (rate := told["bytes_per_cpu_s"]) < READING
    ]
    return Part(found, lines, missed)


def quality(bench: Bench) -> Part:
    """Gradients, and students of two layers after one epoch, on rows that they have not seen: means of the seeds, with
    95 % intervals, and paired differences from the students of the live teacher. A seed is a draw of the noise that the
    gradients are measured with, and an order of the rows.
    """
    for name in CACHES:
        bench.manifest(name)
    arms = [LIVE, *CACHES, LABELS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        students = dict(zip(arms, pool.map(lambda arm: _students(bench, arm), arms), strict=True))
    found = {
        arm: {
            key: {**interval([one[key] for one in of_arm]), "less_live": interval(
                [one[key] - other[key] for one, other in zip(of_arm, students[LIVE], strict=True)]
            )}
            for key in ("cross_entropy", "kl")
        }
        for arm, of_arm in students.items()
    }  # fmt: skip
    angles = {name: _angles(bench, name) for name in CACHES}
    lines = [
        f"{name}: gradient at {_interval(told['gradient_angle'])}°, of a position {_interval(told['position_angle'])}°"
        for name, told in angles.items()
    ]
    lines += [
        f"{arm}: " + ", ".join(
            f"{key} {_interval(told[key])} (less live {_interval(told[key]['less_live'], '+')})" for key in told
        )
        for arm, told in found.items()
    ]  # fmt: skip
    return Part({"students": students, "arms": found, "angles": angles}, lines)


def _angles(bench: Bench, name: str) -> dict[str, dict[str, Any]]:
    bench.say(f"gradients: {name}")
    arguments = {"config": str(bench.ready()), "cache": str(bench.language.cache(name)), "seeds": list(SEEDS)}
    found = work("angles", threads=2, **arguments)
    return {key: interval([one[key] for one in found]) for key in ("gradient_angle", "position_angle")}


def _students(bench: Bench, arm: str) -> list[dict[str, Any]]:
    """Of all seeds, in one process."""
    bench.say(f"{len(SEEDS)} students: {arm}")
    language = bench.language
    config = language.config(
        "more",
        teacher=language.teacher(EXACT if arm == LABELS else arm),
        student={"model_id": str(language.folder / "small")},
        distillation={"alpha": 0.0 if arm == LABELS else 1.0},
        training={"batch_size": QUALITY_BATCH, "learning_rate": QUALITY_RATE, "warmup_steps": 4},
    )
    folder = bench.folder / "quality" / arm.replace(", ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    exact = str(language.cache(EXACT))
    return work("quality", config=config, seeds=list(SEEDS), exact=exact, folder=str(folder))  # type: ignore[no-any-return]


def interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean, and the half of its 95 % interval by Student's t."""
    from scipy import stats

    spread = statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.mean(values), "half": spread * float(stats.t.ppf(0.975, len(values) - 1))}


def _interval(told: Mapping[str, float], sign: str = "") -> str:
    return f"{told['mean']:{sign}.4f} ± {told['half']:.4f}"


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


PARTS: Mapping[str, Callable[[Bench], Part]] = {
    "bytes": sizes, "speed": speed, "memory": memory, "reading": reading, "quality": quality,
}  # fmt: skip

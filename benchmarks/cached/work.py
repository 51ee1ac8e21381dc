"""What a process of its own does to measure cached teachers, and what it tells. `run` and `trl` are watched by step."""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WRITTEN_ROWS = 8  # of logits that are stored in full


def run(config: str) -> dict[str, Any]:
    """`entrenar-distill run` of two epochs: what the steps of the second took, and its memory."""
    from peers.runs import watched

    return told(watched([config, "--force"], None))


def trl(folder: str, steps: int, length: int, batch: int, warm_up: int) -> dict[str, Any]:
    """TRL's GKDTrainer, likewise."""
    from peers.runs import Job, watched_trl

    return told(watched_trl(Job(Path(folder), steps, length, batch, warm_up)))


def told(watch: Any) -> dict[str, Any]:
    """Of a watch: means of the steps, since rows differ in length, and peaks with and without what imports took."""
    cpu_s, wall_s = watch.steps()
    return {
        "steps": len(cpu_s),
        "cpu_s_per_step": sum(cpu_s) / len(cpu_s),
        "wall_s_per_step": sum(wall_s) / len(wall_s),
        "peak_bytes": watch.peak_bytes,
        "peak_over_imports_bytes": watch.peak_bytes - watch.before_bytes,
        "losses": watch.losses,
    }


def logits(config: str, folder: str) -> dict[str, Any]:
    """The teacher reads some rows, and all logits of every position are written in 16 bits: how fast, and how large."""
    import numpy as np
    import torch

    from entrenar_core.teachers.assembly import live_teacher

    with torch.no_grad():
        prepared, fitted, accelerator = _opened(config)
        live = live_teacher(prepared, fitted, accelerator)
        warm_up, batch = (
            prepared.collator([prepared.train_tokens[row] for row in range(first, first + WRITTEN_ROWS)])
            for first in (WRITTEN_ROWS, 0)
        )
        live.rows(warm_up)
        began = time.perf_counter()
        rows = live.rows(batch)
        values = rows.of(slice(None)).half().numpy()
        with (Path(folder) / "logits.npy").open("wb") as file:
            np.save(file, values)
            file.flush()
        seconds = time.perf_counter() - began
    return {
        "positions": len(values),
        "bytes_per_position": values.nbytes / len(values),
        "positions_per_s": len(values) / seconds,
    }


def reading(config: str, cache: str, seconds: float) -> dict[str, Any]:
    """All batches of a cache in the order of epochs, by a loop that does nothing else, each row with its checksum."""
    import torch

    from entrenar_core.teachers.cache.opening import open_cache
    from entrenar_core.teachers.cache.teacher import CachedTeacher
    from entrenar_core.training.assembly import make_batches

    prepared, _, _ = _opened(config, teacher=False)
    opened, _ = open_cache(Path(cache), torch.device("cpu"))
    teacher = CachedTeacher(opened.store, opened.kind, opened.layers)
    source = make_batches(prepared, prepared.train_tokens, None, 0, 1)
    batches = [batch for step in source.steps(0) for batch in step]
    per_pass, rows_per_pass = sum(_bytes(opened.store, batch) for batch in batches), sum(len(b.rows_B) for b in batches)
    for batch in batches:
        teacher.rows(batch)
    passes, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for batch in batches:
            teacher.rows(batch)
        passes += 1
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {
        "bytes_per_s": passes * per_pass / wall_s,
        "bytes_per_cpu_s": passes * per_pass / cpu_s,
        "rows_per_s": passes * rows_per_pass / wall_s,
    }


def _bytes(store: Any, batch: Any) -> int:
    from entrenar_core.teachers.cache.keys import keys_of

    return sum(array.nbytes for key in keys_of(batch) for array in store.read(store.place(key)).values())


def angles(config: str, cache: str, seeds: list[int]) -> list[dict[str, Any]]:
    """How far the gradients from a cache are from those of the live teacher, as `cache build` measures it, with several
    draws of the noise.
    """
    from entrenar_core.teachers.cache.keeping import AskedTeacher, Keeping
    from entrenar_core.teachers.cache.measuring import measure
    from entrenar_core.teachers.cache.opening import open_cache
    from entrenar_core.teachers.cache.planning import plan_cache
    from entrenar_core.teachers.cache.teacher import CachedTeacher

    prepared, fitted, accelerator = _opened(config)
    opened, _ = open_cache(Path(cache), accelerator.device)
    keeping, batch_size = Keeping(opened.kind, opened.layers), prepared.teacher_batch_size
    reader = AskedTeacher(prepared, accelerator, fitted).reader(keeping)
    plan = plan_cache(prepared, keeping.costs, batch_size=batch_size, shard_bytes=64_000_000)
    cached = CachedTeacher(opened.store, opened.kind, opened.layers)
    return [measure(reader, cached, plan, (), seed=seed) for seed in seeds]


def quality(config: Mapping[str, Any], seeds: list[int], exact: str, folder: str) -> list[dict[str, Any]]:
    """Students of some seeds, each judged by the teacher's own words as `exact`, a cache in 32 bits, keeps them."""
    from entrenar_core import distill, parse_config

    found = []
    for seed in seeds:
        own = {**config, "training": {**config["training"], "seed": seed}, "output": {
            "dir": f"{folder}/student-{seed}", "checkpoint_every": 1_000_000,
        }}  # fmt: skip
        report = distill(parse_config(own), force=True)
        scores = _judged(own, report.output_dir, exact)
        shutil.rmtree(report.output_dir)  # with its checkpoint half a gigabyte
        found.append({"seed": seed, "final_loss": report.final_loss, **scores})
    return found


def _judged(config: Mapping[str, Any], student: Path, exact: str) -> dict[str, Any]:
    """The cross-entropy of a student with the labels of rows that it has not seen, and its KL to the teacher."""
    import torch

    from entrenar_core import parse_config
    from entrenar_core.models.loading import load_model
    from entrenar_core.teachers.cache.opening import open_cache
    from entrenar_core.teachers.cache.teacher import CachedTeacher
    from entrenar_core.training.assembly import make_accelerator
    from entrenar_core.training.evaluation import evaluate
    from entrenar_core.training.preparing import prepare

    told = parse_config({**config, "student": {"model_id": str(student)}})
    prepared = prepare(told)
    assert prepared.student is not None, "a folder"
    model = load_model(prepared.student, prepared.task)
    opened, _ = open_cache(Path(exact), torch.device("cpu"))
    scores = evaluate(
        model,
        prepared.eval_tokens,
        collator=prepared.collator,
        batch_size=8,
        counting=prepared.counting,
        accelerator=make_accelerator(told),
        output=prepared.output_layer(model),
        teacher=CachedTeacher(opened.store, opened.kind, opened.layers).rows,
    )
    assert scores.cross_entropy is not None, "rows have labels"
    assert scores.kl is not None, "of the whole distribution"
    assert math.isfinite(scores.cross_entropy + scores.kl), "numbers"
    return {"cross_entropy": scores.cross_entropy, "kl": scores.kl, "agreement": scores.agreement}


def _opened(config: str, *, teacher: bool = True) -> tuple[Any, Any, Any]:
    """A prepared run, its teacher as it is loaded, and the accelerator."""
    from entrenar_core import load_config
    from entrenar_core.teachers.assembly import fitted_teacher
    from entrenar_core.training.assembly import make_accelerator
    from entrenar_core.training.preparing import prepare
    from entrenar_core.training.signals import StopRequest

    told = load_config(Path(config))
    accelerator, prepared = make_accelerator(told), prepare(told)
    if not teacher:
        return prepared, None, accelerator
    with StopRequest() as stop:
        return prepared, fitted_teacher(prepared, accelerator, (), stop, lambda _done, _total: None), accelerator


WORK: Mapping[str, Callable[..., Any]] = {
    "run": run, "trl": trl, "logits": logits, "reading": reading, "angles": angles, "quality": quality,
}  # fmt: skip

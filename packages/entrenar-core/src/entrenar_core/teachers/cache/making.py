"""`cache build`: from a configuration to a cache, which tells what it takes before it begins."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.teachers import EnsembleTeacher, MovingAverageTeacher
from entrenar_core.data.library import stored
from entrenar_core.errors import UsageError
from entrenar_core.reproducibility import environment
from entrenar_core.teachers.assembly import fitted_teacher
from entrenar_core.teachers.cache.building import Builder, shard_file
from entrenar_core.teachers.cache.folder import CacheFolder
from entrenar_core.teachers.cache.identity import identity_of
from entrenar_core.teachers.cache.keeping import Asked, AskedTeacher, Keeping, require_kept_so
from entrenar_core.teachers.cache.kinds import Hidden, kind_settings
from entrenar_core.teachers.cache.manifest import Manifest
from entrenar_core.teachers.cache.measuring import ask_again, measure
from entrenar_core.teachers.cache.opening import OpenCache, sha256_of, store_of, write_head
from entrenar_core.teachers.cache.planning import CachePlan, plan_cache
from entrenar_core.teachers.cache.reader import Reader
from entrenar_core.teachers.cache.serving import serve
from entrenar_core.teachers.cache.settings import CacheForecast, CacheSettings
from entrenar_core.teachers.cache.teacher import CachedTeacher
from entrenar_core.teachers.endpoint.reading import AskedEndpoint
from entrenar_core.teachers.endpoint.ready import connected
from entrenar_core.teachers.texts import texts_of
from entrenar_core.training.assembly import make_accelerator
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.preparing import prepare
from entrenar_core.training.ranks import on_all, on_main
from entrenar_core.training.signals import StopRequest


def build_cache(
    config: DistillationConfig,
    folder: Path,
    settings: CacheSettings,
    *,
    force: bool = False,
    callbacks: Sequence[Callback] = (),
    on_forecast: Callable[[CacheForecast], None] = lambda _: None,
    download_progress: Callable[[Any], None] | None = None,
) -> Manifest:
    """Lets the teacher read every row once and keeps what it says in `folder`; a build that was stopped goes on.

    Args:
        config: the distillation that the cache is for.
        folder: of the cache.
        settings: what is kept.
        force: replace another cache in the folder.
        callbacks: watch the build.
        on_forecast: is told what the build will take before it begins.
        download_progress: is told how far downloads are.

    Raises:
        EntrenarError: of the kind that fits; what is built is kept.
    """
    accelerator = make_accelerator(config)
    prepared = at_hand(_prepared(config, settings.member, download_progress))
    with StopRequest() as stop:
        return _Build(prepared, accelerator, folder, settings, callbacks, stop).build(force, on_forecast)


def _prepared(config: DistillationConfig, member: int | None, progress: Callable[[Any], None] | None) -> Preparation:
    """For the teacher whose cache is built. Another one of several shares with the first what a run makes of both."""
    teacher = config.teacher
    match teacher:
        case MovingAverageTeacher():
            raise UsageError("the student's own average says something else in every step", "train with it as it is")
        case EnsembleTeacher():
            if member is None or member >= len(teacher.members):
                told = "a cache is of one of them" if member is None else f"they count from 0, so there is no {member}"
                raise UsageError(
                    f"the configuration has {len(teacher.members)} teachers: {told}",
                    f"say which one: --member 0 to {len(teacher.members) - 1}, as they stand in `teacher.members`",
                )
            live = tuple(one.model_copy(update={"cache": None}) for one in teacher.members)
            alive = teacher.model_copy(update={"members": live})
            return prepare(config.model_copy(update={"teacher": alive}), progress, of=member).members[member]
        case _ if member is not None:
            raise UsageError(f"--member {member} is of several teachers, and there is one", "leave --member out")
        case _:
            alone = teacher.model_copy(update={"cache": None})
            return prepare(config.model_copy(update={"teacher": alone}), progress)


def at_hand(prepared: Preparation) -> Preparation:
    """The same with the tokens of a stream on this machine: they are fewer than what is kept of them."""
    if not prepared.config.dataset.streaming:
        return prepared
    return dataclasses.replace(prepared, train_tokens=stored(prepared.train_tokens))


class _Build:
    def __init__(
        self,
        prepared: Preparation,
        accelerator: Accelerator,
        folder: Path,
        settings: CacheSettings,
        callbacks: Sequence[Callback],
        stop: StopRequest,
    ) -> None:
        self.prepared, self.accelerator, self.folder = prepared, accelerator, CacheFolder(folder)
        self.settings, self.callbacks, self.stop = settings, callbacks, stop

    def build(self, force: bool, on_forecast: Callable[[CacheForecast], None]) -> Manifest:
        kind = require_kept_so(self.prepared, self.settings)
        on_main(
            self.accelerator,
            lambda: self.folder.require_fitting(kind, identity_of(self.prepared), force=force),
        )
        with ExitStack() as held:
            on_main(self.accelerator, lambda: held.enter_context(self.folder.alone()))
            return self._asked(force, on_forecast)

    def _asked(self, force: bool, on_forecast: Callable[[CacheForecast], None]) -> Manifest:
        self._phase("teacher")
        if self.prepared.endpoint is not None:
            with connected(self.prepared, self.callbacks, self.stop) as endpoint:
                return self._build(AskedEndpoint(self.prepared, endpoint()), force, on_forecast)
        fitted = fitted_teacher(self.prepared, self.accelerator, self.callbacks, self.stop, self._on_batch)
        return self._build(AskedTeacher(self.prepared, self.accelerator, fitted), force, on_forecast)

    def _build(self, asked: Asked, force: bool, on_forecast: Callable[[CacheForecast], None]) -> Manifest:
        prepared, accelerator, keeping = self.prepared, self.accelerator, asked.keeping(self.settings)
        self._phase("rows")
        texts = texts_of(prepared)
        plan = plan_cache(
            prepared,
            keeping.costs,
            batch_size=prepared.teacher_batch_size,
            shard_bytes=self.settings.shard_bytes,
        )
        manifest = self._manifest(keeping, plan, asked)
        if (there := on_main(accelerator, lambda: self.folder.kept(manifest, force=force))) is not None:
            return there
        reader, folder = asked.reader(keeping), self.folder.path
        builder = Builder(reader, plan, texts, folder, manifest.about)
        missing = on_main(accelerator, builder.missing)
        head = _bytes_of_head(keeping)
        on_main(accelerator, lambda: self._require_room(plan, missing, head))
        forecast = _forecast(builder, missing, head, accelerator.num_processes)
        if accelerator.is_main_process:
            on_forecast(forecast)
        written = on_main(accelerator, lambda: self._begin(manifest, keeping))
        self._phase("reading")
        began = time.perf_counter()
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        rates = on_all(accelerator, lambda: builder.build(mine, self.stop, self._on_batch))
        seconds = time.perf_counter() - began
        self._phase("measuring")
        opened = OpenCache(store_of(len(plan.shards), folder, manifest.about), keeping.kind, keeping.layers)
        scores = serve(prepared, opened, accelerator, self._on_batch)[1]
        cached = CachedTeacher(opened.store, opened.kind, opened.layers)
        whole = dataclasses.replace(
            manifest,
            head=written,
            teacher={**manifest.teacher, "scores": dataclasses.asdict(scores)},
            shards=tuple(_shards(folder, plan)),
            built={
                "seconds": seconds,
                "positions_per_s": sum(rates) if missing else None,
                "environment": environment(),
            },
            measured=measure(reader, cached, plan, texts)
            if isinstance(reader, Reader)
            else ask_again(reader, cached, plan),
        )
        on_main(accelerator, lambda: whole.write(folder))
        return whole

    def _manifest(self, keeping: Keeping, plan: CachePlan, asked: Asked) -> Manifest:
        """As it is before anything is read."""
        prepared = self.prepared
        return Manifest(
            kind=kind_settings(keeping.kind),
            layers=None if keeping.layers is None else keeping.layers.as_json(),
            identity=identity_of(prepared).as_json(),
            plan=plan.digest(),
            data=prepared.rows.fingerprint,
            rows=sum(1 for _ in plan.rows),
            positions=plan.positions,
            teacher={"reference": prepared.teacher_name, "parameters": asked.parameters},
        )

    def _begin(self, manifest: Manifest, keeping: Keeping) -> str | None:
        """Writes what is known before the first shard, and gives the hash of the head if there is one."""
        manifest.write(self.folder.path)
        return write_head(keeping.kind.head, self.folder.path) if isinstance(keeping.kind, Hidden) else None

    def _require_room(self, plan: CachePlan, missing: Sequence[int], head: int) -> None:
        there = self.folder.size_of(set(range(len(plan.shards))) - set(missing))
        self.folder.require_room(max(0, plan.bytes - there) + head)

    def _phase(self, name: str) -> None:
        for callback in self.callbacks:
            callback.on_phase(name)

    def _on_batch(self, done: int, total: int) -> None:
        for callback in self.callbacks:
            callback.on_batch(done, total)


def _bytes_of_head(keeping: Keeping) -> int:
    """Of the file that makes logits of hidden states."""
    head = keeping.kind.head if isinstance(keeping.kind, Hidden) else None
    parts = () if head is None else (head.weight_VH, head.bias_V)
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def _forecast(builder: Builder, missing: Sequence[int], head: int, processes: int) -> CacheForecast:
    plan = builder.plan
    left = sum(row.positions for number in missing for batch in plan.shards[number] for row in batch)
    rate = builder.positions_per_s() * processes if left else None
    return CacheForecast(
        kind=builder.reader.kind.name,
        rows=sum(1 for _ in plan.rows),
        positions=plan.positions,
        bytes_per_position=plan.costs.of_position,
        bytes_per_token=plan.costs.of_token,
        bytes=plan.bytes + head,
        shards=len(plan.shards),
        shards_there=len(plan.shards) - len(missing),
        positions_per_s=rate,
        seconds=left / rate if rate else 0.0,
    )


def _shards(folder: Path, plan: CachePlan) -> list[dict[str, Any]]:
    """The files with their sizes and hashes."""
    found = []
    for number, batches in enumerate(plan.shards):
        file = shard_file(folder, number)
        digest = sha256_of(file)
        rows = sum(map(len, batches))
        found.append({"file": file.name, "rows": rows, "bytes": file.stat().st_size, "sha256": digest})
    return found

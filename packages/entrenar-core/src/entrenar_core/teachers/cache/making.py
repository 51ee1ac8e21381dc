"""`cache build`: from a configuration to a cache, which tells what it takes before it begins."""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from entrenar_core.config.losses import SoftLoss
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.errors import DataError, OutputError, UsageError
from entrenar_core.reports import Scores
from entrenar_core.reproducibility import environment
from entrenar_core.teachers.assembly import ReadyTeacher, make_teacher
from entrenar_core.teachers.cache.building import Builder, is_whole, shard_file
from entrenar_core.teachers.cache.draws import Sampled
from entrenar_core.teachers.cache.fitting import temperatures_of
from entrenar_core.teachers.cache.identity import identity_of
from entrenar_core.teachers.cache.kinds import AllLogits, Hidden, Kind, TopK
from entrenar_core.teachers.cache.manifest import MANIFEST, Manifest, read_manifest
from entrenar_core.teachers.cache.measuring import measure
from entrenar_core.teachers.cache.opening import check_head, kind_settings, write_head
from entrenar_core.teachers.cache.planning import CachePlan, plan_cache
from entrenar_core.teachers.cache.settings import CacheForecast, CacheSettings
from entrenar_core.teachers.cache.store import Store
from entrenar_core.teachers.cache.teacher import CachedTeacher
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.training.assembly import make_accelerator
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.evaluation import evaluate
from entrenar_core.training.files import remove_folder, writing
from entrenar_core.training.preparation import Preparation, prepare
from entrenar_core.training.signals import StopRequest
from entrenar_core.units import size


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
    if accelerator.num_processes > 1:
        raise UsageError("a cache is built by one process", "start it without torchrun")
    alone = config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache": None})})
    prepared = prepare(alone, download_progress)
    _require_rows_at_hand(prepared)
    with StopRequest() as stop:
        return _Build(prepared, accelerator, folder, settings, callbacks, stop).build(force, on_forecast)


def _require_rows_at_hand(prepared: Preparation) -> None:
    if prepared.config.dataset.streaming:
        raise UsageError("a cache holds every row, and a stream is not at hand", "remove `dataset.streaming`")
    if not prepared.teacher_reads_tokens:
        raise UsageError(
            "this teacher reads the texts by itself, once, before training: a cache would not be asked",
            "use it with losses over tokens, or with a student of the same vocabulary",
        )


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
        self.prepared, self.accelerator, self.folder = prepared, accelerator, folder
        self.settings, self.callbacks, self.stop = settings, callbacks, stop

    def build(self, force: bool, on_forecast: Callable[[CacheForecast], None]) -> Manifest:
        prepared = self.prepared
        self._phase("teacher")
        ready = self._teacher()
        teacher = ready.source
        assert isinstance(teacher, LiveTeacher), "checked"
        kind = make_kind(prepared, teacher, self.settings)
        self._phase("rows")
        plan = plan_cache(
            prepared,
            kind,
            batch_size=prepared.config.training.evaluation_batch_size,
            shard_bytes=self.settings.shard_bytes,
        )
        manifest = Manifest(
            kind=kind_settings(kind),
            identity=identity_of(prepared).as_json(),
            plan=plan.digest(),
            data=prepared.rows.fingerprint,
            rows=sum(1 for _ in plan.rows),
            positions=plan.positions,
            teacher={
                "reference": str(prepared.teacher.reference),
                "parameters": ready.parameters,
                "scores": dataclasses.asdict(ready.scores),
            },
        )
        about = _about(manifest)
        if (there := self._there(about, force)) is not None:
            return there
        self._require_room(plan)
        builder = Builder(prepared, teacher, kind, plan, self.folder, about)
        missing = builder.missing()
        on_forecast(_forecast(builder, missing))
        manifest.write(self.folder)
        written = write_head(kind.head, self.folder) if isinstance(kind, Hidden) else None
        self._phase("reading")
        began = time.perf_counter()
        rate = builder.build(missing, self.stop, self._on_batch)
        seconds = time.perf_counter() - began
        self._phase("measuring")
        cached = CachedTeacher(Store([shard_file(self.folder, number) for number in range(len(plan.shards))]), kind)
        measured = measure(prepared, teacher, cached, plan)
        whole = dataclasses.replace(
            manifest,
            head=written,
            shards=tuple(_shards(self.folder, plan)),
            built={"seconds": seconds, "positions_per_s": rate, "environment": environment()},
            measured=measured,
        )
        whole.write(self.folder)
        return whole

    def _teacher(self) -> ReadyTeacher:
        return make_teacher(
            self.prepared,
            self.accelerator,
            self.callbacks,
            self.stop,
            evaluate=self._scored,
            on_batch=self._on_batch,
        )

    def _scored(self, model: nn.Module) -> Scores:
        """On the evaluation rows, as a run scores it: a teacher that gives no numbers is found here."""
        prepared = self.prepared
        return evaluate(
            model.to(self.accelerator.device),
            prepared.eval_tokens,
            collator=prepared.collator,
            batch_size=prepared.config.training.evaluation_batch_size,
            counting=prepared.counting,
            accelerator=self.accelerator,
            output=prepared.output_layer(model),
            on_batch=self._on_batch,
        )

    def _there(self, about: str, force: bool) -> Manifest | None:
        """The cache that is there, if it is this one and complete; another one stands in the way."""
        if not self.folder.exists() or not any(self.folder.iterdir()):
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            return None
        if not (self.folder / MANIFEST).is_file():
            raise UsageError(f"{self.folder} holds something else than a cache", "choose another folder")
        found = read_manifest(self.folder)
        if _about(found) == about:
            return found if found.complete and self._whole(found) else None
        if not force:
            raise UsageError(
                f"{self.folder} holds another cache: of other rows, another teacher or other settings",
                "choose another folder, or replace it with --force",
            )
        with writing(self.folder):
            remove_folder(self.folder)
            self.folder.mkdir(parents=True)
        return None

    def _whole(self, manifest: Manifest) -> bool:
        about = _about(manifest)
        try:
            check_head(manifest, self.folder)
        except DataError:
            return False
        return all(is_whole(shard_file(self.folder, number), about) for number in range(len(manifest.shards)))

    def _require_room(self, plan: CachePlan) -> None:
        free = shutil.disk_usage(self.folder).free
        if plan.bytes > free:
            raise OutputError(
                f"the cache takes about {size(plan.bytes)}, and {size(free)} are free in {self.folder}",
                "choose another folder, another kind, or fewer rows",
            )

    def _phase(self, name: str) -> None:
        for callback in self.callbacks:
            callback.on_phase(name)

    def _on_batch(self, done: int, total: int) -> None:
        for callback in self.callbacks:
            callback.on_batch(done, total)


def make_kind(prepared: Preparation, teacher: LiveTeacher, settings: CacheSettings) -> Kind:
    """How a teacher is kept, by the settings.

    Raises:
        UsageError: it cannot be kept so.
    """
    vocabulary, name = prepared.vocabulary, settings.kind
    if vocabulary is None:
        if name not in (None, "logits"):
            raise UsageError(f"a classifier has few logits: --kind {name} is for language models", "leave --kind out")
        return AllLogits(len(prepared.label_names or ()))
    lowest, highest = temperatures_of(prepared.terms)
    match name or "hidden":
        case "hidden":
            if teacher.output is None:
                raise UsageError(
                    f"the logits of {prepared.teacher.reference} are not made by one matrix of its last hidden states",
                    "keep its likeliest tokens: --kind topk",
                )
            return Hidden(settings.precision, teacher.output.head.weight_VH.shape[1], teacher.output.head, vocabulary)
        case "topk":
            return TopK(min(settings.top_k, vocabulary - 1), lowest, highest, vocabulary)
        case "sampled":
            return Sampled(settings.samples, _one_temperature(prepared), prepared.config.training.seed, vocabulary)
        case _:
            raise UsageError("all logits of a language model are too many: 2 bytes × vocabulary", "keep --kind hidden")


def _one_temperature(prepared: Preparation) -> float:
    """Of all soft losses: draws are made at one."""
    found = {term.temperature for term in prepared.terms if isinstance(term.entry, SoftLoss)}
    if len(found) != 1 or not isinstance(only := found.pop(), float | int):
        raise UsageError(
            "draws are made at one temperature, and the losses have several, or a schedule",
            "set one `distillation.temperature`, or keep --kind hidden or topk",
        )
    return float(only)


def _about(manifest: Manifest) -> str:
    """What a shard must be of to belong to this cache."""
    made = [manifest.kind, manifest.identity, manifest.plan]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _forecast(builder: Builder, missing: Sequence[int]) -> CacheForecast:
    plan = builder.plan
    left = sum(row.positions for number in missing for batch in plan.shards[number] for row in batch)
    rate = builder.positions_per_s() if left else None
    return CacheForecast(
        kind=builder.kind.name,
        rows=sum(1 for _ in plan.rows),
        positions=plan.positions,
        bytes_per_position=builder.kind.bytes_per_position(),
        bytes=plan.bytes,
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
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        rows = sum(map(len, batches))
        found.append({"file": file.name, "rows": rows, "bytes": file.stat().st_size, "sha256": digest})
    return found

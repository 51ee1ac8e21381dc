"""`cache build` and `cache info`: the library's caches, with a progress display."""

from contextlib import ExitStack
from pathlib import Path

from entrenar_common.output import note
from entrenar_common.progress import Progress
from entrenar_common.run_display import Display
from entrenar_core.config import DistillationConfig
from entrenar_core.errors import DataError
from entrenar_core.teachers.cache.manifest import Manifest
from entrenar_core.teachers.cache.settings import CacheForecast, CacheSettings
from entrenar_core.units import count, duration, size
from entrenar_distill.reports import CacheReport


def build(config: DistillationConfig, folder: Path, settings: CacheSettings, *, force: bool) -> CacheReport:
    """Builds a cache with its progress on stderr; raises as `build_cache`."""
    with ExitStack() as stack:
        display = Display(stack.enter_context(Progress()))
        display.on_phase("loading libraries")
        from entrenar_core.teachers.cache.making import build_cache

        display.on_phase("reading models and data")
        manifest = build_cache(
            config,
            folder,
            settings,
            force=force,
            callbacks=[display],
            on_forecast=_tell,
            download_progress=display.on_transfer,
        )
        display.end()
    return report(folder, manifest)


def info(folder: Path, *, verify: bool) -> CacheReport:
    """What a cache says of itself; with `verify`, every row is read and its checksum compared.

    Raises:
        DataError: there is no cache, or it is damaged.
    """
    from entrenar_core.teachers.cache.manifest import read_manifest

    manifest = read_manifest(folder)
    if verify and not manifest.complete:
        raise DataError(f"the cache in {folder} is not complete", "go on with the same `entrenar-distill cache build`")
    if verify:
        from entrenar_core.teachers.cache.verifying import verify_rows

        with Progress() as progress:
            task = progress.task("reading", total=manifest.rows, unit="rows")
            verify_rows(folder, manifest, on_row=lambda done: task.update(completed=done))
            task.end()
    return report(folder, manifest, verified=verify)


def _tell(forecast: CacheForecast) -> None:
    of_tokens = f", and layers of {forecast.bytes_per_token:,.0f} bytes a token" if forecast.bytes_per_token else ""
    most = "at most " if forecast.kind == "sampled" else ""
    note(
        f"{forecast.rows:,} rows, {count(forecast.positions)} positions of {most}"
        f"{forecast.bytes_per_position:,.0f} bytes{of_tokens}: {most}{size(forecast.bytes)}"
    )
    if forecast.shards_there:
        note(f"{forecast.shards_there} of {forecast.shards} shards are there")
    if forecast.positions_per_s:
        rate = f"{forecast.positions_per_s:,.0f} positions/s"
        note(f"the teacher reads {rate}: about {duration(forecast.seconds)}")


def report(folder: Path, manifest: Manifest, *, verified: bool = False) -> CacheReport:
    """A manifest as commands return it."""
    written = sum(shard["bytes"] for shard in manifest.shards)
    return CacheReport(
        folder=folder,
        complete=manifest.complete,
        verified=verified,
        kind=dict(manifest.kind),
        layers=None if manifest.layers is None else dict(manifest.layers),
        made_of=dict(manifest.identity),
        teacher=dict(manifest.teacher),
        rows=manifest.rows,
        positions=manifest.positions,
        shards=len(manifest.shards),
        bytes=written,
        bytes_per_position=written / max(manifest.positions, 1),
        built=None if manifest.built is None else dict(manifest.built),
        measured=None if manifest.measured is None else dict(manifest.measured),
    )

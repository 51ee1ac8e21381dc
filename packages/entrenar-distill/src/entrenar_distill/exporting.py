"""`export`: the library's work with a progress display."""

from dataclasses import replace
from pathlib import Path

from entrenar_common.progress import Progress, Task
from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import FetchError, ModelError, NotFoundError, UsageError
from entrenar_core.exporting.result import ExportReport
from entrenar_core.exporting.settings import ExportSettings, require_possible
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.choosing import Hints
from entrenar_core.hub import Transfer
from entrenar_core.references import HubReference, PathReference, parse_reference

# What a configuration is told to set, and what is to be done at the command line.
_AS_FLAGS = {
    Hints().several: "name the file itself: --input {}/NAME",
    Hints().pickles: "take a model in safetensors, or add --allow-pickle if you trust its source",
}


def called(name: str | None, output: Path) -> WeightFormat:
    """The format of a name, or that of the ending of the output.

    Raises:
        UsageError: neither says one.
    """
    if name is not None:
        return WeightFormat(name)
    found = [kind for kind, row in FORMATS.items() if output.name.endswith(row.suffixes)]
    if not found or found[-1] is WeightFormat.PYTORCH:
        raise UsageError(f"{output} does not say in which format to write", "give --format, such as --format gguf")
    return found[-1]


class Display:
    """One line on stderr for each part of an export."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.part = ""
        self.task: Task | None = None

    def __call__(self, part: str, unit: str, done: int, total: int) -> None:
        if part != self.part or self.task is None:
            self.end()
            self.part, self.task = part, self.progress.task(part, total=total, unit=unit)
        self.task.update(completed=done, total=total)

    def on_transfer(self, part: str, transfer: Transfer) -> None:
        """Files have come or gone further."""
        self(part, "bytes", transfer.done_bytes, transfer.total_bytes)

    def end(self) -> None:
        """Ends the line that is open."""
        if self.task is not None:
            self.task.end()
        self.task = None


def run_export(
    source: str, output: Path, settings: ExportSettings, *, revision: str | None, push: str | None, private: bool
) -> ExportReport:
    """Exports a model, and uploads what was written where `push` names a repository; raises as `export`."""
    require_possible(settings)
    if push is not None:
        from entrenar_core.hub.pushing import require_pushable

        require_pushable(push)
    with Progress() as progress:
        display = Display(progress)
        artifact = _fetched(source, revision, display, allow_pickle=settings.allow_pickle)
        from entrenar_core.exporting.exporting import export

        report = export(artifact, output, settings, display)
        if push is not None and not report.exit_status:
            from entrenar_core.exporting.publishing import publish

            try:
                pushed = publish(
                    report,
                    artifact,
                    push,
                    private=private or None,
                    progress=lambda one: display.on_transfer("uploads", one),
                )
            except FetchError as error:
                written = f"{output} is written, and not on the Hub: {error.message}"
                raise FetchError(written, f"{error.hint}; --force writes it again") from error
            report = replace(report, pushed=pushed)
        display.end()
    return report


def run_push(source: str, repository: str, *, private: bool, revision: str | None) -> ExportReport:
    """Uploads a folder as it is; raises as `push_folder`."""
    from entrenar_core.exporting.source import require_ready
    from entrenar_core.hub.pushing import push_folder

    with Progress() as progress:
        display = Display(progress)
        artifact = _fetched(source, revision, display, allow_pickle=True)  # which is uploaded, and not read
        require_ready(artifact.path)
        pushed = push_folder(
            artifact.path,
            repository,
            private=private or None,
            progress=lambda one: display.on_transfer("uploads", one),
        )
        display.end()
    return ExportReport(
        source=source,
        source_format=artifact.format,
        output=artifact.path,
        format=artifact.format,
        files=tuple(sorted((*pushed.uploaded, *pushed.present))),
        size_bytes=pushed.size_bytes,
        pushed=pushed,
    )


def _fetched(source: str, revision: str | None, display: Display, *, allow_pickle: bool) -> ModelArtifact:
    from entrenar_core.exporting.source import require_ready
    from entrenar_core.hub import fetch_model

    reference = parse_reference(source, revision=revision)
    if isinstance(reference, PathReference):
        require_ready(reference.locate())
    try:
        return fetch_model(
            reference, allow_pickle=allow_pickle, progress=lambda one: display.on_transfer("fetches", one)
        )
    except ModelError as error:
        if error.hint not in _AS_FLAGS:
            raise
        raise ModelError(error.message, _AS_FLAGS[error.hint].format(source)) from error
    except (FetchError, NotFoundError) as error:
        folder = Path(source).parent
        if not isinstance(reference, HubReference) or folder == Path() or not folder.is_dir():
            raise
        raise NotFoundError(
            f"there is no folder {source} here, and on the Hub: {error.message}", "check the spelling"
        ) from error

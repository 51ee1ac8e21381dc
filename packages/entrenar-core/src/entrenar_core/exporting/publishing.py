"""What an export wrote, on the Hub: the files of this export and no others, with a card that tells what they are."""

import tempfile
from pathlib import Path

from entrenar_core.artifact import ModelArtifact
from entrenar_core.exporting.card_files import CARD
from entrenar_core.exporting.card_reports import card_of_export
from entrenar_core.exporting.result import ExportReport
from entrenar_core.hub.progress import Progress
from entrenar_core.hub.pushing import Pushed, push_files


def publish(
    report: ExportReport,
    artifact: ModelArtifact,
    repository: str,
    *,
    private: bool | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Uploads the files of an export in one commit, with its card where none was written; raises as `push_files`."""
    home = report.output if report.output.is_dir() else report.output.parent
    files = {name: home / name for name in report.files}
    with tempfile.TemporaryDirectory() as aside:
        if CARD not in files:
            files[CARD] = Path(aside, CARD)
            files[CARD].write_text(card_of_export(report, artifact), encoding="utf-8")
        return push_files(files, repository, private=private, progress=progress)

"""`diagnose`: the library's look at both models, with a progress display."""

from contextlib import ExitStack

from entrenar_common.progress import Progress
from entrenar_common.run_display import Display
from entrenar_core.config import DistillationConfig
from entrenar_distill.reports import DiagnosisReport
from entrenar_distill.vocabularies import report


def diagnose(config: DistillationConfig, name: str, rows: int) -> DiagnosisReport:
    """Looks at the first `rows` evaluation rows; raises as `look`.

    Args:
        config: what a run would do.
        name: what it is called, such as its file.
        rows: at most so many rows.
    """
    with ExitStack() as stack:
        display = Display(stack.enter_context(Progress()))
        display.on_phase("loading libraries")
        from entrenar_core.diagnosis.looking import look

        display.on_phase("reading models and data")
        found, vocabulary = look(config, rows=rows, callbacks=[display], download_progress=display.on_transfer)
        display.end()
    return DiagnosisReport(name, report(vocabulary, found.teacher, found.student), found)

"""`run`: the library's job with a progress display."""

from contextlib import ExitStack

from entrenar_common.output import warning
from entrenar_common.progress import Progress
from entrenar_common.run_display import Display
from entrenar_core.config import DistillationConfig
from entrenar_core.reports import Plan, RunReport


def run(config: DistillationConfig, resume: bool, force: bool) -> RunReport:
    """Runs a distillation with its progress on stderr; raises as `distill`."""
    _require_usable(config, resume, force)
    with ExitStack() as stack:
        display = Display(stack.enter_context(Progress()))
        display.on_phase("loading libraries")
        from entrenar_core.training.distillation import distill

        display.on_phase("reading models and data")
        report = distill(config, resume=resume, force=force, callbacks=[display], download_progress=display.on_transfer)
        display.end()
    for text in report.warnings:
        warning(text)
    return report


def _require_usable(config: DistillationConfig, resume: bool, force: bool) -> None:
    """What stands in the way is told before torch is loaded."""
    from entrenar_core.training.run_folder import check_usable, is_complete

    if not resume or not is_complete(config.output.dir, config.model_dump(mode="json")):
        check_usable(config.output.dir, resume=resume, force=force)


def dry_run(config: DistillationConfig, resume: bool, force: bool) -> Plan:
    """The plan of a run; raises as `plan`."""
    _require_usable(config, resume, force)
    with Progress() as progress:
        task = progress.task("reading models and data")
        from entrenar_core.training.distillation import plan

        found = plan(config, resume=resume, force=force)
        task.end()
    return found

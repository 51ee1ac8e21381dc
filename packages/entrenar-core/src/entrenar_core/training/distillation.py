"""One distillation from end to end: prepared, run in a folder that it holds, and left so that it can go on."""

from collections.abc import Callable, Sequence
from typing import Any

from entrenar_core.config.formula import formula
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.errors import ConfigError, UsageError
from entrenar_core.models.facts import parameter_count
from entrenar_core.reports import Plan, RunReport
from entrenar_core.training.assembly import make_accelerator, make_student, planned_steps
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.carrying_out import carry_out
from entrenar_core.training.memory import device_type, require_memory, told
from entrenar_core.training.names import student_name
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.preparing import prepare
from entrenar_core.training.result import read_report
from entrenar_core.training.run import Run
from entrenar_core.training.run_folder import (
    RunFolder,
    check_apart,
    check_usable,
    is_complete,
    named_models,
    newest_step,
)


def distill(
    config: DistillationConfig,
    *,
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[Callback] = (),
    download_progress: Callable[[Any], None] | None = None,
) -> RunReport:
    """Runs a distillation and writes the result folder `config.output.dir`.

    Args:
        config: what to do.
        resume: go on from the newest checkpoint in the folder; from the beginning if there is none, and nothing at
            all if the run is complete.
        force: replace an earlier run in the folder.
        callbacks: watch the run, on the main process.
        download_progress: is told how far downloads are.

    Raises:
        EntrenarError: of the kind that fits. `Interrupted` after Ctrl-C: a checkpoint was saved.
    """
    folder = RunFolder(config.output.dir)
    if resume and is_complete(config.output.dir, config.model_dump(mode="json")):
        tell(callbacks, f"the run in {folder.path} is complete; this is its report")
        return read_report(folder.path)
    _check_folder(config, resume=resume, force=force)
    accelerator = make_accelerator(config)
    prepared = prepare(config, download_progress)
    needed = require_memory(prepared, device_type(accelerator), accelerator.num_processes, force=force or resume)
    return carry_out(
        lambda stop: Run(prepared, accelerator, folder, callbacks, stop, resume=resume).run(),
        folder,
        accelerator,
        callbacks,
        config=config.model_dump(mode="json"),
        fingerprints=prepared.fingerprints(),
        notes=(*prepared.warnings, *told(needed)),
        resume=resume,
        force=force,
    )


def _check_folder(config: DistillationConfig, *, resume: bool, force: bool) -> None:
    if problems := check_apart(config.output.dir, named_models(config)):
        raise ConfigError(problems)
    check_usable(config.output.dir, resume=resume, force=force)


def plan(config: DistillationConfig, *, resume: bool = False, force: bool = False) -> Plan:
    """What `distill` would do, found out without training or writing into the output folder; raises as `distill`."""
    if resume and is_complete(config.output.dir, config.model_dump(mode="json")):
        raise UsageError(
            f"the run in {config.output.dir} is complete", "nothing would be done; --force starts it again"
        )
    _check_folder(config, resume=resume, force=force)
    prepared = prepare(config)
    student = make_student(prepared)
    steps = planned_steps(prepared)
    return Plan(
        task=prepared.task,
        teacher=prepared.teacher_name,
        teacher_architecture=_architecture(prepared),
        student=student_name(config),
        student_parameters=parameter_count(student),
        dataset=prepared.rows.name,
        train_rows=prepared.rows.num_train_rows,
        labelled_rows=prepared.rows.num_labelled_rows,
        eval_rows=len(prepared.rows.evaluation),
        examples_per_step=steps.examples_per_step,
        steps=steps.steps,
        loss=formula(prepared.config.distillation),
        output_dir=config.output.dir,
        resumes_from_step=newest_step(config.output.dir) if resume else None,
        fill=steps.fill,
    )


def _architecture(prepared: Preparation) -> str:
    architecture = prepared.teacher.architecture
    family = architecture.family or architecture.model_type
    return f"{family}, {architecture.num_layers} layers of {architecture.hidden_size}"

"""A model that learns from labels alone, by adapters or as a whole, on the loop of a distillation."""

from collections.abc import Callable, Sequence
from typing import Any

from entrenar_core.config.finetuning import FineTuneConfig, as_run
from entrenar_core.errors import ConfigError, UsageError
from entrenar_core.models.adapted import trained_count
from entrenar_core.models.facts import parameter_count
from entrenar_core.reports import TunePlan, TuneReport
from entrenar_core.training.assembly import make_accelerator, make_student, planned_steps
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.carrying_out import carry_out
from entrenar_core.training.losses import make_objective
from entrenar_core.training.memory import device_type, require_memory, told
from entrenar_core.training.packing import packing_of, require_packing
from entrenar_core.training.ranks import on_main
from entrenar_core.training.run import Run
from entrenar_core.training.run_folder import RunFolder, check_apart, check_usable, is_complete, newest_step
from entrenar_core.training.tuned_report import method_name, read_tune_report, tune_report
from entrenar_core.training.tuned_result import write_tuned
from entrenar_core.training.tuning_preparation import prepare_tuning


class TuneRun(Run):
    """A prepared fine-tuning on an accelerator, writing into a folder that it holds."""

    part = "model"

    def tune(self) -> TuneReport:
        """Does everything, in order, each part going on from where it stopped if the run is resumed."""
        self._phase("loading the model")
        model = make_student(self.prepared, device=self.accelerator.device)
        objective = make_objective(self.prepared.terms, self.prepared, model, None)
        if (packing := packing_of(self.prepared, self.prepared.train_tokens)) is not None:
            self._note(require_packing(self.prepared, packing, model.to(self.accelerator.device), None))
        on_main(self.accelerator, self.folder.begin)
        before = self._before(model, None)
        progress = self._train(model, None, objective, self.part)
        scores = self._final(model, None, progress)
        self._phase("result")
        report = tune_report(self.prepared, self.folder.path, progress, model, before, scores)
        report = on_main(self.accelerator, lambda: self._write_tuned(model, report))
        if self.training.trackers:
            self.accelerator.end_training()
        return report

    def _write_tuned(self, model: Any, report: TuneReport) -> TuneReport:
        written = write_tuned(self.folder.path, self.prepared, model, report, self._phase)
        self.folder.finish("complete", files=list(written.files))
        return written


class FineTuneTrainer:
    """Fine-tunes the model of a configuration.

    report = FineTuneTrainer(load_finetuning("lora.yaml")).train()
    """

    def __init__(
        self,
        config: FineTuneConfig,
        *,
        callbacks: Sequence[Callback] = (),
        download_progress: Callable[[Any], None] | None = None,
    ) -> None:
        """Takes what to do; `callbacks` watch the run, on the main process."""
        self.config, self.callbacks, self.download_progress = config, callbacks, download_progress

    def train(self, *, resume: bool = False, force: bool = False) -> TuneReport:
        """Runs it and writes the result folder `config.output.dir`: an adapter as peft saves it, or a whole model.

        Args:
            resume: go on from the newest checkpoint in the folder; from the beginning if there is none, and nothing at
                all if the run is complete.
            force: replace an earlier run in the folder.

        Raises:
            EntrenarError: of the kind that fits. `Interrupted` after Ctrl-C: a checkpoint was saved.
        """
        folder = RunFolder(self.config.output.dir)
        settings = self.config.model_dump(mode="json")
        if resume and is_complete(folder.path, settings):
            tell(self.callbacks, f"the run in {folder.path} is complete; this is its report")
            return read_tune_report(folder.path)
        self._check_folder(resume=resume, force=force)
        accelerator = make_accelerator(as_run(self.config))
        prepared = prepare_tuning(self.config, self.download_progress)
        needed = require_memory(prepared, device_type(accelerator), accelerator.num_processes, force=force or resume)
        return carry_out(
            lambda stop: TuneRun(prepared, accelerator, folder, self.callbacks, stop, resume=resume).tune(),
            folder,
            accelerator,
            self.callbacks,
            config=settings,
            fingerprints={name: value for name, value in prepared.fingerprints().items() if name != "teacher"},
            notes=(*prepared.warnings, *told(needed)),
            resume=resume,
            force=force,
        )

    def plan(self, *, resume: bool = False, force: bool = False) -> TunePlan:
        """What `train` would do, found out without training or writing into the output folder; raises as `train`."""
        folder = self.config.output.dir
        if resume and is_complete(folder, self.config.model_dump(mode="json")):
            raise UsageError(f"the run in {folder} is complete", "nothing would be done; --force starts it again")
        self._check_folder(resume=resume, force=force)
        prepared = prepare_tuning(self.config, self.download_progress)
        model = make_student(prepared)
        steps = planned_steps(prepared)
        return TunePlan(
            task=prepared.task,
            model=self.config.model.model_id,
            method=method_name(self.config),
            parameters=parameter_count(model),
            trained_parameters=trained_count(model),
            dataset=prepared.rows.name,
            train_rows=prepared.rows.num_train_rows,
            labelled_rows=prepared.rows.num_labelled_rows,
            eval_rows=len(prepared.rows.evaluation),
            examples_per_step=steps.examples_per_step,
            steps=steps.steps,
            output_dir=folder,
            resumes_from_step=newest_step(folder) if resume else None,
            fill=steps.fill,
        )

    def _check_folder(self, *, resume: bool, force: bool) -> None:
        if problems := check_apart(self.config.output.dir, {"model.model_id": self.config.model.model_id}):
            raise ConfigError(problems)
        check_usable(self.config.output.dir, resume=resume, force=force)

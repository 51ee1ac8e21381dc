"""The parts of a run, in order: teacher, student before training, training, baseline, result."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from entrenar_core.config.desugaring import without_teacher
from entrenar_core.data.tags import flat_labels
from entrenar_core.errors import Interrupted, TrainingError
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.heads import TAGGING
from entrenar_core.models.placing import placed
from entrenar_core.reports import RunReport, Scores
from entrenar_core.teachers.assembly import make_teacher
from entrenar_core.teachers.endpoint.ready import connected, endpoint_teacher
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.teachers.moving_average import AverageOfStudent
from entrenar_core.teachers.ready import ReadyTeacher
from entrenar_core.teachers.sentences import SentenceTeacher, judge
from entrenar_core.teachers.source import TeacherSource
from entrenar_core.training.assembly import make_batches, make_student
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.checkpoints import Progress
from entrenar_core.training.diagnostics import Diagnostics
from entrenar_core.training.evaluation import OnBatch, evaluate
from entrenar_core.training.journal import Journal
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.losses import make_objective
from entrenar_core.training.objective import Objective
from entrenar_core.training.packing import packing_of, require_packing
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.ranks import on_main, seed_rank
from entrenar_core.training.reporting import Judged, run_report
from entrenar_core.training.result import describe_student, write_result
from entrenar_core.training.run_folder import Metrics, RunFolder, flat, newest_step, read_metrics
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep
from entrenar_core.training.verdict import quality

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Run:
    """A prepared distillation on an accelerator, writing into a folder that it holds. `part` is what trains."""

    part = "student"

    def __init__(
        self,
        prepared: Preparation,
        accelerator: Accelerator,
        folder: RunFolder,
        callbacks: Sequence[Callback],
        stop: StopRequest,
        *,
        resume: bool,
    ) -> None:
        self.prepared, self.config = prepared, prepared.config
        self.accelerator, self.folder, self.stop, self.resume = accelerator, folder, stop, resume
        self.callbacks = callbacks if accelerator.is_main_process else ()
        self.training = self.config.training
        self.phase = ""
        self.average: AverageOfStudent | None = None
        if self.training.trackers:
            settings = flat(self.config.model_dump(mode="json"))
            accelerator.init_trackers("entrenar", config={name: str(value) for name, value in settings.items()})

    def run(self) -> RunReport:
        """Does everything, in order, each part going on from where it stopped if the run is resumed."""
        with ExitStack() as connections:
            return self._run(*self._models(connections))

    def _run(self, ready: ReadyTeacher, student: "PreTrainedModel") -> RunReport:
        teacher = ready.source
        objective = make_objective(self.prepared.terms, self.prepared, student, teacher)
        if (packing := packing_of(self.prepared, self.prepared.train_tokens)) is not None:
            self._note(require_packing(self.prepared, packing, student.to(self.accelerator.device), teacher))
        on_main(self.accelerator, self.folder.begin)
        before = self._before(student, teacher)
        progress = self._train(student, teacher, objective, self.part)
        scores = self._final(student, teacher, progress)
        if self.average is not None:
            self._phase("the student's average")
            ready = dataclasses.replace(ready, scores=self._evaluate(self.average.model, None))
        baseline = self._baseline(ready.model) if self.training.baseline else None
        self._phase("result")
        judged = Judged(before, scores, baseline)
        report = run_report(self.prepared, self.folder.path, progress, judged, ready, parameter_count(student))
        report = on_main(self.accelerator, lambda: self._write(student, report))
        if self.training.trackers:
            self.accelerator.end_training()
        return report

    def _models(self, connections: ExitStack) -> tuple[ReadyTeacher, "PreTrainedModel"]:
        """The teacher, and the student before training. Connections are to be ended with the run."""
        if (settings := self.prepared.moving_average) is not None:
            self._phase("student")
            student = make_student(self.prepared, device=self.accelerator.device)
            self.average = AverageOfStudent(student, settings)
            output = self.prepared.output_layer(self.average.model)
            source = LiveTeacher(self.average.model, self.accelerator, self.prepared.counting, output)
            scores = self._evaluate(self.average.model, None)
            return ReadyTeacher(source, scores, parameter_count(student), None), student
        self._phase("teacher")
        if self.prepared.endpoint is not None:
            endpoint = connections.enter_context(connected(self.prepared, self.callbacks, self.stop))
            ready = endpoint_teacher(self.prepared, endpoint, self.accelerator, self.callbacks, self._watch)
            return ready, make_student(self.prepared, device=self.accelerator.device)
        ready = make_teacher(
            self.prepared,
            self.accelerator,
            self.callbacks,
            self.stop,
            evaluate=lambda model: self._evaluate(model, None, batch_size=self.config.teacher.batch_size),
            on_batch=self._watch,
        )
        student = make_student(self.prepared, ready.model, self.accelerator.device)
        if not self.training.baseline:  # which makes the student once more
            ready = dataclasses.replace(ready, model=None)
        return ready, student

    def _write(self, student: "PreTrainedModel", report: RunReport) -> RunReport:
        written = write_result(self.folder.path, self.prepared, student, report, self._phase)
        self.folder.finish("complete", files=list(written.files))
        return written

    def _phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        self.phase = name
        for callback in self.callbacks:
            callback.on_phase(name, total_steps, step)

    def _watch(self, done: int, total: int) -> None:
        """Between batches outside of the loop, which looks after itself, a run can be stopped at once."""
        for callback in self.callbacks:
            callback.on_batch(done, total)
        if self.stop.requested:
            raise Interrupted(f"stopped during {self.phase}; what was saved before is kept")

    def _evaluate(
        self,
        model: torch.nn.Module,
        teacher: TeacherSource | SentenceTeacher | None,
        on_batch: OnBatch | None = None,
        batch_size: int | None = None,
    ) -> Scores:
        if isinstance(teacher, SentenceTeacher):
            return judge(self.prepared, model, teacher, self.accelerator, on_batch or self._watch)
        return evaluate(
            placed(model, self.accelerator.device),
            self.prepared.eval_tokens,
            collator=self.prepared.collator,
            batch_size=batch_size or self.training.evaluation_batch_size,
            counting=self.prepared.counting,
            accelerator=self.accelerator,
            output=self.prepared.output_layer(model, self.accelerator.device),
            teacher=teacher.rows if teacher else None,
            tags=self.prepared.label_names if self.prepared.task == TAGGING else None,
            on_batch=on_batch or self._watch,
        )

    def _final(
        self, student: "PreTrainedModel", teacher: TeacherSource | SentenceTeacher | None, progress: Progress
    ) -> Scores:
        """The scores of the selected weights, told unless an evaluation in training has told them.

        Raises:
            TrainingError: its logits are no numbers, though its weights are.
        """
        file = self.folder.path / "metrics.jsonl"
        scores = self._evaluate(student, teacher)
        if scores.cross_entropy is not None and not math.isfinite(scores.cross_entropy):
            raise TrainingError(
                f"the {self.part}'s logits after step {progress.step} are not all finite numbers",
                "lower `training.learning_rate`, or set `training.mixed_precision: no`, and start again with --force",
            )
        if self.accelerator.is_main_process and not any(
            line["step"] == progress.step and "evaluation" in line for line in read_metrics(file)
        ):
            journal = Journal(self.part, self.accelerator, self.callbacks, self.training.log_every)
            journal.open(file, progress.step)
            journal.evaluation(progress.step, scores)
        return scores

    def _before(self, student: "PreTrainedModel", teacher: TeacherSource | SentenceTeacher | None) -> Scores:
        """The student's scores before the first step, measured once in the life of a run."""
        self._phase(f"{self.part} before training")
        file = self.folder.path / "metrics.jsonl"
        if self.resume and (told := _told_before(file)):
            return told
        scores = self._evaluate(student, teacher)
        if self.accelerator.is_main_process:
            Metrics(file, up_to_step=None).add(step=0, evaluation=dataclasses.asdict(scores))
        return scores

    def _train(
        self,
        student: "PreTrainedModel",
        teacher: TeacherSource | SentenceTeacher | None,
        objective: Objective,
        name: str,
    ) -> Progress:
        main = name == self.part
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        steps = make_batches(
            self.prepared, self.prepared.train_tokens, self.training.max_steps, rank, world_size
        ).total_steps
        tokens = self.prepared.train_tokens
        if not main and not self.config.dataset.streaming and not self.prepared.over_tokens:
            tokens = tokens.select([index for index, label in enumerate(tokens["labels"]) if flat_labels([label])])
        batches = make_batches(self.prepared, tokens, steps, rank, world_size)
        seed_rank(self.training.seed, rank)
        settings = LoopSettings(
            training=self.training.model_copy(update={"max_steps": steps}),
            folder=self.folder.path if main else self.folder.path / name,
            checkpoint_every=self.config.output.checkpoint_every or max(1, steps // 10),
            keep=self.config.output.keep,
            evaluate=lambda: self._evaluate(student, teacher, on_batch=lambda _done, _total: None),
            score=lambda scores: quality(scores, language=self.prepared.over_tokens),
            name=name,
            describe=lambda folder: describe_student(folder, self.prepared, student),
            remote=self.prepared.endpoint is not None and main,
            lora_plus_ratio=getattr(self.prepared.adapter, "lora_plus_ratio", None),
        )
        said = teacher.listening(objective.wants(1)) if teacher else None
        step = DistillationStep(student, objective, self.prepared.output_layer(student))
        looks = self._diagnostics(step, teacher, settings.folder) if main else ()
        average = self.average if main else None
        loop = Loop(step, batches, said, self.accelerator, settings, (*self.callbacks, *looks), self.stop, average)
        self._phase(name, steps, (newest_step(settings.folder) or 0) if self.resume else 0)
        progress = loop.run(resume=self.resume)
        self.accelerator.free_memory()
        return progress

    def _diagnostics(
        self, step: DistillationStep, teacher: TeacherSource | SentenceTeacher | None, folder: Path
    ) -> tuple[Diagnostics, ...]:
        every = self.training.diagnose_every
        if every is None or not self.accelerator.is_main_process:
            return ()
        before = newest_step(folder) or 0
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["step"] <= before]
        compared = teacher if step.objective.needs_teacher() else None  # which may not have read the training rows
        return (Diagnostics(every, step, compared, self.accelerator, self._note, lines),)

    def _note(self, text: str) -> None:
        tell(self.callbacks, text)

    def _baseline(self, teacher_model: "PreTrainedModel | None") -> Scores:
        """The same student, of the same weights, on the labels alone: as many steps, the same seed."""
        student = make_student(self.prepared, teacher_model, self.accelerator.device)
        objective = make_objective(without_teacher(self.config.distillation), self.prepared, student, None)
        self._train(student, None, objective, "baseline")
        return self._evaluate(student, None)


def _told_before(file: Path) -> Scores | None:
    for line in read_metrics(file):
        if line["step"] == 0 and "evaluation" in line:
            with contextlib.suppress(TypeError):  # not what was written there
                return Scores(**line["evaluation"])
    return None

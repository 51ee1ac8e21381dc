"""One distillation from end to end: teacher, student, training, evaluation, result folder."""

import contextlib
import dataclasses
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, set_seed

from entrenar_core.config.schema import DistillationConfig, ProbeFinetuning
from entrenar_core.data.streams import shuffled
from entrenar_core.errors import Interrupted, UsageError
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.loading import load_model
from entrenar_core.models.student import build_student
from entrenar_core.reports import ModelFacts, Plan, RunReport, Scores
from entrenar_core.reproducibility import environment
from entrenar_core.teachers.finetuning import finetuned_model, probe_classifier
from entrenar_core.teachers.precomputed import LiveTeacher, PrecomputedTeacher, Teacher, classify
from entrenar_core.training.batches import Batches, StoredBatches, StreamedBatches
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.checkpoints import Progress
from entrenar_core.training.evaluation import evaluate, score_logits
from entrenar_core.training.loop import Loop, LoopSettings
from entrenar_core.training.preparation import Preparation, prepare
from entrenar_core.training.result import read_report, write_result
from entrenar_core.training.run_folder import (
    Metrics,
    RunFolder,
    check_usable,
    complete_checkpoints,
    read_manifest,
    read_metrics,
)
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    done = read_manifest(folder.path) if resume else None
    if done is not None and done["status"] == "complete":
        return read_report(folder.path)
    check_usable(folder.path, resume=resume, force=force)
    accelerator = make_accelerator(config)
    prepared = prepare(config, download_progress)
    manifest = {
        "config": config.model_dump(mode="json"),
        "fingerprints": dict(prepared.fingerprints()),
        "environment": environment(),
    }
    if accelerator.is_main_process:
        folder.open(manifest, resume=resume, force=force)
    accelerator.wait_for_everyone()
    try:
        with StopRequest() as stop:
            report = Run(prepared, accelerator, folder, callbacks, stop, resume=resume).run()
    except BaseException as error:
        if accelerator.is_main_process:
            with contextlib.suppress(Exception):  # the first error is the one to report
                folder.finish("interrupted")
        if isinstance(error, Interrupted):
            where = shlex.quote(str(folder.path))
            raise Interrupted(
                error.message, f"give the same command with --resume to go on (its output is {where})"
            ) from None
        raise
    finally:
        accelerator.free_memory()
    return report


def plan(config: DistillationConfig, *, resume: bool = False, force: bool = False) -> Plan:
    """What `distill` would do, found out without training or writing into the output folder; raises as `distill`."""
    check_usable(config.output.dir, resume=resume, force=force)
    prepared = prepare(config)
    student = make_student(prepared)
    training = config.training
    batches = make_batches(prepared, prepared.train_tokens, training.max_steps, 0, 1)
    checkpoints = complete_checkpoints(config.output.dir / "checkpoints") if resume else []
    section = config.distillation
    return Plan(
        task=prepared.task,
        teacher=str(prepared.teacher.reference),
        teacher_architecture=_architecture(prepared),
        student=student_name(config),
        student_parameters=parameter_count(student),
        dataset=prepared.rows.name,
        train_rows=prepared.rows.num_train_rows,
        labelled_rows=prepared.rows.num_labelled_rows,
        eval_rows=len(prepared.rows.evaluation),
        examples_per_step=training.batch_size * training.gradient_accumulation,
        steps=batches.total_steps,
        loss=f"{section.alpha:g} × KL(T={section.temperature:g}) + {1 - section.alpha:g} × CE",
        output_dir=config.output.dir,
        resumes_from_step=int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else None,
    )


def _architecture(prepared: Preparation) -> str:
    architecture = prepared.teacher.architecture
    family = architecture.family or architecture.model_type
    return f"{family}, {architecture.num_layers} layers of {architecture.hidden_size}"


def student_name(config: DistillationConfig) -> str:
    """What the student is, in a few words."""
    student = config.student
    if student.model_id is not None:
        return student.model_id
    if student.init_from is not None:
        layers = student.init_from.teacher_layers
        return f"{layers if isinstance(layers, int) else len(layers)} layers of the teacher"
    return f"{student.architecture or 'transformer'} of {student.num_layers} layers of {student.hidden_size}"


def make_accelerator(config: DistillationConfig) -> Accelerator:
    """accelerate, set up for one process or DDP.

    Raises:
        UsageError: the machine, the launcher or the environment cannot do what is asked.
    """
    missing = [name for name in config.training.trackers if name not in {str(t) for t in get_available_trackers()}]
    if missing:
        raise UsageError(
            f"tracker `{missing[0]}` is not installed",
            f"install the package that brings {missing[0]}, or remove it from `training.trackers`",
        )
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=config.training.mixed_precision,
            log_with=list(config.training.trackers) or None,
            project_dir=config.output.dir / "trackers",
        )
    except ValueError as error:
        raise UsageError(
            f"`training.mixed_precision: {config.training.mixed_precision}`: {error}", "use bf16 or no on this machine"
        ) from None
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise UsageError(
            f"launched for {accelerator.distributed_type.value}, and training runs in one process or under DDP",
            "launch with torchrun, or with an accelerate configuration without FSDP and DeepSpeed",
        )
    return accelerator


def make_student(prepared: Preparation, teacher_model: "PreTrainedModel | None" = None) -> "PreTrainedModel":
    """The student before training, the same bits for the same configuration."""
    return build_student(
        prepared.config.student,
        teacher_artifact=prepared.teacher,
        teacher_model=teacher_model,
        student_artifact=prepared.student,
        task=prepared.task,
        label_names=prepared.label_names,
        seed=prepared.config.training.seed,
        vocab_size=len(prepared.tokenizer),
        pad_token_id=prepared.collator.pad_token_id,
    )


def make_batches(prepared: Preparation, tokens: Any, max_steps: int | None, rank: int, world_size: int) -> Batches:
    """The batches of a training; `max_steps` replaces that of the configuration."""
    training = prepared.config.training.model_copy(update={"max_steps": max_steps})
    if not prepared.config.dataset.streaming:
        return StoredBatches(tokens, prepared.collator, training, rank, world_size)

    def rows_of(epoch: int) -> Iterator[dict[str, Any]]:
        return iter(shuffled(tokens, seed=training.seed, epoch=epoch))

    return StreamedBatches(rows_of, prepared.rows.num_train_rows, prepared.collator, training, rank, world_size)


class Run:
    """A prepared distillation on an accelerator, writing into a folder that it holds."""

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
        self.warnings: list[str] = []
        self.training = self.config.training
        self.eval_batch_size = self.training.eval_batch_size or self.training.batch_size
        if self.training.trackers:
            accelerator.init_trackers("entrenar", config={"output": str(folder.path)})

    def run(self) -> RunReport:
        """Does everything, in order, each part going on from where it stopped if the run is resumed."""
        self._phase("teacher")
        teacher, teacher_scores, teacher_parameters, source = self._teacher()
        student = make_student(self.prepared, source)
        before = self._before(student, teacher)
        progress = self._train(student, teacher, self.config.distillation.alpha, "student")
        scores = self._evaluate(student, teacher)
        baseline = self._baseline() if self.training.baseline else None
        self._phase("result")
        report = self._report(progress, before, scores, baseline, teacher_scores, teacher_parameters, student)
        if self.accelerator.is_main_process:
            report = write_result(self.folder.path, self.prepared, student, report)
            self.folder.finish("complete")
        if self.training.trackers:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()
        return report

    def _phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        for callback in self.callbacks:
            callback.on_phase(name, total_steps, step)

    def _teacher(self) -> tuple[Teacher, Scores, int, "PreTrainedModel | None"]:
        """The teacher, its scores and its parameters; and its model, where the student may copy from it."""
        settings, prepared = self.config.teacher, self.prepared
        if isinstance(settings.finetune, ProbeFinetuning):
            body = load_model(
                prepared.teacher, prepared.task, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code
            ).base_model
            classifier, kept = probe_classifier(prepared, body.to(self.accelerator.device), self.accelerator)
            self._note("reusing the probe fitted before" if kept else "fitted a probe to the labelled rows")
            teacher, scores = self._precomputed(classifier)
            return teacher, scores, parameter_count(classifier), None
        if settings.finetune is not None:
            model, kept = finetuned_model(prepared, self.accelerator, self.callbacks, self.stop)
            if kept:
                self._note("reusing the teacher fitted before")
        else:
            model = load_model(
                prepared.teacher,
                prepared.task,
                dtype=settings.dtype,
                label_names=prepared.label_names,
                trust_remote_code=settings.trust_remote_code,
                pad_token_id=prepared.teacher_tokenizer.pad_token_id,  # type: ignore[arg-type]
            )
        if not prepared.teacher_reads_tokens:
            teacher, scores = self._precomputed(lambda **inputs: model(**inputs).logits, model)
            return teacher, scores, parameter_count(model), model
        live = LiveTeacher(model, self.accelerator)
        return live, self._evaluate(model, None), parameter_count(model), model

    def _precomputed(self, forward: Callable[..., Any], model: torch.nn.Module | None = None) -> tuple[Teacher, Scores]:
        if model is not None:
            model.to(self.accelerator.device).eval()
        rows = self.prepared.rows
        train = rows.train if self.config.distillation.alpha > 0 else rows.train.select([])
        both = [*train, *rows.evaluation]
        pad = self.prepared.teacher_tokenizer.pad_token_id
        assert isinstance(pad, int), "load_tokenizer gives a pad token"
        with self.accelerator.autocast():
            logits_NC = classify(
                forward,
                self.prepared.teacher_tokenizer,  # type: ignore[arg-type]
                [row["text"] for row in both],
                pad_token_id=pad,
                batch_size=self.eval_batch_size,
                max_length=self.config.dataset.max_length,
                device=self.accelerator.device,
            )
        labels_N = torch.tensor([row["label"] for row in rows.evaluation])
        scores = score_logits(logits_NC[len(train) :], labels_N)
        return PrecomputedTeacher([row["row"] for row in both], logits_NC), scores

    def _note(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_note(text)

    def _evaluate(self, model: torch.nn.Module, teacher: Teacher | None) -> Scores:
        return evaluate(
            model.to(self.accelerator.device),
            self.prepared.eval_tokens,
            collator=self.prepared.collator,
            batch_size=self.eval_batch_size,
            causal=self.prepared.causal,
            accelerator=self.accelerator,
            teacher_logits=teacher.logits if teacher else None,
        )

    def _before(self, student: torch.nn.Module, teacher: Teacher) -> Scores:
        """The student's scores before the first step, measured once in the life of a run."""
        self._phase("student before training")
        file = self.folder.path / "metrics.jsonl"
        first = (
            [line for line in read_metrics(file) if line["step"] == 0 and "evaluation" in line] if self.resume else []
        )
        if first:
            return Scores(**first[0]["evaluation"])
        scores = self._evaluate(student, teacher)
        if self.accelerator.is_main_process:
            Metrics(file, up_to_step=None).add(step=0, evaluation=dataclasses.asdict(scores))
        return scores

    def _train(self, student: "PreTrainedModel", teacher: Teacher | None, alpha: float, name: str) -> Progress:
        main = name == "student"
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        steps = make_batches(
            self.prepared, self.prepared.train_tokens, self.training.max_steps, rank, world_size
        ).total_steps
        tokens = self.prepared.train_tokens
        if not main and not self.config.dataset.streaming and not self.prepared.causal:
            tokens = tokens.filter(lambda row: row["labels"] >= 0, load_from_cache_file=False)
        batches = make_batches(self.prepared, tokens, steps, rank, world_size)
        section = self.config.distillation
        objective = Objective(self.prepared.causal, alpha, section.temperature, section.divergence)
        set_seed(self.training.seed + rank)
        settings = LoopSettings(
            training=self.training.model_copy(update={"max_steps": steps}),
            folder=self.folder.path if main else self.folder.path / name,
            checkpoint_every=self.config.output.checkpoint_every or max(1, steps // 10),
            keep=self.config.output.keep,
            evaluate=lambda: self._evaluate(student, teacher),
            score=lambda scores: -scores.cross_entropy if self.prepared.causal else scores.accuracy,
        )
        logits = teacher.logits if teacher else None
        loop = Loop(
            DistillationStep(student, objective), batches, logits, self.accelerator, settings, self.callbacks, self.stop
        )
        self._phase(name, steps, loop.progress.step)
        progress = loop.run(resume=self.resume)
        self.accelerator.free_memory()
        return progress

    def _baseline(self) -> Scores:
        """The same student on the labels alone: as many steps, the same seed, no teacher."""
        student = make_student(self.prepared)
        self._train(student, None, 0.0, "baseline")
        return self._evaluate(student, None)

    def _report(
        self,
        progress: Progress,
        before: Scores,
        scores: Scores,
        baseline: Scores | None,
        teacher_scores: Scores,
        teacher_parameters: int,
        student: torch.nn.Module,
    ) -> RunReport:
        rows, training, causal = self.prepared.rows, self.training, self.prepared.causal
        assert progress.initial_loss is not None, "a run has a step"
        assert progress.final_loss is not None, "a run has a step"
        best = progress.best_step if training.select == "best" else None
        return RunReport(
            task=self.prepared.task,
            output_dir=self.folder.path,
            dataset=rows.name,
            train_rows=rows.num_train_rows,
            labelled_rows=rows.num_labelled_rows,
            eval_rows=len(rows.evaluation),
            seed=training.seed,
            steps=progress.step,
            selected_step=best or progress.step,
            initial_loss=progress.initial_loss,
            final_loss=progress.final_loss,
            teacher=ModelFacts(
                str(self.prepared.teacher.reference), teacher_parameters, self.prepared.teacher.weight_bytes
            ),
            student=ModelFacts(student_name(self.config), parameter_count(student), 0),
            teacher_scores=teacher_scores,
            student_before=before,
            student_scores=scores,
            baseline_scores=baseline,
            majority_accuracy=None if causal else _majority(rows.evaluation["label"], rows.train["label"]),
            retention=None if causal or not teacher_scores.accuracy else scores.accuracy / teacher_scores.accuracy,
            perplexity_ratio=_ratio(scores, teacher_scores),
            train_s=progress.train_s,
            examples_per_s=progress.examples / max(progress.train_s, 1e-9),
            files=(),
            warnings=tuple(_warnings(self.config, scores, baseline, teacher_scores)),
        )


def _majority(evaluation: Sequence[int], train: Sequence[int]) -> float:
    """Accuracy of always answering with the commonest label of the training rows."""
    commonest = Counter(label for label in train if label >= 0).most_common(1)
    return sum(label == commonest[0][0] for label in evaluation) / len(evaluation) if commonest else 0.0


def _ratio(scores: Scores, teacher: Scores) -> float | None:
    return scores.perplexity / teacher.perplexity if scores.perplexity and teacher.perplexity else None


def _warnings(config: DistillationConfig, student: Scores, baseline: Scores | None, teacher: Scores) -> Iterator[str]:
    if baseline is not None:
        # compared by what the report shows: accuracy of classes, cross-entropy of tokens
        causal = student.perplexity is not None
        teacher_wins = (
            teacher.cross_entropy < baseline.cross_entropy if causal else teacher.accuracy > baseline.accuracy
        )
        student_wins = (
            student.cross_entropy < baseline.cross_entropy if causal else student.accuracy > baseline.accuracy
        )
        if not teacher_wins:
            yield "the teacher is no better than the student trained without it: distilling from it is not worth while"
        elif not student_wins:
            yield "the distilled student is no better than the one trained without a teacher"
        yield "one seed: differences of a few points can be chance"
    if config.training.select == "best":
        yield "the weights were selected on the evaluation rows, so the student's score is optimistic"

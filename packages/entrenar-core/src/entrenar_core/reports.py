"""What runs return: plain, torch-free values that a terminal shows and JSON carries."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from entrenar_core.units import perplexity


@dataclass(frozen=True, slots=True)
class Scores:
    """A model on the evaluation rows. What does not apply is None.

    `cross_entropy` in nats per label or token; `kl` is KL(teacher ‖ model) at temperature 1, in nats;
    `agreement` is the share of rows or tokens on which model and teacher prefer the same class or token. `entity_f1` is
    the micro-averaged F1 of entities, where words have tags such as `B-PER`.

    Of a sentence encoder, `accuracy` is the share of `targets` queries whose nearest text is a right one, and
    `mean_average_precision` looks at all that are right; `cosine` is the mean between its vectors and the teacher's,
    `rank_correlation` is Spearman's, of the cosines of pairs of texts.
    """

    examples: int
    targets: int
    cross_entropy: float | None
    accuracy: float
    perplexity: float | None = None
    kl: float | None = None
    agreement: float | None = None
    entity_f1: float | None = None
    mean_average_precision: float | None = None
    cosine: float | None = None
    rank_correlation: float | None = None

    @property
    def in_words(self) -> str:
        """The one that says most."""
        if self.mean_average_precision is not None:
            return f"mean average precision {self.mean_average_precision:.1%}"
        return f"perplexity {perplexity(self.perplexity)}" if self.perplexity else f"accuracy {self.accuracy:.1%}"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's name, number of parameters (tied ones once) and bytes of its weight files; None of a teacher that is
    served elsewhere.
    """

    name: str
    parameters: int | None
    weight_bytes: int | None


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """One of several teachers, with its own scores, and its weight in their average; None where each teaches rows of
    its own.
    """

    name: str
    weight: float | None
    scores: Scores

    def __str__(self) -> str:
        return self.name if self.weight is None else f"{self.name}, weight {self.weight:.3g}"


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """A file of the student in another format. `bits_per_weight` is of all its tensors together; of a GGUF that was run
    in llama.cpp `kl` is KL(student ‖ file) in nats a token and `agreement` the share of tokens on which both prefer the
    same, of an encoder `cosine` the smallest between vectors; `passed` is whether that is as near as its type explains.
    Of an ONNX graph `largest_difference` is between what onnxruntime and torch compute. `notes` say where the program
    does otherwise.
    """

    format: str
    file: str
    size_bytes: int
    quantization: str | None = None
    bits_per_weight: float | None = None
    kl: float | None = None
    agreement: float | None = None
    cosine: float | None = None
    largest_difference: float | None = None
    passed: bool | None = None
    notes: tuple[str, ...] = ()


def _status(exports: Iterable[ExportFacts], not_exported: Mapping[str, str]) -> int:
    return int(bool(not_exported) or any(one.passed is False for one in exports))


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a distillation did and how well. `retention` is student ÷ teacher in accuracy, above chance or not, in
    entity F1 where there is one, and of sentence encoders in mean average precision.

    `perplexity_ratio` is student ÷ teacher, for language models, where less is better. Of several teachers,
    `teacher_scores` are those that they have together, and each one's own are in `members`. `exports` are the further
    formats, `not_exported` says by its name why one was not written.
    """

    task: str
    output_dir: Path
    dataset: str
    train_rows: int
    labelled_rows: int | None
    eval_rows: int
    seed: int
    steps: int
    selected_step: int
    initial_loss: float
    final_loss: float
    teacher: ModelFacts
    student: ModelFacts
    teacher_scores: Scores
    student_before: Scores
    student_scores: Scores
    baseline_scores: Scores | None
    majority_accuracy: float | None
    retention: float | None
    perplexity_ratio: float | None
    train_s: float
    examples_per_s: float
    files: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    members: tuple[MemberFacts, ...] = ()
    exports: tuple[ExportFacts, ...] = ()
    not_exported: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """1 where the student is there, and a further format is not or does not answer as it does."""
        return _status(self.exports, self.not_exported)

    @property
    def scored(self) -> tuple[tuple[str, Scores], ...]:
        """What was scored, as tables call it."""
        found = [
            ("teachers together" if self.members else "teacher", self.teacher_scores),
            *((str(member), member.scores) for member in self.members),
            ("student, distilled", self.student_scores),
            ("student, without a teacher", self.baseline_scores),
            ("student, before training", self.student_before),
        ]
        return tuple((name, scores) for name, scores in found if scores is not None)


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What a fine-tuning did and how well. `method` is what trained, such as `LoRA, rank 16`; `trained_parameters` are
    those of `model.parameters` that did. `model.weight_bytes` are of the files that were written: of an adapter its
    own. `merged` is the folder of the whole model, where it was asked for.
    """

    task: str
    output_dir: Path
    dataset: str
    train_rows: int
    labelled_rows: int | None
    eval_rows: int
    seed: int
    steps: int
    selected_step: int
    initial_loss: float
    final_loss: float
    model: ModelFacts
    method: str
    trained_parameters: int
    scores_before: Scores
    scores: Scores
    majority_accuracy: float | None
    train_s: float
    examples_per_s: float
    files: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    merged: str | None = None
    exports: tuple[ExportFacts, ...] = ()
    not_exported: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """1 where the model is there, and a further format is not or does not answer as it does."""
        return _status(self.exports, self.not_exported)


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What a fine-tuning would do. `fill` is the share of packed rows that is no padding."""

    task: str
    model: str
    method: str
    parameters: int
    trained_parameters: int
    dataset: str
    train_rows: int
    labelled_rows: int | None
    eval_rows: int
    examples_per_step: int
    steps: int
    output_dir: Path
    resumes_from_step: int | None
    fill: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, found out without training or writing anything.

    Where examples share rows, `examples_per_step` is what a step has on average, and `fill` the share of a row's places
    that hold a token.
    """

    task: str
    teacher: str
    teacher_architecture: str
    student: str
    student_parameters: int
    dataset: str
    train_rows: int
    labelled_rows: int | None
    eval_rows: int
    examples_per_step: int
    steps: int
    loss: str
    output_dir: Path
    resumes_from_step: int | None = None
    fill: float | None = None

"""What must hold between the settings, the models, their tokenizers and the rows before the first step.

Each function raises at what it finds wrong, as `prepare` does.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.adapters import AnyAdapter
from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.distillation import DistillationSection
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.config.packing import check_packing
from entrenar_core.config.schema import DistillationConfig, Task
from entrenar_core.config.sentences import check_task
from entrenar_core.config.teacher_rules import NO_PROBE
from entrenar_core.config.teachers import EndpointTeacher, ModelSource, ProbeFinetuning
from entrenar_core.data.sources import Rows
from entrenar_core.errors import ConfigError, DataError, ModelError, Problem
from entrenar_core.exporting.preflight import output_problems
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import (
    CAUSAL_LM,
    EMBEDDING,
    LANGUAGE,
    NO_MASKED_HEAD,
    TAGGING,
    head_labels,
    headless,
    predicts_masked,
)
from entrenar_core.models.layer_rules import check_layers, planned_student, wanted_layers
from entrenar_core.models.logit_rules import check_thresholds, check_top_k
from entrenar_core.models.reading import way_out
from entrenar_core.models.sentence_rules import check_sentences
from entrenar_core.models.student_rules import check_kinds, check_student
from entrenar_core.models.teacher_rules import check_loading
from entrenar_core.models.tokenizer_facts import facts_of
from entrenar_core.models.vocabulary import VocabularyFinding, diagnose, require_one_vocabulary
from entrenar_core.teachers.promises import taught
from entrenar_core.teachers.signals import unmet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 5


def check_models(config: OneTeacher, task: Task, teacher: ModelArtifact, student: ModelArtifact | None) -> None:
    """Whether the models can do the task, and the student can be built."""
    problems = [*check_task(config, task), *check_packing(config, task)]
    problems += check_student(config.student, teacher.architecture, task=task)
    problems += check_kinds(task, teacher.architecture, student.architecture if student else None)
    if problems:
        raise ConfigError(problems)


def check_losses(config: OneTeacher, task: Task, teacher: ModelArtifact, student: ModelArtifact | None) -> None:
    """Whether both models have the layers, heads and vectors that are compared."""
    shape = student.architecture if student else planned_student(config.student, teacher.architecture)
    problems = check_layers(config.distillation, teacher.architecture, shape)
    problems += check_sentences(config, teacher.architecture, shape) if task == EMBEDDING else []
    problems += check_loading(config, task, teacher, student)
    if problems:
        raise ConfigError(problems)


def check_outputs(
    config: DistillationConfig, task: Task, teacher: ModelArtifact, student: ModelArtifact | None
) -> None:
    """Whether the student can be written in every format that is asked for, as far as settings and tokenizer tell."""
    settings = [
        None if model is None or model.format is WeightFormat.GGUF else model.config for model in (student, teacher)
    ]
    if problems := list(output_problems(config, task, *settings)):
        raise ConfigError(problems)
    source = student or teacher
    if "gguf" in config.output.formats and source.tokenizer_path is not None and source.tokenizer_path.is_dir():
        from entrenar_core.conversion.tokens.writing import tokenizer_metadata

        architecture = source.architecture
        rows = architecture.vocab_size or 0
        tokenizer_metadata(source.tokenizer_path, config=source.config, vocab_size=rows, architecture="")


def check_beside(config: OneTeacher, task: Task, teacher: ModelArtifact, student: ModelArtifact | None) -> None:
    """Whether another teacher than the first, which a student may be made of, can do the task, and be loaded."""
    problems = check_kinds(task, teacher.architecture, student.architecture if student else None)
    problems = list(problems)
    problems += [
        problem for problem in check_loading(config, task, teacher, None) if problem.where != "student.init_from"
    ]
    if problems:
        raise ConfigError(problems)


def check_signals(
    given: DistillationConfig, config: OneTeacher, task: Task, teacher: ModelArtifact, student: ModelArtifact | None
) -> None:
    """Whether the teacher says what the task and the losses ask for."""
    problems = []
    if isinstance(given.teacher, EndpointTeacher) and task != CAUSAL_LM:
        problems.append(Problem(f"`teacher.endpoint` predicts the next token, and the task is {task}", None))
    signals = taught(given, config, task, teacher.format)
    if signals is not None:
        shape = student.architecture if student else planned_student(config.student, teacher.architecture)
        wants = wanted_layers(terms_of(config.distillation), teacher.architecture, shape)
        problems += unmet(config, task, signals, wants)
    if problems:
        raise ConfigError(problems)


def check_selections(config: OneTeacher, task: Task, rows: Rows, finding: VocabularyFinding | None) -> None:
    """Whether there are as many tokens or classes as losses select from. How many classes a teacher is fitted to hangs
    on the rows: fewer than `top_k` are no mistake then (`unselective`).
    """
    columns, what = _columns(task, rows, finding)
    if not columns:
        return
    problems = list(check_thresholds(config.distillation, columns, what))
    if config.teacher.finetune is None:
        problems = [*check_top_k(config.distillation, columns, what), *problems]
    if problems:
        raise ConfigError(problems)


def unselective(config: OneTeacher, rows: Rows) -> Iterator[str]:
    """A `top_k` of more classes than the rows have, where the teacher is fitted to them."""
    classes = len(rows.label_names or ())
    if classes and config.teacher.finetune is not None:
        for problem in check_top_k(config.distillation, classes, "classes"):
            yield f"{problem.message}, so it leaves nothing out"


def _columns(task: Task, rows: Rows, finding: VocabularyFinding | None) -> tuple[int, str]:
    if task in LANGUAGE:
        return (finding.length if finding else 0), "tokens"
    return len(rows.label_names or ()), "classes"


def one_vocabulary(
    config: OneTeacher,
    task: Task,
    teacher: ModelArtifact,
    teacher_tokenizer: "PreTrainedTokenizerBase",
    student: ModelArtifact | None,
    tokenizer: "PreTrainedTokenizerBase",
) -> VocabularyFinding:
    """How the vocabularies fit, as they must where the teacher reads the student's tokens."""
    theirs = facts_of(teacher_tokenizer)
    finding = diagnose(
        theirs,
        theirs if student is None else facts_of(tokenizer),
        teacher_rows=teacher.architecture.vocab_size,
        student_rows=None if student is None else student.architecture.vocab_size,
    )
    require_one_vocabulary(finding, also=way_out(config, task))
    return finding


def check_pad_token(artifact: ModelArtifact, tokenizer: "PreTrainedTokenizerBase") -> None:
    """A token that was added to a tokenizer and not to its model has no embedding."""
    pad, embeddings = tokenizer.pad_token_id, artifact.architecture.vocab_size
    if isinstance(pad, int) and embeddings is not None and pad >= embeddings:
        raise ModelError(
            f"the pad token of {artifact.reference} has the id {pad}, and the model has {embeddings} embeddings",
            "name a token that the model knows as `pad_token` in its tokenizer_config.json",
        )


def check_room(
    config: OneTeacher, teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase", task: Task
) -> None:
    """A tokenizer does not cut a text to fewer tokens than it adds."""
    least = 1 + max(tokenizer.num_special_tokens_to_add() for tokenizer in (teacher, student))
    if task != CAUSAL_LM and config.dataset.max_length < least:
        what = f"`dataset.max_length` {config.dataset.max_length} leaves no room beside the special tokens"
        raise ConfigError([Problem(what, f"set it to {least} or more")])


def known_labels(config: OneTeacher, task: str, teacher: ModelArtifact) -> tuple[str, ...] | None:
    """The classes that the teacher's head stands for, unless it will be fitted to the data."""
    if task in LANGUAGE or task == EMBEDDING or config.teacher.finetune is not None:
        return None
    return head_labels(teacher, task)


def check_labels(config: OneTeacher, task: str, teacher: ModelArtifact, rows: Rows) -> None:
    """Whether another teacher tells the classes apart that the first one does, in the same order."""
    names = known_labels(config, task, teacher)
    if names is not None and names != rows.label_names:
        theirs = _listed(rows.label_names or ())
        raise ModelError(
            f"{teacher.reference} tells apart {_listed(names)}, and the first teacher {theirs}",
            "take teachers of the same classes in the same order, or fit this one: `finetune: {method: probe}`",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def require_masked_head(teacher: ModelArtifact) -> None:
    """A head for masked tokens, where these are told."""
    if not predicts_masked(teacher):
        raise ModelError(f"{teacher.reference} {NO_MASKED_HEAD[0]}", NO_MASKED_HEAD[1])


def check_teaching(config: OneTeacher, task: str, teacher: ModelArtifact, rows: Rows) -> None:
    """Whether the teacher knows the classes or can be fitted to them, and there are labels where some are learnt."""
    if task == EMBEDDING:
        return
    if task in LANGUAGE:
        if config.teacher.finetune is not None:
            raise ConfigError([Problem(f"`teacher.finetune` fits a classifier, and the task is {task}", "remove it")])
        return
    if task == TAGGING and isinstance(config.teacher.finetune, ProbeFinetuning):
        raise ConfigError([Problem(*NO_PROBE)])
    if config.teacher.finetune is None and head_labels(teacher, task) is None:
        raise ModelError(*headless(teacher, task))
    if config.teacher.finetune is not None and config.dataset.streaming:
        problem = Problem("`teacher.finetune` needs all labelled rows at hand", "remove `dataset.streaming`")
        raise ConfigError([problem])
    if rows.num_labelled_rows == 0 and (
        config.teacher.finetune or config.training.baseline or _learns_labels(config.distillation)
    ):
        raise DataError("no training row has a label", "give labels, or set `distillation.alpha: 1`")


def _learns_labels(section: DistillationSection) -> bool:
    return not all(term.needs_teacher for term in terms_of(section))


def longest(config: OneTeacher, teacher: ModelArtifact, student: ModelArtifact | None, both: bool) -> int:
    """`dataset.max_length`, which must fit the positions of the models that read the tokens."""
    readers = [artifact for artifact in (student or teacher, teacher if both else None) if artifact is not None]
    for artifact in readers:
        positions = artifact.architecture.max_positions
        if positions is not None and config.dataset.max_length > positions:
            what = f"`dataset.max_length` {config.dataset.max_length} is more than the {positions} positions of"
            raise ConfigError([Problem(f"{what} {artifact.reference}", f"set it to {positions} or less")])
    return config.dataset.max_length


def require_adaptable(artifact: ModelArtifact, adapter: AnyAdapter, task: Task, source: ModelSource) -> None:
    """Whether an adapter fits a model, told before its weights are read; raises as `check_adapter`."""
    from entrenar_core.models.adapted import check_adapter
    from entrenar_core.models.loading import load_config

    found = load_config(artifact, trust_remote_code=source.trust_remote_code)
    check_adapter(found, adapter, task, artifact.reference, trusted=source.trust_remote_code)

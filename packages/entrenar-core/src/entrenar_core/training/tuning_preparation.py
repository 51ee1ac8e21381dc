"""Everything that a fine-tuning needs before its first step, with every mistake found here or not at all."""

from typing import TYPE_CHECKING, Any

from datasets import Dataset
from pydantic import TypeAdapter

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.finetuning import FineTuneConfig, as_run
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.config.packing import check_packing
from entrenar_core.config.schema import Task
from entrenar_core.data.collating import Collator
from entrenar_core.data.sources import Rows, load_rows
from entrenar_core.data.tokenizing import tokenize_rows
from entrenar_core.errors import ConfigError, DataError, Problem, UsageError
from entrenar_core.models.heads import CLASSIFYING, EMBEDDING, MASKED_LM, head_labels, infer_task
from entrenar_core.models.student_rules import check_kinds
from entrenar_core.models.teacher_rules import check_loading
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.preparing import fetch, masking_of, tokenizer_of
from entrenar_core.training.requirements import check_outputs, check_room, longest, one_vocabulary, require_adaptable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNTOLD = "the task cannot be told from {}: it has neither a classification head nor one for tokens"


def prepare_tuning(config: FineTuneConfig, progress: Any = None) -> Preparation:
    """Fetches, reads and checks. Downloads what is missing, and writes nothing else.

    Args:
        config: what is prepared.
        progress: is told how far downloads are.

    Raises:
        EntrenarError: of the kind that fits; nothing has been trained or written.
    """
    run = as_run(config)
    model = fetch(config.model, config.model.model_id, progress)
    task = _task(config, model)
    _check(run, task, model)
    if config.adapter is not None:
        require_adaptable(model, config.adapter, task, config.model)
    tokenizer = tokenizer_of(model, config.model)
    masking = masking_of(run, tokenizer, model, None) if task == MASKED_LM else None
    finding = one_vocabulary(run, task, model, tokenizer, model, tokenizer)
    rows = _rows(config, task, model)
    length = longest(run, model, model, both=True)
    check_room(run, tokenizer, tokenizer, task)
    train, evaluation = (_tokens(data, tokenizer, task, config, length) for data in (rows.train, rows.evaluation))
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int), "load_tokenizer gives a pad token"
    return Preparation(
        given=run,
        config=run,
        task=task,
        teacher=model,
        student=model,
        teacher_tokenizer=tokenizer,
        tokenizer=tokenizer,
        rows=rows,
        train_tokens=train,
        eval_tokens=evaluation,
        collator=Collator(pad, masking=masking),
        teacher_reads_tokens=True,
        finding=finding,
        tuning=config,
    )


def _task(config: FineTuneConfig, model: ModelArtifact) -> Task:
    found = config.task or infer_task(model, None)
    if found is None or (found == EMBEDDING and config.task is None):
        raise UsageError(
            _UNTOLD.format(model.reference),
            "set `task: sequence-classification`, `token-classification` or `causal-lm`; with flags, --task",
        )
    return TypeAdapter(Task).validate_python(found)


def _check(run: OneTeacher, task: Task, model: ModelArtifact) -> None:
    problems = [
        *check_packing(run, task),
        *check_kinds(task, model.architecture, None),
        *check_loading(run, task, None, model),
    ]
    if problems:
        renamed = [_of_the_model(problem) for problem in problems]
        raise ConfigError(renamed)
    check_outputs(run, task, model, model)


def _of_the_model(problem: Problem) -> Problem:
    """The same of `model`, which stands for teacher and student."""
    parts = [problem.message, problem.hint or "", problem.where or ""]
    message, hint, where = (text.replace("teacher.", "model.").replace("student.", "model.") for text in parts)
    return Problem(message.replace("the teacher", "the model"), hint or None, where or None)


def _rows(config: FineTuneConfig, task: Task, model: ModelArtifact) -> Rows:
    """The rows; a head that tells these very classes apart keeps their order, and its weights with it."""
    rows = load_rows(config.dataset, task=task, seed=config.training.seed, label_names=None)
    if task not in CLASSIFYING:
        return rows
    if rows.num_labelled_rows == 0:
        raise DataError("no training row has a label", "name the column of the labels as `dataset.label_column`")
    known = head_labels(model, task)
    if known is None or rows.label_names is None or set(known) != set(rows.label_names) or known == rows.label_names:
        return rows
    return load_rows(config.dataset, task=task, seed=config.training.seed, label_names=known)


def _tokens(
    data: Dataset, tokenizer: "PreTrainedTokenizerBase", task: Task, config: FineTuneConfig, length: int
) -> Any:
    return tokenize_rows(data, tokenizer, task=task, config=config.dataset, max_length=length)

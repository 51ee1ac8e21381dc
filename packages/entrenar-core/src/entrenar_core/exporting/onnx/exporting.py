"""A model out to ONNX: traced by torch, run by onnxruntime beside torch, and only then put where it was asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.architectures import known_families
from entrenar_core.artifact import ModelArtifact
from entrenar_core.conversion.files import replacing
from entrenar_core.errors import ModelError
from entrenar_core.exporting.card import card_facts
from entrenar_core.exporting.onnx.requirements import opset_for, require_tools, task_for
from entrenar_core.exporting.onnx.result import Int8Change, OnnxExport
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import CLASSIFICATION

if TYPE_CHECKING:
    import onnx_ir

    from entrenar_core.exporting.onnx.callers import Caller
    from entrenar_core.exporting.onnx.checking import Expected

NAME, INT8_NAME = "model.onnx", "model.int8.onnx"
"""What a graph is called in a folder."""
Progress = Callable[[str], None]


def _unwatched(_step: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One export on its way."""

    source: ModelArtifact
    task: str
    opset: int
    int8: bool
    include_metadata: bool
    progress: Progress


def export_onnx(
    source: ModelArtifact,
    output: Path,
    *,
    task: str | None = None,
    int8: bool = False,
    opset: int | None = None,
    include_metadata: bool = True,
    force: bool = False,
    progress: Progress = _unwatched,
) -> OnnxExport:
    """Writes a model as an ONNX graph of any number of rows and tokens, which reads `input_ids`, `attention_mask` and,
    where the model tells them apart, `token_type_ids`. It gives `logits`, or without a head `last_hidden_state` and, of
    a sentence encoder, `sentence_embedding`. Decoders keep no keys and values from call to call.

    The graph is in 32 bits, or with `int8` has its matrices in eight. The one in 32 bits is compared with torch before
    anything is there. Takes memory of about five times the weights.

    Args:
        output: a file, where it ends in `.onnx`; else a folder, which gets `model.onnx` or `model.int8.onnx` and loses
            nothing.
        task: see `task_for`.
        opset: the version of ONNX's operators, 20 if not given.
        include_metadata: whether the file says of which model it is, for which task, and what made it.
        force: whether to replace an earlier graph.
        progress: is told what is done next.

    Raises:
        UsageError: there is no such task or opset.
        ModelError: a package is missing; the model has two parts, cannot be exported, or gives other numbers in ONNX.
        OutputError: the graph is there already, or cannot be written.
    """
    job = _Job(source, task_for(source, task), opset_for(opset), int8, include_metadata, progress)
    require_tools()
    _require_pad(job)
    file = output if output.suffix == ".onnx" else output / (INT8_NAME if int8 else NAME)
    with _folder_of(file), replacing(file, folder=False, force=force) as work:
        return _exported(job, file, work)


def _exported(job: _Job, target: Path, work: Path) -> OnnxExport:
    """Writes the graph to `work`, which takes the name `target` in the end."""
    from entrenar_core.exporting.onnx.callers import caller_of
    from entrenar_core.exporting.onnx.checking import batches, expected, require_equal
    from entrenar_core.exporting.onnx.files import put_data, save, told_of
    from entrenar_core.exporting.onnx.tracing import traced
    from entrenar_core.models.loading import load_model
    from entrenar_core.models.quiet import quietly

    job.progress("loads the model")
    name = job.source.reference
    caller = caller_of(load_model(job.source, job.task), job.source, job.task)
    with quietly():
        wanted = expected(caller, batches(caller, job.source.architecture.max_positions), name)
        trial = _trial(job, caller) if job.int8 else None
    job.progress("traces the model")
    graph = traced(caller, name, job.opset)
    if job.include_metadata:
        graph.metadata_props.update(told_of(card_facts(job.source.path).name, job.task))
    job.progress("compares it with torch")
    files = save(graph, work)
    difference = require_equal(work, wanted, name)
    change = None
    if trial is not None:
        job.progress("quantises it")
        change, files = _in_int8(job, graph, work, trial)
    size = sum(file.stat().st_size for file in files)
    put_data(work, target)
    return OnnxExport(
        output=target,
        files=tuple(file.name for file in files),
        size_bytes=size,
        task=job.task,
        opset=job.opset,
        inputs=caller.inputs,
        outputs=caller.outputs,
        largest_difference=difference.largest,
        relative_difference=difference.relative,
        shapes=tuple((one.feed["input_ids"].shape[0], one.feed["input_ids"].shape[1]) for one in wanted),
        int8=change,
        notes=tuple(_notes(job, caller, change)),
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """What eight bits are tried on, and the matrices that they would harm."""

    wanted: "Expected"
    kept: frozenset[str]


def _trial(job: _Job, caller: "Caller") -> _Trial:
    from entrenar_core.exporting.onnx.checking import expected
    from entrenar_core.exporting.onnx.trials import spiked, trial_feed

    job.progress("looks for matrices that eight bits would harm")
    feed = trial_feed(caller, job.task, job.source.architecture.max_positions)
    return _Trial(expected(caller, [feed], job.source.reference)[0], spiked(caller, feed))


def _in_int8(job: _Job, graph: "onnx_ir.Model", work: Path, trial: _Trial) -> tuple[Int8Change, tuple[Path, ...]]:
    """Quantises a graph, and writes it over the one in 32 bits."""
    from entrenar_core.exporting.onnx.files import remove, save
    from entrenar_core.exporting.onnx.int8 import quantise
    from entrenar_core.exporting.onnx.trials import change_of

    done = quantise(graph, trial.kept)
    remove(work)
    files = save(graph, work)
    return change_of(work, trial.wanted, job.task, matrices=done.matrices, kept=done.kept), files


def _notes(job: _Job, caller: "Caller", change: Int8Change | None) -> Iterator[str]:
    if caller.model.can_generate():  # type: ignore[operator]
        yield "it keeps no keys and values from call to call: to generate, give it the whole text for each token"
    if job.source.format is WeightFormat.GGUF:
        yield "the weights were dequantised from GGUF"
    if change is not None and change.kept:
        yield (
            f"{change.kept} of {change.matrices} matrices stay in 32 bits, since single inputs of them are so large "
            "that eight bits would lose the others"
        )


def _require_pad(job: _Job) -> None:
    """A decoder that classifies looks for the last token that is no padding."""
    family = known_families().get(job.source.architecture.family or "")
    decodes = family is not None and family.kind == "decoder"
    if decodes and job.task == CLASSIFICATION and job.source.config.get("pad_token_id") is None:
        raise ModelError(
            f"{job.source.reference} finds the end of a row by its pad token, and its config.json names none",
            "set `pad_token_id` in its config.json to that of its tokenizer",
        )


@contextmanager
def _folder_of(file: Path) -> Iterator[None]:
    """On a failure, the folder of a file is as little there as it was."""
    missing = [folder for folder in file.parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise

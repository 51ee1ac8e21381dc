"""The result folder: a student that transformers loads, with its card, its curves and its report."""

import copy
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import OutputError
from entrenar_core.exporting.card import card_facts
from entrenar_core.exporting.card_measured import ExportedFile
from entrenar_core.exporting.card_reports import exported_files
from entrenar_core.exporting.card_writing import files_section
from entrenar_core.exporting.result import ExportReport
from entrenar_core.exporting.source import open_source
from entrenar_core.formats import WeightFormat
from entrenar_core.models.adapted import is_adapted, save_adapter
from entrenar_core.models.facts import saved_bytes
from entrenar_core.models.heads import CLASSIFYING
from entrenar_core.models.quiet import quietly
from entrenar_core.models.sentence_files import sentence_files
from entrenar_core.references import HubReference, parse_reference
from entrenar_core.reports import ExportFacts, MemberFacts, ModelFacts, RunReport, Scores
from entrenar_core.training.card import model_card
from entrenar_core.training.curves import loss_svg
from entrenar_core.training.exports import Exports, OnPart, export_student, facts_of, warnings_of
from entrenar_core.training.files import new_folder, remove_folder, write_json, write_text, writing
from entrenar_core.training.merged import MERGED, merge_result
from entrenar_core.training.run_folder import read_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation

REPORT = "report.json"


def write_result(
    folder: Path,
    prepared: "Preparation",
    student: "PreTrainedModel",
    report: RunReport,
    on_part: OnPart = lambda _: None,
) -> RunReport:
    """Writes everything but `run.json`, and returns the report with what the files weigh and which further format could
    not be written.

    Args:
        on_part: is told of each further format before it is written.

    Raises:
        OutputError: a file cannot be written.
    """
    names, weight_bytes = write_model(folder, prepared, student)
    write_text(folder / "loss.svg", loss_svg(read_metrics(folder / "metrics.jsonl")))
    files = tuple(sorted(names | {"loss.svg", "metrics.jsonl", "README.md", REPORT, "run.json"}))
    report = replace(report, student=replace(report.student, weight_bytes=weight_bytes), files=files)
    _describe(folder, prepared, report)
    output = prepared.given.output
    if output.merge:
        on_part("merging")
        merge_result(folder, prepared)
        report = replace(report, files=tuple(sorted({*report.files, MERGED})))
        _describe(folder, prepared, report)
    if set(output.formats) == {"safetensors"}:
        return report
    exports = export_student(folder / MERGED if output.merge else folder, output, on_part, beside=folder)
    report = _with_exports(report, exports)
    _describe(folder, prepared, report, exports.reports)
    return report


def write_model(folder: Path, prepared: "Preparation", student: "PreTrainedModel") -> tuple[set[str], int]:
    """Writes what was trained, a whole model or an adapter, and its tokenizer; returns the names on top of the folder,
    and what the weights take.

    Raises:
        OutputError: a file cannot be written.
    """
    made = folder / ".result"
    with new_folder(made) as aside, quietly():
        if is_adapted(student):
            _write_adapter(aside, prepared, student)
        else:
            student.save_pretrained(aside)
        prepared.tokenizer.save_pretrained(aside)
        if prepared.poolings is not None:
            _write_pooling(aside, prepared, student)
    weight_bytes = saved_bytes(made)
    names = {file.name for file in made.iterdir()}
    with writing(folder):
        for name in sorted(names):
            if (folder / name).is_dir():
                remove_folder(folder / name)
            (made / name).replace(folder / name)
        shutil.rmtree(made)
    return names, weight_bytes


def _write_adapter(folder: Path, prepared: "Preparation", student: "PreTrainedModel") -> None:
    source = prepared.config.student
    assert source.model_id is not None, "a rule of the configuration"
    names = prepared.label_names if prepared.task in CLASSIFYING else None
    reference = parse_reference(source.model_id, revision=source.revision)
    base, revision = source.model_id, None
    if isinstance(reference, HubReference):  # peft takes them apart
        base, revision = reference.repo_id, reference.revision
    save_adapter(student, folder, base, revision=revision, label_names=names)


def _with_exports(report: RunReport, made: Exports) -> RunReport:
    exports = made.reports
    return replace(
        report,
        exports=tuple(facts_of(one) for one in exports),
        not_exported=made.failures,
        files=tuple(sorted({*report.files, *(name for one in exports for name in one.files)})),
        warnings=(*report.warnings, *(text for one in exports for text in warnings_of(one))),
    )


def _describe(folder: Path, prepared: "Preparation", report: RunReport, exports: Sequence[ExportReport] = ()) -> None:
    """Writes the card and the report."""
    settings = yaml.safe_dump(prepared.given.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    card = model_card(report, settings, prepared.label_names if prepared.task in CLASSIFYING else None)
    if files := [file for one in exports for file in exported_files(one)]:
        others = weights_in(folder) if not prepared.given.output.merge else []
        card += f"\n{files_section(card_facts(folder), folder, files, others=others)}"
    write_text(folder / "README.md", card)
    document = {**dataclasses.asdict(report), "output_dir": str(report.output_dir)}
    write_text(folder / REPORT, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def weights_in(folder: Path) -> list[ExportedFile]:
    """What transformers loads."""
    artifact = inspect_folder(folder, format=WeightFormat.SAFETENSORS)
    with open_source(artifact) as model:
        values: Counter[str] = Counter()
        for tensor in model.tensors.values():
            values[tensor.dtype.name] += tensor.values
    (dtype, _), *_ = values.most_common(1)
    return [ExportedFile(f.name, "safetensors", f.stat().st_size, dtype) for f in artifact.weight_files]


def describe_student(folder: Path, prepared: "Preparation", student: "PreTrainedModel") -> None:
    """Writes what transformers needs beside the weights of a checkpoint: the configuration and the tokenizer."""
    with quietly():
        if is_adapted(student):
            _write_adapter(folder, prepared, student)
        else:
            config = copy.deepcopy(student.config)
            config.architectures = [type(student).__name__]
            config.save_pretrained(folder)
        prepared.tokenizer.save_pretrained(folder)
    if prepared.poolings is not None:
        _write_pooling(folder, prepared, student)


def _write_pooling(folder: Path, prepared: "Preparation", student: "PreTrainedModel") -> None:
    """What sentence-transformers asks of a folder."""
    assert prepared.poolings is not None
    length = prepared.config.dataset.max_length
    for name, value in sentence_files(prepared.poolings[1], student.config.hidden_size, length).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, value)


def read_report(folder: Path) -> RunReport:
    """The report of a complete run.

    Raises:
        OutputError: it is gone or damaged.
    """
    try:
        return _report(json.loads((folder / REPORT).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder / REPORT} of the complete run is damaged: {error}", "give --force to run again"
        ) from error


def read_exports(document: Mapping[str, Any]) -> tuple[ExportFacts, ...]:
    """The further formats that a report tells of."""
    return tuple(ExportFacts(**{**facts, "notes": tuple(facts["notes"])}) for facts in document.get("exports", ()))


def _report(document: dict[str, Any], folder: Path) -> RunReport:
    for name in ("teacher", "student"):
        document[name] = ModelFacts(**document[name])
    for name in ("teacher_scores", "student_before", "student_scores", "baseline_scores"):
        document[name] = Scores(**document[name]) if document[name] else None
    document["members"] = tuple(
        MemberFacts(**{**member, "scores": Scores(**member["scores"])}) for member in document.get("members", ())
    )
    document["exports"] = read_exports(document)
    for name in ("files", "warnings"):
        document[name] = tuple(document[name])
    return RunReport(**{**document, "output_dir": folder})

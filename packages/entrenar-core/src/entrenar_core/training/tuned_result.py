"""The result folder of a fine-tuning: an adapter or a whole model, with its card, its curves and its report."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from entrenar_core.exporting.card import card_facts
from entrenar_core.exporting.card_reports import exported_files
from entrenar_core.exporting.card_writing import files_section
from entrenar_core.exporting.result import ExportReport
from entrenar_core.models.adapted import is_adapted
from entrenar_core.models.heads import CLASSIFYING
from entrenar_core.reports import TuneReport
from entrenar_core.training.curves import loss_svg
from entrenar_core.training.exports import OnPart, export_student, facts_of, warnings_of
from entrenar_core.training.files import write_text
from entrenar_core.training.merged import MERGED, merge_result
from entrenar_core.training.result import REPORT, weights_in, write_model
from entrenar_core.training.run_folder import read_metrics
from entrenar_core.training.tuned_card import tuned_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation


def write_tuned(
    folder: Path,
    prepared: "Preparation",
    model: "PreTrainedModel",
    report: TuneReport,
    on_part: OnPart = lambda _: None,
) -> TuneReport:
    """Writes everything but `run.json`, and returns the report with what the files weigh and which further format could
    not be written.

    Raises:
        OutputError: a file cannot be written.
        ModelError: the adapter cannot be merged into its base.
    """
    names, weight_bytes = write_model(folder, prepared, model)
    write_text(folder / "loss.svg", loss_svg(read_metrics(folder / "metrics.jsonl")))
    files = tuple(sorted(names | {"loss.svg", "metrics.jsonl", "README.md", REPORT, "run.json"}))
    report = replace(report, model=replace(report.model, weight_bytes=weight_bytes), files=files)
    adapted, output = is_adapted(model), prepared.given.output
    _describe(folder, prepared, report, adapted=adapted)
    if output.merge:
        on_part("merging")
        merge_result(folder, prepared)
        report = replace(report, merged=MERGED, files=tuple(sorted({*report.files, MERGED})))
    exports: tuple[ExportReport, ...] = ()
    if set(output.formats) != {"safetensors"}:
        made = export_student(folder / MERGED if output.merge else folder, output, on_part, beside=folder)
        exports = made.reports
        report = replace(
            report,
            exports=tuple(facts_of(one) for one in exports),
            not_exported=made.failures,
            files=tuple(sorted({*report.files, *(name for one in exports for name in one.files)})),
            warnings=(*report.warnings, *(text for one in exports for text in warnings_of(one))),
        )
    _describe(folder, prepared, report, exports, adapted=adapted)
    return report


def _describe(
    folder: Path,
    prepared: "Preparation",
    report: TuneReport,
    exports: Sequence[ExportReport] = (),
    *,
    adapted: bool,
) -> None:
    """Writes the card and the report."""
    assert prepared.tuning is not None, "a fine-tuning"
    settings = yaml.safe_dump(prepared.tuning.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    names = prepared.label_names if prepared.task in CLASSIFYING else None
    card = tuned_card(report, settings, adapted=adapted, label_names=names)
    if files := [file for one in exports for file in exported_files(one)]:
        others = [] if adapted else weights_in(folder)
        card += f"\n{files_section(card_facts(folder), folder, files, others=others)}"
    write_text(folder / "README.md", card)
    document = {**dataclasses.asdict(report), "output_dir": str(report.output_dir)}
    write_text(folder / REPORT, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

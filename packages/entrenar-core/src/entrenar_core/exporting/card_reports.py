"""The model card of what an export wrote, from its report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entrenar_core.architectures import known_families
from entrenar_core.artifact import ModelArtifact
from entrenar_core.exporting.card import described_in, facts_of
from entrenar_core.exporting.card_measured import ExportedFile, Measured
from entrenar_core.exporting.card_writing import export_card
from entrenar_core.exporting.result import ExportReport
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.references import HubReference

if TYPE_CHECKING:
    from entrenar_core.verification import Verification


def card_of_export(
    report: ExportReport,
    artifact: ModelArtifact,
    *,
    license: Mapping[str, Any] | None = None,  # noqa: A002 - as the front matter calls it
) -> str:
    """The README.md to put beside the files of an export, which are there; see `export_card`."""
    reference = artifact.reference
    repo_id = reference.repo_id if isinstance(reference, HubReference) and "/" in reference.repo_id else None
    of_gguf = facts_of(artifact) if artifact.format is WeightFormat.GGUF else None
    home = described_in(artifact.path)
    written = report.output if report.output.is_dir() else None
    return export_card(
        home,
        exported_files(report),
        facts=of_gguf,
        written=written,
        repo_id=repo_id,
        license=license,
        encoder=_encodes(artifact),
    )


def _encodes(artifact: ModelArtifact) -> bool:
    family = known_families().get(artifact.architecture.family or "")
    return family is not None and family.kind == "encoder"


def exported_files(report: ExportReport) -> tuple[ExportedFile, ...]:
    """The files of weights of an export, as a card tells them."""
    kind = WeightFormat(report.format)
    folder = report.output if report.output.is_dir() else report.output.parent
    weights = [name for name in report.files if name.endswith(FORMATS[kind].suffixes)]
    stored = report.quantization or max(report.types, key=report.types.__getitem__, default=None)
    checked = report.verification
    return tuple(
        ExportedFile(
            name,
            kind.value,
            (folder / name).stat().st_size,
            quantization=stored.upper() if stored else None,
            bits_per_weight=report.bits_per_weight,
            measured=None if checked is None else _measured(checked),
            cosine=None if checked is None or checked.vectors is None else checked.vectors.cosine_min,
            classes=None if checked is None else checked.classes,
            difference=None if report.onnx is None or report.onnx.int8 is not None else report.onnx.largest_difference,
            moved=None if report.onnx is None or report.onnx.int8 is None else report.onnx.int8.relative_rms,
        )
        for name in weights
    )


def _measured(checked: "Verification") -> Measured | None:
    seen = checked.predictions
    if seen is None:
        return None
    return Measured(
        seen.positions,
        seen.distances.kl_mean,
        seen.is_exact,
        seen.distances.agreement,
        seen.perplexity,
        seen.original_perplexity,
    )

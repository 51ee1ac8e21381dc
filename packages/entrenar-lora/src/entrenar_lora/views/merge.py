"""How a merge looks in a terminal."""

from entrenar_common.tables import Amount, Cell, Table, key_values
from entrenar_core.units import moved, percent, size
from entrenar_lora.reports.merge import Loss, MergeCheck, MergeReport


def merge(report: MergeReport) -> Table:
    """What was written, and what storing it lost of the update."""
    facts: dict[str, Cell | None] = {
        "Base": report.base,
        "Adapters" if len(report.adapters) > 1 else "Adapter": _adapters(report),
        "Combined": report.combination,
        "Output": f"{report.output} ({report.format})",
        "Files": ", ".join(report.files) if len(report.files) <= 6 else f"{len(report.files)}",
        "Size": Amount(report.size_bytes, size(report.size_bytes)),
        "Modules": report.modules,
        "Tensors changed": report.tensors_changed,
        "Tensors as they were": report.tensors_copied,
        "New tensors": report.tensors_new or None,
        "Types": ", ".join(f"{number:,} {name}" for name, number in report.dtypes.items()),
        "Quantised to": report.quantization,
        "Rounding moved": None if not report.rounding else f"about {moved(report.rounding)} of the values",
        **(_loss(report.loss, "about " if report.quantization else "") if report.loss is not None else {}),
        **(_check(report.check) if report.check is not None else {}),
    }
    known = {name: value for name, value in facts.items() if value is not None and value != ""}
    advice = (f"! {report.advice}",) if report.advice else ()
    title = f"Would be written to {report.output}" if report.dry_run else f"Merged into {report.output}"
    return key_values(title, known, (*advice, *(f"! {note}" for note in report.notes)))


def _adapters(report: MergeReport) -> str:
    if len(report.adapters) == 1 and report.weights == (1.0,):
        return report.adapters[0]
    return ", ".join(f"{weight:g} × {name}" for name, weight in zip(report.adapters, report.weights, strict=True))


def _loss(loss: Loss, about: str) -> dict[str, Cell | None]:
    """Shares of the update; where rounding moves weights by more than it does, how many times as much. Of what is
    quantised it is told from some rows of large tensors.
    """
    what = "Update lost in storage" if loss.overall <= 1 else "Rounding beside the update"
    return {
        what: f"{about}{_share(loss.overall)}",
        "Most in": f"{loss.worst_module} ({about}{_share(loss.worst)})" if loss.worst else None,
    }


def _share(lost: float) -> str:
    return percent(lost, 2) if lost <= 1 else f"{lost:.3g} times as large"


def _check(check: MergeCheck) -> dict[str, Cell | None]:
    verdict = "as rounding explains" if check.passed else "more than rounding explains"
    return {
        "Beside peft": f"logits differ by up to {check.difference:.2e} of {check.largest_logit:.3g}: {verdict}",
        "Allowed": f"{check.allowed:.2e}",
        "Same best answer": f"{percent(check.agreement)} of {check.tokens} tokens",
    }

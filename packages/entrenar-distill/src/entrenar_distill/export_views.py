"""How an export looks in a terminal."""

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Table, key_values
from entrenar_core.exporting.result import ExportReport
from entrenar_core.units import moved, nats, percent, perplexity, size

_SHOWN_FILES = 6


def exported(report: ExportReport) -> list[Block]:
    """What was written, what llama.cpp says of it, and where it is on the Hub."""
    as_it_was = report.pushed is not None and report.tensors is None and report.onnx is None
    blocks: list[Block] = [] if as_it_was else [_written(report)]
    if report.verification is not None:
        blocks.append(_verified(report))
    if report.pushed is not None:
        blocks.append(_pushed(report))
    return blocks


def _written(report: ExportReport) -> Table:
    types = ", ".join(f"{number:,} {name}" for name, number in sorted(report.types.items(), key=lambda item: -item[1]))
    about = "about " if report.quantization else ""
    changed = (
        f"{about}{moved(report.relative_rms)} of the values that changed (root mean square)"
        if report.relative_rms
        else None
    )
    facts: dict[str, Cell | None] = {
        "From": f"{report.source} ({report.source_format})",
        "To": f"{report.output} ({report.format})",
        "Files": ", ".join(report.files) if len(report.files) <= _SHOWN_FILES else f"{len(report.files)}",
        "Size": Amount(report.size_bytes, size(report.size_bytes)),
        "Quantised to": report.quantization,
        "Tensors": types or None,
        "Bits per weight": None if report.bits_per_weight is None else f"{report.bits_per_weight:.2f}",
        "Rounding moved": changed,
        "Importances": report.importance,
    }
    if report.onnx is not None:
        facts |= _onnx(report)
    known = {name: value for name, value in facts.items() if value is not None}
    return key_values(f"Written to {report.output}", known, tuple(f"! {note}" for note in report.notes))


def _onnx(report: ExportReport) -> dict[str, Cell | None]:
    done = report.onnx
    assert done is not None
    found: dict[str, Cell | None] = {"Largest difference to torch": f"{done.largest_difference:.2e} in 32 bits"}
    if (change := done.int8) is not None:
        found |= {
            "Eight bits moved": f"{percent(change.relative_rms)} of the answers (root mean square)",
            "Cosine": f"{change.cosine:.5f}",
            "Same likeliest": None if change.top_1_agreement is None else percent(change.top_1_agreement),
            "Tried on": f"{change.shape[0]} rows of {change.shape[1]} tokens",
        }
    return found


def _verified(report: ExportReport) -> Table:
    found = report.verification
    assert found is not None
    facts: dict[str, Cell] = {"Texts cut alike": f"{found.texts.agreeing} of {found.texts.texts}"}
    if (seen := found.predictions) is not None:
        least = "" if seen.is_exact else "at least "
        facts |= {
            "KL divergence": f"{least}{nats(seen.distances.kl_mean)} a token on average",
            "Where it is largest": f"{least}{nats(seen.distances.kl_max)}",
            "Same likeliest token": percent(seen.distances.agreement),
            "Perplexity": f"{perplexity(seen.perplexity)}, the model's {perplexity(seen.original_perplexity)}",
            "Positions": f"{seen.positions:,}",
        }
    if (vectors := found.vectors) is not None:
        facts |= {"Cosine of vectors": f"{vectors.cosine_mean:.6f}, the least {vectors.cosine_min:.6f}"}
    if (classes := found.classes) is not None:
        facts |= {
            "KL divergence": f"{nats(classes.kl_mean)} a text on average",
            "Where it is largest": nats(classes.kl_max),
            "Same class": f"{percent(classes.agreement)} of {classes.texts} texts",
        }
    verdict = "llama.cpp answers as the model does" if found.passed else "llama.cpp does not answer as the model does"
    return key_values(f"{verdict}, within what {found.mix} allows" if found.passed else verdict, facts,
                      tuple(f"! {reason}" for reason in found.reasons))  # fmt: skip


def _pushed(report: ExportReport) -> Table:
    done = report.pushed
    assert done is not None
    facts: dict[str, Cell] = {
        "Repository": f"{done.url} ({'private' if done.private else 'public'})",
        "Commit": done.commit,
        "Uploaded": ", ".join(done.uploaded) or "nothing: all of it was there",
        "Was there": ", ".join(done.present),
        "Left here": ", ".join(done.left_out),
        "Sent": Amount(done.sent_bytes, size(done.sent_bytes)),
    }
    return key_values("Uploaded", {name: value for name, value in facts.items() if value != ""})

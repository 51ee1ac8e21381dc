"""How a diagnosis looks in a terminal."""

import math

from entrenar_common.output import Block
from entrenar_common.tables import Cell, Table, key_values
from entrenar_core.diagnosis.findings import AtTemperature, Diagnosis, Encoder, Layers, SentenceDiagnosis
from entrenar_core.units import percent
from entrenar_distill.reports import DiagnosisReport, Vocabulary

_COLUMNS = 12
"""Layers of the teacher that a table still has room for; JSON has all."""


def diagnosis(report: DiagnosisReport) -> list[Block]:
    """The teacher on the labels, by temperature, the student beside it, the layers, and what is wrong. Of sentence
    encoders, what their vectors find.
    """
    found = report.diagnosis
    blocks: list[Block]
    if isinstance(found, SentenceDiagnosis):
        blocks = [_sentence_models(found, report.vocabulary), _encoders(found)]
    else:
        blocks = [_models(found, report.vocabulary), _by_temperature(found), _student(found)]
    if found.layers is not None:
        blocks.append(_layers(found.layers))
    return [*blocks, _findings(report)]


def _models(found: Diagnosis, vocabulary: Vocabulary) -> Table:
    facts = _compared(found, f", {_targets(found)}", vocabulary)
    notes: tuple[str, ...] = ()
    if found.on_labels is not None:
        labels, calibrated = found.on_labels, found.on_labels.calibration_temperature
        facts |= {
            "Accuracy": percent(labels.accuracy),
            "Cross-entropy": f"{labels.cross_entropy:.4g} nats",
            "Calibration error": percent(labels.calibration_error),
            "Calibrated at": f"temperature {calibrated:.3g}" if calibrated else "no temperature from 1/16 to 64",
        }
        notes = (
            f"on {labels.labels:,} labels; calibration error in 15 bins of confidence; calibrated where the "
            "cross-entropy is least, above 1 the teacher is too sure of itself",
        )
    else:
        facts["Labels"] = "none of the rows has one"
    return key_values(f"Teacher of {found.task}", facts, notes)


def _compared(found: Diagnosis | SentenceDiagnosis, targets: str, vocabulary: Vocabulary) -> dict[str, Cell]:
    return {
        "Teacher": found.teacher,
        "Student": found.student,
        "Data": f"{found.rows:,} evaluation row{'' if found.rows == 1 else 's'} of {found.dataset}{targets}",
        "Vocabularies": _vocabularies(vocabulary),
    }


def _sentence_models(found: SentenceDiagnosis, vocabulary: Vocabulary) -> Table:
    facts = _compared(found, "", vocabulary)
    return key_values(f"Teacher and student of {found.task}", facts)


def _encoders(found: SentenceDiagnosis) -> Table:
    columns = ("", "pooling", "width", "average precision", "accuracy", "cosines", "rank correlation", "to teacher")
    beside = (_number(found.rank_correlation), _number(found.cosine))
    rows = (
        ("teacher", *_encoder(found.teacher_encoder), "–", "–"),
        ("student", *_encoder(found.student_before), *beside),
    )
    asked = (
        "a text finds, by cosine, those of its label among all others"
        if found.labelled
        else "the first half of a text finds, by cosine, its second half among those of all"
    )
    notes = (
        f"{found.queries:,} queries: {asked}",
        "cosines of pairs of rows, mean ± standard deviation; rank correlation of the student's with the teacher's; "
        "to teacher, the mean cosine between the vectors of both, where they are of one width",
    )
    return Table("Vectors before training", columns, rows, notes)


def _encoder(encoder: Encoder) -> tuple[Cell, ...]:
    mean, deviation = encoder.mean_cosine, encoder.cosine_deviation
    cosines = "–" if mean is None or deviation is None else f"{mean:.3f} ± {deviation:.3f}"
    scores = (percent(encoder.mean_average_precision), percent(encoder.accuracy))
    return (encoder.pooling, str(encoder.width), *scores, cosines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _targets(found: Diagnosis) -> str:
    if found.task == "causal-lm":
        return f"{found.targets:,} tokens of {found.classes:,}"
    return f"{found.classes:,} classes"


def _vocabularies(vocabulary: Vocabulary) -> str:
    sides = f"{vocabulary.teacher.tokens:,} tokens"
    return sides if vocabulary.verdict == "identical" else f"{vocabulary.verdict}: {_sizes(vocabulary)}"


def _sizes(vocabulary: Vocabulary) -> str:
    return f"teacher {vocabulary.teacher.tokens:,} tokens, student {vocabulary.student.tokens:,}"


def _by_temperature(found: Diagnosis) -> Table:
    tops = list(found.by_temperature[0].top_mass)
    columns = ("temperature", "entropy", "effective support", *(f"top {top:,}" for top in tops), "")
    rows = tuple(_temperature(at, tops, found) for at in found.by_temperature)
    advised, target = found.advice.temperature, found.advice.target_support
    follows = "none up to 64 does" if advised is None else f"that is so at {advised:.3g}"
    if advised == 1:
        follows = "it is as large at 1"
    notes = (
        f"entropy in nats of at most {math.log(max(found.classes, 1)):.4g}; effective support is its exponential; "
        "top k, the share of the k likeliest",
        f"a rule of thumb: soften until the effective support is √{found.classes:,} = {target:.3g}; {follows}",
    )
    return Table("The teacher by temperature", columns, rows, notes)


def _temperature(at: AtTemperature, tops: list[int], found: Diagnosis) -> tuple[Cell, ...]:
    mass = (percent(at.top_mass[top]) for top in tops)
    mark = "configured" if at.temperature in found.configured_temperatures else ""
    return (f"{at.temperature:g}", f"{at.entropy:.3f}", f"{at.effective_support:,.1f}", *mass, mark)


def _student(found: Diagnosis) -> Table:
    before = found.student_before
    shared: dict[str, Cell] = (
        {} if before.top_k == 1 else {f"Share of the teacher's top {before.top_k}": percent(before.top_k_agreement)}
    )
    return key_values(
        "The student before training, beside the teacher",
        {
            "KL(teacher ‖ student)": f"{before.kl:.4g} nats",
            "Jensen-Shannon": f"{before.js:.4g} nats of at most 0.693",
            "Prefers the same": percent(before.agreement),
            **shared,
        },
    )


def _layers(layers: Layers) -> Table:
    by_cka, uniform = dict(layers.by_cka or ()), dict(layers.uniform or ())
    shown = range(len(layers.cka[0])) if len(layers.cka[0]) <= _COLUMNS else ()
    columns = ("student's layer", *(f"teacher {index}" for index in shown), "most alike", "by CKA", "uniform")
    rows = []
    for layer, row in enumerate(layers.cka):
        chosen = (row.index(max(row)), by_cka.get(layer), uniform.get(layer))
        rows.append((str(layer), *(f"{row[other]:.2f}" for other in shown), *(_like(other, row) for other in chosen)))
    notes = [
        f"CKA of hidden states over {layers.tokens:,} tokens, at most 1; layers are counted from 0; behind a layer of "
        "the teacher, its CKA"
    ]
    if layers.by_cka is not None:
        pairs = ", ".join(f"[{student}, {teacher}]" for student, teacher in layers.by_cka)
        notes.append(
            f"by CKA, as `layers` of a loss or `layer_mapping` of a short spelling: [{pairs}], or `cka`; it likes low "
            "layers of the teacher, so look at it before you trust it"
        )
    else:
        notes.append("the student has more layers than the teacher, so no mapping gives each a layer of its own")
    return Table("Layers that see the tokens alike", columns, tuple(rows), tuple(notes))


def _like(layer: int | None, cka: tuple[float, ...]) -> str:
    return "–" if layer is None else f"{layer} ({cka[layer]:.2f})"


def _findings(report: DiagnosisReport) -> Table:
    found = report.diagnosis
    rows = [(trouble.name, trouble.seen, trouble.remedy) for trouble in found.troubles]
    rows += [("vocabularies", text, "") for text in report.vocabulary.warnings]
    if found.layers_skipped is not None:
        rows.append(("layers", f"not compared: {found.layers_skipped}", ""))
    if not rows:
        rows = [("✓ nothing", "no trouble shows before training", "")]
    return Table("Findings", ("what", "seen", "remedy"), tuple(rows), ("nothing was trained or written",))

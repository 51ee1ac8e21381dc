"""What a diagnosis finds: plain, torch-free values that a terminal shows and JSON carries."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that spoils a training: its name, what was seen, with figures, and the settings that remedy it.

    `subject` is what has it, where several things can, such as a loss or a group of parameters.
    """

    name: str
    seen: str
    remedy: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class OnLabels:
    """The teacher on rows or tokens that have a label. `cross_entropy` in nats.

    `calibration_error` is the expected calibration error in 15 bins; `calibration_temperature` the temperature that
    makes the cross-entropy least, None where it is beyond those that are tried.
    """

    labels: int
    accuracy: float
    cross_entropy: float
    calibration_error: float
    calibration_temperature: float | None


@dataclass(frozen=True, slots=True)
class AtTemperature:
    """The teacher's distribution at a temperature: mean entropy in nats, exp of it, and the mean share of the
    likeliest 1, 5, 10 and 100 tokens or classes, as far as there are more than these.
    """

    temperature: float
    entropy: float
    effective_support: float
    top_mass: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class TemperatureAdvice:
    """The temperature that follows by a rule of thumb: where the effective support is `target_support`.

    `temperature` is 1 where it is that large at 1 already, and None where no temperature that is tried reaches it.
    """

    temperature: float | None
    target_support: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The student beside the teacher on the same rows or tokens, at temperature 1; divergences in nats.

    `agreement` is the share on which both prefer the same; `top_k_agreement` the mean share of the teacher's
    likeliest `top_k` that are among the student's likeliest `top_k`.
    """

    rows: int
    kl: float
    js: float
    agreement: float
    top_k: int
    top_k_agreement: float


@dataclass(frozen=True, slots=True)
class Encoder:
    """A sentence encoder: its `pooling`, the `width` of its vectors, and its scores, as an evaluation gives them.

    `mean_cosine` and `cosine_deviation` are of its cosines of pairs of rows, all of them or a million; None with fewer
    than two pairs.
    """

    pooling: str
    width: int
    mean_average_precision: float
    accuracy: float
    mean_cosine: float | None
    cosine_deviation: float | None


@dataclass(frozen=True, slots=True)
class Layers:
    """CKA of every layer of the student, a row each, with every layer of the teacher, over some tokens of the rows;
    the pairs that follow from it, and those that are evenly spaced. None where the student has more layers.
    """

    tokens: int
    cka: tuple[tuple[float, ...], ...]
    by_cka: tuple[tuple[int, int], ...] | None
    uniform: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Both models on evaluation rows, before training.

    `targets` are the rows or tokens that were looked at, `classes` how many the logits tell apart. `on_labels` is
    None where none has a label. Where layers cannot be compared, `layers` is None and `layers_skipped` says why.
    """

    task: str
    teacher: str
    student: str
    dataset: str
    rows: int
    targets: int
    classes: int
    on_labels: OnLabels | None
    by_temperature: tuple[AtTemperature, ...]
    configured_temperatures: tuple[float, ...]
    advice: TemperatureAdvice
    student_before: Comparison
    layers: Layers | None
    layers_skipped: str | None
    troubles: tuple[Trouble, ...]


@dataclass(frozen=True, slots=True)
class SentenceDiagnosis:
    """Two sentence encoders on evaluation rows, before training.

    `queries` texts look for others: where rows are `labelled`, for those of their label, else halves for their other
    half. `rank_correlation` is Spearman's, of the student's cosines of pairs of rows with the teacher's; `cosine` the
    mean between the vectors of both, None where their widths differ. Layers are as in `Diagnosis`.
    """

    task: str
    teacher: str
    student: str
    dataset: str
    rows: int
    queries: int
    labelled: bool
    teacher_encoder: Encoder
    student_before: Encoder
    rank_correlation: float | None
    cosine: float | None
    layers: Layers | None
    layers_skipped: str | None
    troubles: tuple[Trouble, ...]

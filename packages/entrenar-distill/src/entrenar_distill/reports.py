"""What the commands return. Standard library only, so that it imports in no time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from entrenar_core.diagnosis.findings import Diagnosis, SentenceDiagnosis
from entrenar_core.reports import Plan, RunReport

__all__ = [
    "CacheReport",
    "Check",
    "Design",
    "DiagnosisReport",
    "Loss",
    "LossTable",
    "Plan",
    "ProposedStudent",
    "RunReport",
    "ValidationReport",
    "Vocabulary",
    "VocabularySide",
]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `skipped` says in its detail why it could not be."""

    name: str
    status: Literal["ok", "skipped"]
    detail: str


@dataclass(frozen=True, slots=True)
class VocabularySide:
    """One model's `tokens`, `ids` up to the highest of them, `gaps` among these that no token has, and `rows` of its
    head, with `padding` beyond the ids. None where its configuration does not say.
    """

    model: str
    tokens: int
    ids: int
    gaps: int
    rows: int | None
    padding: int | None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How the vocabularies fit. `length` columns of both heads stand for the same tokens, after mapping if permuted;
    None if they differ. `only_teacher`, `only_student` and `moved` count the tokens that do.

    `split_alike` is None where it was not compared; `split_text` is the first text that is split differently.
    """

    verdict: Literal["identical", "permuted", "differing"]
    length: int | None
    teacher: VocabularySide
    student: VocabularySide
    only_teacher: int
    only_student: int
    moved: int
    roles_differing: tuple[str, ...]
    split_alike: bool | None
    split_text: str | None
    parts_differing: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """A configuration without a mistake, and how far that could be known.

    `vocabulary` is None where it was not compared; then the check of that name says why.
    """

    config: str
    checks: tuple[Check, ...]
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True, slots=True)
class DiagnosisReport:
    """What was seen of the models and the data of a configuration before training."""

    config: str
    vocabulary: Vocabulary
    diagnosis: Diagnosis | SentenceDiagnosis


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What a cache of a teacher holds.

    `kind` has the settings of what is kept, `layers` which of them are kept, `made_of` what it hangs on. `measured` is
    how far what is kept is from the live teacher on some rows: the KL of a student from both, in nats, and the angle
    between the gradients of both, in degrees; or the relative error of other numbers. `verified`: every checksum was
    compared just now.
    """

    folder: Path
    complete: bool
    verified: bool
    kind: dict[str, Any]
    layers: dict[str, Any] | None
    made_of: dict[str, Any]
    teacher: dict[str, Any]
    rows: int
    positions: int
    shards: int
    bytes: int
    bytes_per_position: float
    built: dict[str, Any] | None
    measured: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss that a student can be trained with: an entry of `distillation.losses`, and its settings by default.

    `needs` is what both models must give; `scope` what may not be cut: tokens, sequences, or groups of rows.
    """

    name: str
    family: str
    formula: str
    settings: dict[str, Any]
    needs: str
    scope: str
    source: str


@dataclass(frozen=True, slots=True)
class LossTable:
    """All losses."""

    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class ProposedStudent:
    """An architecture of about the wanted size. `parameters` is exact; `ratio` is the teacher's over it.

    `student` is the section of a configuration that makes it.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    parameters: int
    ratio: float
    embedding_parameters: int
    embedding_share: float
    student: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Design:
    """Students of a teacher, the nearest to the wanted number of parameters first."""

    teacher: str
    family: str
    teacher_parameters: int
    wanted_parameters: int
    keep: Literal["depth", "width", "balanced"]
    with_head: bool
    proposals: tuple[ProposedStudent, ...]

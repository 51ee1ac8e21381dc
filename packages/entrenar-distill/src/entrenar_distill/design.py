"""`design`: architectures for a student of a given size, from the teacher's config alone."""

from typing import TYPE_CHECKING, Literal

from entrenar_core.architectures.reference_sizes import reference_sizes
from entrenar_core.errors import UsageError
from entrenar_core.hub import fetch_config
from entrenar_core.references import parse_reference
from entrenar_core.units import parse_count
from entrenar_distill.reports import Design, ProposedStudent

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Keep = Literal["depth", "width", "balanced"]


def design(teacher: str, *, ratio: float | None, parameters: str | None, keep: Keep, revision: str | None) -> Design:
    """Students with a `ratio`-th of a teacher's parameters, or about `parameters` (`1.1B`) of them.

    The teacher is a model, of which the config alone is read, or the name of a known architecture.

    Raises:
        UsageError: there is no such student, or the size is given twice or not at all.
        EntrenarError: the teacher's config cannot be had, or its family is not known.
    """
    wanted = None if parameters is None else parse_count(parameters)
    if (ratio is None) == (wanted is None):
        raise UsageError("a design needs one of --ratio and --params, and not both", "give --ratio 7, or --params 1.1B")
    config = _config(teacher, revision)
    from entrenar_core.models.designing import propose

    found = propose(config, ratio=ratio, parameters=wanted, keep=keep)
    proposals = tuple(
        ProposedStudent(
            num_layers=one.num_layers,
            hidden_size=one.hidden_size,
            num_heads=one.num_heads,
            num_kv_heads=one.num_kv_heads,
            intermediate_size=one.intermediate_size,
            parameters=one.parameters,
            ratio=found.teacher_parameters / one.parameters,
            embedding_parameters=one.embedding_parameters,
            embedding_share=one.embedding_parameters / one.parameters,
            student={"init_from": one.init_from},
        )
        for one in found.proposals
    )
    return Design(teacher, found.family, found.teacher_parameters, found.goal, keep, found.counts_head, proposals)


def _config(teacher: str, revision: str | None) -> "PreTrainedConfig":
    """Of a known architecture, else of a model."""
    if known := reference_sizes().get(teacher):
        if revision is not None:
            raise UsageError(f"{teacher} is a known architecture, which has no revisions", "leave --revision out")
        from entrenar_core.models.student_settings import known_config

        return known_config(known)
    folder = fetch_config(parse_reference(teacher, revision=revision))
    from entrenar_core.models.loading import read_config

    return read_config(folder)

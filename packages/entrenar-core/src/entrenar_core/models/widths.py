"""How wide the teacher is and how wide a student of its layers will be; without torch, for `validate`."""

from collections.abc import Iterator
from dataclasses import dataclass

from entrenar_core.architectures import Architecture, Family
from entrenar_core.config.schema import InitFrom
from entrenar_core.errors import Problem

WIDTHS = ("hidden_size", "num_heads", "num_kv_heads", "intermediate_size")
_WHERE = "student.init_from"


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths of a model, which its layers share. A head keeps the numbers that it has."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int

    @property
    def group(self) -> int:
        """Heads that share keys and values."""
        return self.num_heads // self.num_kv_heads


def is_narrower(settings: InitFrom) -> bool:
    """Whether any width is given."""
    return any(getattr(settings, name) is not None for name in WIDTHS)


def is_measured(settings: InitFrom) -> bool:
    """Whether it takes texts to decide what is kept."""
    decides = settings.width == "importance" or (settings.embeddings == "svd" and settings.hidden_size is not None)
    return is_narrower(settings) and settings.importance == "activation" and decides


def widths_of(architecture: Architecture) -> Widths | None:
    """A model's widths; None where its config leaves one out."""
    sizes = {name: getattr(architecture, name) for name in WIDTHS}
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or sizes["num_heads"]
    return Widths(**sizes) if all(sizes.values()) else None


def student_widths(settings: InitFrom, family: Family, teacher: Widths) -> Widths:
    """The widths that the settings mean: what they leave out is the teacher's, or follows.

    Where the family has no width of heads of its own, a narrower residual stream has fewer heads, and fewer heads a
    narrower stream. Fewer heads leave as many to each key and value head as in the teacher.
    """
    hidden, heads = settings.hidden_size, settings.num_heads
    if not family.head_dim:
        if heads is None and hidden is not None:
            heads = hidden * teacher.num_heads // teacher.hidden_size
        elif hidden is None and heads is not None:
            hidden = heads * teacher.hidden_size // teacher.num_heads
    heads = heads or teacher.num_heads
    return Widths(
        hidden or teacher.hidden_size,
        heads,
        settings.num_kv_heads or max(1, heads // teacher.group),
        settings.intermediate_size or teacher.intermediate_size,
    )


def check_widths(settings: InitFrom, family: Family, architecture: Architecture) -> Iterator[Problem]:
    """Every mistake in the widths of a student of the teacher's layers."""
    given = [name for name in WIDTHS if getattr(settings, name) is not None]
    if not given:
        return
    where = f"{_WHERE}.{given[0]}"
    teacher = widths_of(architecture)
    if family.flows is None:
        yield Problem(
            f"which widths of {family.name} run through which matrices is not known here",
            "copy whole layers, or give sizes",
            where,
        )
    elif teacher is None:
        yield Problem("the teacher's config does not say how wide it is", "copy whole layers", where)
    elif larger := list(_larger(settings, teacher)):
        yield from larger
    else:
        yield from _heads(settings, family, teacher)
        yield from _turned(settings, family)


def _larger(settings: InitFrom, teacher: Widths) -> Iterator[Problem]:
    for name in WIDTHS:
        asked, there = getattr(settings, name), getattr(teacher, name)
        if asked is not None and asked > there:
            yield Problem(
                f"`{_WHERE}.{name}` {asked} is more than the teacher's {there}",
                f"take at most {there}",
                f"{_WHERE}.{name}",
            )


def _heads(settings: InitFrom, family: Family, teacher: Widths) -> Iterator[Problem]:
    student = student_widths(settings, family, teacher)
    given = next((name for name in ("num_heads", "hidden_size") if getattr(settings, name)), "num_heads")
    if not family.head_dim and student.hidden_size * teacher.num_heads != student.num_heads * teacher.hidden_size:
        head = teacher.hidden_size // teacher.num_heads
        heads = max(1, student.hidden_size // head)
        yield Problem(
            f"{student.num_heads} heads of {head} numbers, as the teacher's are, do not make {student.hidden_size}",
            f"set `hidden_size: {heads * head}` and `num_heads: {heads}`",
            f"{_WHERE}.{given}",
        )
    elif student.hidden_size % student.num_heads:  # transformers and others want it, even of a head with its own width
        yield Problem(
            f"a hidden size of {student.hidden_size} is not a multiple of the {student.num_heads} heads",
            f"set `hidden_size: {max(1, student.hidden_size // student.num_heads) * student.num_heads}`",
            f"{_WHERE}.{given}",
        )
    elif family.keys["num_kv_heads"] == family.keys["num_heads"]:
        if settings.num_kv_heads not in (None, student.num_heads):
            message = f"every head of {family.name} has its own keys and values"
            yield Problem(message, "remove `num_kv_heads`", f"{_WHERE}.num_kv_heads")
    elif student.num_heads % student.num_kv_heads or student.group > teacher.group:
        yield _unshared(student, teacher, "num_kv_heads" if settings.num_kv_heads else given)


def _unshared(student: Widths, teacher: Widths, given: str) -> Problem:
    """Heads of one group stay in one group, of which some may go."""
    heads = student.num_heads
    fitting = [kv for kv in range(1, teacher.num_kv_heads + 1) if heads % kv == 0 and heads // kv <= teacher.group]
    multiple = max(1, heads // teacher.group) * teacher.group
    return Problem(
        f"{heads} heads cannot share {student.num_kv_heads} of keys and values as in the teacher, where at most "
        f"{teacher.group} share one",
        f"set `num_kv_heads: {fitting[-1]}`" if fitting else f"set `num_heads: {multiple}`",
        f"{_WHERE}.{given}",
    )


def _turned(settings: InitFrom, family: Family) -> Iterator[Problem]:
    if settings.embeddings == "svd" and family.flows is not None and not family.flows.feeds:
        yield Problem(
            f"`{_WHERE}.embeddings: svd` turns the residual stream, which the norms of {family.name} do not let pass",
            "use `embeddings: slice`",
            f"{_WHERE}.embeddings",
        )

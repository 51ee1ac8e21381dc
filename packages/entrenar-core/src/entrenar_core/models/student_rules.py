"""What a student's settings must hold against the teacher; without torch, so that `validate` answers at once."""

import difflib
from collections.abc import Iterator
from typing import Literal

from entrenar_core.architectures import Architecture, Family, families
from entrenar_core.architectures.reference_sizes import ReferenceSizes, reference_sizes
from entrenar_core.config.rules import OF_THE_TEACHER
from entrenar_core.config.schema import InitFrom, StudentConfig
from entrenar_core.errors import Problem
from entrenar_core.models.widths import check_widths

LAYERS = "student.init_from.teacher_layers"
_SIZES = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size")
_DECODING = ("ForCausalLM", "LMHeadModel")


def evenly_spaced(count: int, total: int) -> tuple[int, ...]:
    """`count` of the layers 0 to `total` - 1, spaced evenly, the first and the last among them; one is the first.

    The i-th is ⌈i (total - 1) / (count - 1)⌉: 6 of 30 are 0, 6, 12, 18, 24, 29.

    Raises:
        ValueError: `count` is not between 1 and `total`.
    """
    if not 1 <= count <= total:
        raise ValueError(f"cannot take {count} of {total} layers")
    return tuple(-(-i * (total - 1) // max(count - 1, 1)) for i in range(count))


def chosen_layers(
    layers: int | tuple[int, ...] | None, total: int, layers_from: Literal["uniform", "first", "last"] = "uniform"
) -> tuple[int, ...]:
    """The indices that `init_from.teacher_layers` means, of a teacher with `total` layers: None means all of them, and
    a number so many evenly spaced, or the first or the last ones.

    Raises:
        ValueError: more layers are counted than there are.
    """
    if layers is None:
        return tuple(range(total))
    if not isinstance(layers, int):
        return layers
    spread = evenly_spaced(layers, total)
    ends = {"uniform": spread, "first": tuple(range(layers)), "last": tuple(range(total - layers, total))}
    return ends[layers_from]


def known_sizes(config: StudentConfig) -> ReferenceSizes | None:
    """The known model that `student.architecture` names. A name that is a family's too, such as `distilbert`, means
    the family where sizes are given.
    """
    known = reference_sizes().get(config.architecture or "")
    return None if known is not None and known.name in families() and config.hidden_size is not None else known


def with_known_sizes(config: StudentConfig) -> StudentConfig:
    """A student of a known model's name as one of its family and sizes; any other as it is."""
    known = known_sizes(config)
    if known is None:
        return config
    return config.model_copy(update={"architecture": known.family} | {size: getattr(known, size) for size in _SIZES})


def family_of_student(config: StudentConfig, teacher: Architecture) -> Family | None:
    """The family of a student that is built: the one named, else the teacher's; None where the table has no such."""
    name = teacher.family if config.architecture in (None, OF_THE_TEACHER) else config.architecture
    return families().get(name) if name else None


def check_student(config: StudentConfig, teacher: Architecture, *, task: str | None = None) -> list[Problem]:
    """Every mistake in a student that is built by sizes or from layers; a referenced one is judged by loading it.

    `where` of a problem is the dotted name of the setting. With a `task`, the family must be of a kind that can do it.
    """
    if config.model_id is not None:
        return []
    config = with_known_sizes(config)
    family = family_of_student(config, teacher)
    if family is None:
        return [_unknown_family(config, teacher)]
    problems = list(_kind(config, family, task))
    if config.init_from is None:
        return [*problems, *_sizes(config, family)]
    problems += _layers(config.init_from, teacher)
    problems += check_widths(config.init_from, family, teacher)
    return problems


def _unknown_family(config: StudentConfig, teacher: Architecture) -> Problem:
    known = ", ".join(name for name, family in families().items() if family.kind != "encoder-decoder")
    if config.architecture in (None, OF_THE_TEACHER):
        where = LAYERS if config.init_from else "student.architecture"
        what = f"the teacher is a {teacher.model_type}, " if teacher.model_type else "the teacher's kind is not known, "
        hint = "give the student's `model_id`" if config.init_from else f"name one of {known}"
        return Problem(f"{what}a family whose inside is not known here", hint, where)
    close = difflib.get_close_matches(config.architecture.lower(), [*families(), *reference_sizes()], n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"the families are {known}"
    return Problem(f"`{config.architecture}` is not a model family", hint, "student.architecture")


def _kind(config: StudentConfig, family: Family, task: str | None) -> Iterator[Problem]:
    where = LAYERS if config.init_from else "student.architecture"
    if family.kind == "encoder-decoder":
        yield Problem(f"{family.name} has an encoder and a decoder, of which neither alone can be built", None, where)
    elif family.kind == "encoder" and task == "causal-lm":
        yield Problem(
            f"{family.name} reads a text from both sides, so it cannot learn causal-lm",
            "name a decoder such as `llama`, or set `task: sequence-classification`",
            where,
        )
    elif family.kind == "decoder" and task == "masked-lm":
        yield Problem(
            f"{family.name} reads a text from the left alone, so it cannot learn masked-lm",
            "name an encoder such as `bert`, or set `task: causal-lm`",
            where,
        )


def check_kinds(task: str | None, teacher: Architecture, student: Architecture | None) -> list[Problem]:
    """Models that are named and read a text another way than the task means. A config may turn an encoder around."""
    found = []
    for part, model in (("teacher", teacher), ("student", student)):
        family = families().get(model.family or "") if model else None
        if model is None or family is None or any(name.endswith(_DECODING) for name in model.classes):
            continue
        if task == "causal-lm" and family.kind == "encoder":
            what = f"the {part} is a {family.name}, which reads a text from both sides: it sees what it would predict"
            found.append(Problem(what, "name a decoder, or another `task`", f"{part}.model_id"))
    return found


def _layers(init_from: InitFrom, teacher: Architecture) -> Iterator[Problem]:
    layers, total = init_from.teacher_layers, teacher.num_layers
    if total is None:
        yield Problem(
            "the teacher's config does not say how many layers it has", "give the student's `model_id`", LAYERS
        )
    elif isinstance(layers, int) and layers > total:
        yield Problem(f"{layers} layers are asked for, and the teacher has {total}", f"take at most {total}", LAYERS)
    elif isinstance(layers, tuple) and (beyond := [index for index in layers if index >= total]):
        yield Problem(
            f"the teacher has no layer {', '.join(map(str, beyond))}", f"its layers are 0 to {total - 1}", LAYERS
        )


def _sizes(config: StudentConfig, family: Family) -> Iterator[Problem]:
    hidden, heads, kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads
    for name in ("hidden_size", "num_layers", "num_heads"):
        if getattr(config, name) is None:
            yield Problem(f"a student given by sizes needs `student.{name}` too", None, f"student.{name}")
    if hidden and heads and hidden % heads:
        message = f"`student.hidden_size` {hidden} is not a multiple of `student.num_heads` {heads}"
        yield Problem(message, f"take a multiple of {heads}", "student.num_heads")
    elif hidden and heads and family.kind == "decoder" and family.name != "gpt2" and hidden // heads % 2:
        message = f"{family.name} turns pairs of numbers, and a head would have {hidden // heads}"
        yield Problem(message, f"take a multiple of {2 * heads} for `student.hidden_size`", "student.num_heads")
    if not (heads and kv_heads):
        return
    if heads % kv_heads:
        message = f"`student.num_heads` {heads} is not a multiple of `student.num_kv_heads` {kv_heads}"
        yield Problem(message, f"take a divisor of {heads}", "student.num_kv_heads")
    elif kv_heads != heads and family.keys["num_kv_heads"] == family.keys["num_heads"]:
        message = f"every head of {family.name} has its own keys and values"
        yield Problem(message, "remove `student.num_kv_heads`", "student.num_kv_heads")

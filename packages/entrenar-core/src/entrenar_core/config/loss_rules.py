"""Rules between the settings of losses, and of schedules in their places; as rules.py, on plain values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entrenar_core.config.broken import Broken
from entrenar_core.config.wording import dotted
from entrenar_core.config.yaml_source import Path
from entrenar_core.losses.table import LOSSES

SHORT = (
    "alpha",
    "divergence",
    "top_k",
    "top_k_tail",
    "entropy_threshold",
    "label_smoothing",
    "progressive",
    "attention",
    "relations",
)
_SCHEDULED = ("temperature", "alpha")
_SECTIONS = ("progressive", "attention", "relations")
_GROUPED = ("cka", "rkd_distance", "rkd_angle", "similarity_preserving", "in_batch_similarity")
_LABELS = "cross_entropy"
_WITHOUT = (("attention", ("maps",), ("head_mapping", "head_weighting")), ("progressive", ("cka",), ("projection",)))
DEFAULT_GROUP, DEFAULT_BATCH = 8, 32


def loss_rules(distillation: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Broken]:
    """All rules that the section breaks."""
    entries = distillation.get("losses")
    if isinstance(entries, Sequence) and not isinstance(entries, str):
        yield from _exclusive(distillation)
        yield from _labels_once(entries)
        yield from _weightless(entries)
        yield from _unheard(distillation, entries)
        for index, entry in enumerate(entries):
            if isinstance(entry, Mapping):
                yield from _entry(("distillation", "losses", index), entry, training)
    else:
        yield from _selection(("distillation",), distillation, distillation.get("divergence"))
        yield from _short_groups(distillation, training)
        yield from _idle(distillation)
    for path, value in _settings(distillation):
        yield from _schedule(path, value)


def _exclusive(distillation: Mapping[str, Any]) -> Iterator[Broken]:
    for name in SHORT:
        if name in distillation:
            yield Broken(
                ("distillation", name),
                f"`distillation.{name}` is a short spelling, and `distillation.losses` lists all losses",
                "keep one of the two",
            )


def _labels_once(entries: Sequence[Any]) -> Iterator[Broken]:
    places = [i for i, entry in enumerate(entries) if isinstance(entry, Mapping) and entry.get("name") == _LABELS]
    for index in places[1:]:
        yield Broken(
            ("distillation", "losses", index),
            f"`distillation.losses[{index}]` is a second `{_LABELS}`",
            "add its weight to the first",
        )


def _entry(path: Path, entry: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Broken]:
    yield from _selection(path, entry, entry.get("name"))
    if entry.get("name") == "jsd" and entry.get("beta") in (0, 1) and entry.get("normalised") is not True:
        yield Broken(
            (*path, "beta"),
            f"`{dotted(path)}.beta` {entry['beta']:g} makes the divergence zero",
            "take a number between 0 and 1, or set `normalised: true`, whose limits are the two KLs",
        )
    if entry.get("name") in _GROUPED:
        yield from _least((*path, "group_size"), entry)
        yield from _groups((*path, "group_size"), entry.get("group_size", DEFAULT_GROUP), training)
    if entry.get("name") == "jeffreys" and entry.get("forward") == entry.get("reverse") == 0:
        yield Broken((*path, "forward"), f"`{dotted(path)}` has neither a forward nor a reverse part", "raise one")


def _selection(path: Path, settings: Mapping[str, Any], divergence: object) -> Iterator[Broken]:
    """`top_k` and its tail; those of BiLD are another thing: whose logits are compared with each other."""
    top_k, tail, name = settings.get("top_k"), settings.get("top_k_tail"), dotted(path)
    if divergence == "cross_entropy_hard":
        yield from _preferred(path, settings)
    elif divergence == "bild":
        if type(top_k) is int and top_k == 1 and path == ("distillation",):  # of an entry, the schema says so
            yield Broken((*path, "top_k"), f"`{name}.top_k` 1 leaves BiLD nothing to compare", "take 2 or more")
        if tail is not None:
            yield Broken((*path, "top_k_tail"), f"`{name}.top_k_tail` is not for BiLD, which has no tail", "remove it")
    elif tail is False and top_k is None:
        yield Broken((*path, "top_k_tail"), f"`{name}.top_k_tail` needs `{name}.top_k`", None)
    elif tail is False and top_k == 1:
        yield Broken(
            (*path, "top_k"),
            f"`{name}.top_k` 1 without `{name}.top_k_tail` leaves nothing to compare",
            "raise it, or leave the tail",
        )


def _preferred(path: Path, settings: Mapping[str, Any]) -> Iterator[Broken]:
    for key in ("top_k", "top_k_tail"):
        if key in settings and path == ("distillation",):  # of an entry, the schema says so
            name = f"{dotted(path)}.{key}"
            why = "cross_entropy_hard looks at the teacher's first token alone"
            yield Broken((*path, key), f"`{name}` has no meaning: {why}", "remove it")


def _short_groups(distillation: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Broken]:
    for section in _SECTIONS:
        settings = distillation.get(section)
        if isinstance(settings, Mapping) and settings.get("enabled") is not False and settings.get("loss") in _GROUPED:
            yield from _groups(("distillation", section, "loss"), DEFAULT_GROUP, training)


def _idle(distillation: Mapping[str, Any]) -> Iterator[Broken]:
    """Settings of a short spelling that its loss does not have."""
    for section, losses, keys in _WITHOUT:
        settings = distillation.get(section)
        if isinstance(settings, Mapping) and (loss := settings.get("loss")) in losses:
            for key in (key for key in keys if key in settings):
                name = f"distillation.{section}.{key}"
                yield Broken(("distillation", section, key), f"`{name}` means nothing to the loss {loss}", "remove it")


def _groups(path: Path, size: object, training: Mapping[str, Any]) -> Iterator[Broken]:
    """Rows of a group are compared with each other, so no pass may cut through one."""
    batch = training.get("batch_size", DEFAULT_BATCH)
    if type(size) is int and type(batch) is int and size > 0 and batch % size:
        yield Broken(
            path,
            f"`training.batch_size` {batch} would cut through groups of {size} rows that are compared with each other",
            f"take a batch size that is a multiple of {size}, or give an entry of `distillation.losses` a `group_size`",
        )


def _least(path: Path, entry: Mapping[str, Any]) -> Iterator[Broken]:
    """How many rows a comparison needs. Of tokens, it takes those of all rows of a group."""
    name, size = entry["name"], entry.get("group_size")
    least = LOSSES[name].least
    if type(size) is int and 2 <= size < least and entry.get("pool") != "tokens":
        yield Broken(path, f"`{dotted(path)}` must be at least {least} for {name}, got {size}", "raise it")


def _weightless(entries: Sequence[Any]) -> Iterator[Broken]:
    weights = [entry.get("weight", 1.0) if isinstance(entry, Mapping) else None for entry in entries]
    if entries and all(type(weight) in (int, float) and weight == 0 for weight in weights):
        yield Broken(
            ("distillation", "losses"),
            "`distillation.losses` has no loss with a weight: there is nothing to learn",
            "raise a weight",
        )


def _unheard(distillation: Mapping[str, Any], entries: Sequence[Any]) -> Iterator[Broken]:
    """A temperature of the section for losses of which none has one of its own to leave out."""
    rows = [LOSSES.get(str(entry.get("name"))) if isinstance(entry, Mapping) else None for entry in entries]
    if "temperature" in distillation and all(row is not None and row.family != "logits" for row in rows):
        message = "`distillation.temperature` means nothing here: no loss of the list compares logits"
        yield Broken(("distillation", "temperature"), message, "remove it")


def _settings(distillation: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Everything that can be a schedule, with its place."""
    places: list[tuple[Path, Any]] = [
        (("distillation", key), distillation.get(key)) for key in ("temperature", "alpha")
    ]
    for section in _SECTIONS:
        settings = distillation.get(section)
        if isinstance(settings, Mapping):
            places.append((("distillation", section, "weight"), settings.get("weight")))
    entries = distillation.get("losses")
    for index, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        if isinstance(entry, Mapping):
            places += [(("distillation", "losses", index, key), entry.get(key)) for key in ("temperature", "weight")]
    return ((path, value) for path, value in places if isinstance(value, Mapping))


def _schedule(path: Path, value: Mapping[str, Any]) -> Iterator[Broken]:
    name, kind = dotted(path), value.get("schedule")
    start, end = value.get("start"), value.get("end")
    if kind == "constant" and end is not None:
        yield Broken((*path, "end"), f"`{name}.end` is not for a constant", "remove it, or choose another schedule")
    if kind in ("linear", "cosine", "exponential") and end is None:
        yield Broken(path, f"`{name}` is a {kind} schedule without an `end`", "say what it is in the last step")
    if kind == "exponential" and 0 in (start, end):
        yield Broken(path, f"`{name}` cannot go to or from 0 by even factors", "take a linear or cosine schedule")
    if value.get("warmup_from") is not None and not value.get("warmup_steps"):
        yield Broken((*path, "warmup_from"), f"`{name}.warmup_from` needs `{name}.warmup_steps`", None)

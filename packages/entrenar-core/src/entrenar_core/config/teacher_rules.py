"""What crosses the settings of teachers, and these and others; as `rules.py`, over plain values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entrenar_core.config.broken import Broken
from entrenar_core.config.wording import dotted
from entrenar_core.config.yaml_source import Path
from entrenar_core.errors import UsageError
from entrenar_core.teachers.endpoint.settings import EndpointSettings

NO_PROBE = (
    "`teacher.finetune.method: probe` reads one vector of a whole text, and words are tagged",
    "train a head with `method: head`, or all of the teacher with `method: full`",
)
"""What is wrong with a probe for tags, and what to do."""


def teacher_rules(values: Mapping[str, Any]) -> Iterator[Broken]:
    """The rules that `values` break."""
    teacher, column = _mapping(values.get("teacher")), _mapping(values.get("dataset")).get("route_column")
    streaming = _mapping(values.get("dataset")).get("streaming") is True
    yield from _model(("teacher",), teacher, values.get("task"), streaming=streaming)
    if "moving_average" in teacher:
        yield from _moving_average(values)
    if "endpoint" in teacher:
        yield from _endpoint(teacher, values)
    if isinstance(teacher.get("members"), list | tuple):
        yield from _ensemble(teacher, column, values)
    elif column is not None:
        message = "`dataset.route_column` says which of several teachers teaches a row, and there is one"
        yield Broken(("dataset", "route_column"), message, "list teachers as `teacher.members`, or remove it")


def _model(where: Path, teacher: Mapping[str, Any], task: object, *, streaming: bool) -> Iterator[Broken]:
    yield from _finetune((*where, "finetune"), teacher.get("finetune"), task)
    yield from _placing(where, teacher)
    if isinstance(teacher.get("cache"), Mapping):
        yield from _cache((*where, "cache"), _mapping(teacher["cache"]), streaming=streaming)


def _ensemble(teacher: Mapping[str, Any], column: object, values: Mapping[str, Any]) -> Iterator[Broken]:
    members, weighting = [_mapping(member) for member in teacher["members"]], teacher.get("weighting", "fixed")
    streaming = _mapping(values.get("dataset")).get("streaming") is True
    for place, member in enumerate(members):
        yield from _model(("teacher", "members", place), member, values.get("task"), streaming=streaming)
        yield from _member(place, member, column, weighting)
    if column is not None:
        yield from _routes(members, weighting, values)
    if weighting == "learned":
        yield from _learned(values)


def _member(place: int, member: Mapping[str, Any], column: object, weighting: object) -> Iterator[Broken]:
    name, where = f"teacher.members[{place}]", ("teacher", "members", place)
    if column is None and "rows" in member:
        message = f"`{name}.rows` are values of a column, and none is named"
        yield Broken((*where, "rows"), message, "name it as `dataset.route_column`")
    if column is not None and "rows" not in member:
        message = f"`{name}` does not say which rows it teaches"
        yield Broken(where, message, "give values of `dataset.route_column` as `rows`")
    if "weight" in member and (column is not None or weighting == "learned"):
        why = "each row has one teacher" if column is not None else "weights are learned"
        yield Broken((*where, "weight"), f"`{name}.weight` means nothing: {why}", "remove it")


def _learned(values: Mapping[str, Any]) -> Iterator[Broken]:
    if _mapping(values.get("dataset")).get("streaming") is True:
        message = "`teacher.weighting: learned` reads training rows before training, and a stream is not at hand"
        yield Broken(("teacher", "weighting"), message, "remove `dataset.streaming`, or take fixed weights")


def _routes(members: Sequence[Mapping[str, Any]], weighting: object, values: Mapping[str, Any]) -> Iterator[Broken]:
    if weighting != "fixed":
        message = f"`teacher.weighting: {weighting}` means nothing: each row has one teacher"
        yield Broken(("teacher", "weighting"), message, "remove it, or `dataset.route_column`")
    if _mapping(values.get("dataset")).get("streaming") is True:
        message = "`dataset.route_column` needs all rows at hand"
        yield Broken(("dataset", "route_column"), message, "remove `dataset.streaming`")
    seen: dict[object, int] = {}
    for place, member in enumerate(members):
        for value in member["rows"] if isinstance(member.get("rows"), list | tuple) else ():
            if (first := seen.setdefault(str(value), place)) != place:
                message = f"`teacher.members[{place}].rows`: {value!r} is taught by `teacher.members[{first}]`"
                yield Broken(("teacher", "members", place, "rows"), message, "each value has one teacher")


def _moving_average(values: Mapping[str, Any]) -> Iterator[Broken]:
    if _mapping(values.get("student")).get("model_id") is None:
        message = "`teacher.moving_average` is of a student that can do something, and `student.model_id` is not given"
        yield Broken(("student",), message, "name a pretrained student")


def _endpoint(teacher: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Broken]:
    if isinstance(teacher["endpoint"], str):
        try:
            EndpointSettings(teacher["endpoint"], "", api_key_env=_text(teacher.get("api_key_env")))
        except UsageError as error:
            key = "api_key_env" if "api_key_env" in error.message else "endpoint"
            yield Broken(("teacher", key), f"`teacher.{key}`: {error.message}", error.hint)
    if _mapping(values.get("student")).get("model_id") is None:
        message = "`teacher.endpoint` is asked by the ids of tokens, and no `student.model_id` says of which tokenizer"
        yield Broken(("student",), message, "name a pretrained student")
    if (task := values.get("task")) not in (None, "causal-lm"):
        yield Broken(("teacher", "endpoint"), f"`teacher.endpoint` predicts the next token, and `task` is {task}", None)


def _finetune(where: Path, finetune: object, task: object) -> Iterator[Broken]:
    if finetune is not None and task in ("causal-lm", "masked-lm"):
        message = f"`teacher.finetune` fits a classifier, and `task` is {task}"
        yield Broken(where, message, "remove one of the two")
    if isinstance(finetune, Mapping) and finetune.get("method") == "probe" and task == "token-classification":
        yield Broken((*where, "method"), *NO_PROBE)


def _placing(where: Path, teacher: Mapping[str, Any]) -> Iterator[Broken]:
    """Weights that are quantised, or lie on several devices, are not trained; those on disk are not quantised."""
    finetune, places, name = teacher.get("finetune"), teacher.get("device_map"), dotted(where)
    method = finetune.get("method") if isinstance(finetune, Mapping) else None
    for key in ("load_in", "device_map"):
        if method in ("head", "full") and key in teacher:
            yield Broken(
                (*where, key),
                f"`{name}.{key}` and `{name}.finetune.method: {method}` cannot go together: the teacher is trained "
                "whole, on one device",
                "remove one of the two, or take `method: probe`",
            )
    devices = set(places.values()) if isinstance(places, Mapping) else set()
    if "load_in" in teacher and ("disk" in devices or ("cpu" in devices and devices != {"cpu"})):
        yield Broken(
            (*where, "device_map"),
            f"`{name}.device_map` puts parts in main memory or on disk, and with `{name}.load_in` none can be there",
            f"name GPUs alone, or remove `{name}.load_in`",
        )


def _cache(where: Path, cache: Mapping[str, Any], *, streaming: bool) -> Iterator[Broken]:
    """On disk or in memory, each with settings of its own."""
    name = dotted(where)
    if "dir" not in cache and "memory" not in cache:
        yield Broken(where, f"`{name}` does not say where it is", "give a folder as `dir`, or a size as `memory`")
    elif "dir" in cache and "memory" in cache:
        message = f"`{name}.dir` and `{name}.memory` are two places"
        yield Broken((*where, "memory"), message, "keep one of the two")
    elif "precision" in cache and "dir" in cache:
        message = f"`{name}.precision` is of what is held in memory, and a folder has its own"
        yield Broken((*where, "precision"), message, "remove it, and build the folder with `cache build --precision`")
    elif "missing" in cache and "memory" in cache:
        message = f"`{name}.missing` is about a folder, and memory holds every row"
        yield Broken((*where, "missing"), message, "remove it")
    elif "memory" in cache and streaming:
        message = f"`{name}.memory` holds every row, and a stream is not at hand"
        yield Broken((*where, "memory"), message, "remove `dataset.streaming`, or keep a folder with `cache build`")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else {}

"""Older spellings of settings, and settings that this version does not have.

Both are tables. An older spelling is renamed before validation, so that the schema has one name for each thing.
A setting of a later feature is refused by its name: accepted and ignored, it would be a lie.
"""

from typing import Any

from entrenar_core.config.yaml_source import Path
from entrenar_core.errors import Problem

RENAMED: dict[str, str] = {
    "teacher.repo_id": "teacher.model_id",
    "student.repo_id": "student.model_id",
    "distillation.attention_transfer": "distillation.attention",
    "dataset.repo_id": "dataset.name",
    "training.gradient_accumulation_steps": "training.gradient_accumulation",
    "training.lr": "training.learning_rate",
    "output.path": "output.dir",
    "output.format": "output.formats",
}

OF_OTHER_TEACHERS = (
    "members",
    "weighting",
    "moving_average",
    "endpoint",
    "model",
    "top_logprobs",
    "concurrency",
    "api_key_env",
    "timeout_s",
    "patience_s",
)  # of teachers that are no model; a test compares them

ABSENT: dict[str, str] = {
    "distillation.on_policy": "the student learns from the data set's texts",
    "distillation.cross_tokenizer": "losses over tokens need one vocabulary",
}


def respell(values: dict[str, Any], places: dict[Path, str]) -> list[Problem]:
    """Renames older spellings in `values` and `places`, in place, and refuses settings of later features."""
    problems: list[Problem] = []
    for old, new in RENAMED.items():
        section, old_key, new_key = old.split(".")[0], old.split(".")[1], new.split(".")[1]
        settings = values.get(section)
        if not isinstance(settings, dict) or old_key not in settings:
            continue
        if new_key in settings:
            problems.append(
                Problem(f"`{old}` and `{new}` are one setting", f"keep `{new}`", places.get((section, old_key)))
            )
        else:
            settings[new_key] = settings[old_key]
            _move(places, (section, old_key), (section, new_key))
        del settings[old_key]
    _one_kind_of_teacher(values)
    _list_of_formats(values, places)
    _folder_of_cache(values, places)
    for name, instead in ABSENT.items():
        section, key = name.split(".")
        settings = values.get(section)
        if isinstance(settings, dict) and key in settings:
            del settings[key]
            problems.append(
                Problem(f"`{name}` is not part of this version", f"remove it: {instead}", places.get((section, key)))
            )
    return problems


def _list_of_formats(values: dict[str, Any], places: dict[Path, str]) -> None:
    output = values.get("output")
    if isinstance(output, dict) and isinstance(output.get("formats"), str):
        output["formats"] = [output["formats"]]
        if ("output", "formats") in places:
            places["output", "formats", 0] = places["output", "formats"]


def _one_kind_of_teacher(values: dict[str, Any]) -> None:
    """Settings of another kind of teacher that are null, as a flag that names a model makes them, are not given."""
    teacher = values.get("teacher")
    if isinstance(teacher, dict):
        others = {key for key in OF_OTHER_TEACHERS if key in teacher and teacher[key] is None}
        values["teacher"] = {key: value for key, value in teacher.items() if key not in others}


def _folder_of_cache(values: dict[str, Any], places: dict[Path, str]) -> None:
    """`cache: ./folder` is short for `cache: {dir: ./folder}`."""
    teacher = values.get("teacher")
    if not isinstance(teacher, dict):
        return
    members = teacher.get("members")
    if isinstance(members, list | tuple):
        values["teacher"] = teacher = teacher | {"members": list(map(_with_folder, members))}
    values["teacher"] = _with_folder(teacher)
    for path in [path for path in places if path[:1] == ("teacher",) and path[-1] == "cache"]:
        places.setdefault((*path, "dir"), places[path])


def _with_folder(teacher: Any) -> Any:
    """A caller's own values stay as they are."""
    if isinstance(teacher, dict) and isinstance(teacher.get("cache"), str):
        return teacher | {"cache": {"dir": teacher["cache"]}}
    return teacher


def _move(places: dict[Path, str], old: Path, new: Path) -> None:
    for path in [path for path in places if path[: len(old)] == old]:
        places[(*new, *path[len(old) :])] = places.pop(path)

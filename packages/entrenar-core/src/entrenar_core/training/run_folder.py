"""The folder of a run: who may write into it, how far the run is, and its metrics."""

import fcntl
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from entrenar_core.config.one_teacher import each_teacher
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.errors import OutputError, Problem, UsageError
from entrenar_core.training.files import forget_deleted, remove_folder, write_json, writing

MANIFEST = "run.json"
DISCARDING = "discarding"
"""The status of a run that is being replaced by another one."""
_FOLDERS = ("checkpoints", "baseline")
_CHECKPOINT = re.compile(r"step-\d{8}")
HARMLESS = {
    "output.dir",
    "output.keep",
    "training.dataloader_workers",
    "dataset.num_proc",
    "training.log_every",
    "training.diagnose_every",
}
"""Settings that may differ between a run and its resumption: they do not change the student."""


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the newest last."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name) and (path / "state.json").is_file()
    )


def step_name(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:08d}"


def newest_step(folder: Path) -> int | None:
    """The step of the newest whole checkpoint of the run in `folder`, None if there is none."""
    found = complete_checkpoints(folder / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else None


class RunFolder:
    """One run's folder, held by one process at a time.

    `run.json` says `running`, `interrupted`, `complete`, or `discarding` while another run takes its place.
    Files that entrenar did not make are never touched.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}
        self.begun = False
        self._replaced: Mapping[str, Any] | None = None
        self._lock: IO[str] | None = None

    def open(self, manifest: Mapping[str, Any], *, resume: bool, force: bool) -> None:
        """Takes the folder for this run. Another run that it replaces is left as it is until this one begins.

        Raises:
            UsageError: it is in use or holds something that this run would overwrite, or the run to resume is another.
            OutputError: it cannot be written.
        """
        check_usable(self.path, resume=resume, force=force)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.path} is in use by another run", "wait for it, or choose another --output"
                ) from None
        before = read_manifest(self.path)
        self._replaced = before
        if before is not None and resume and before["status"] != DISCARDING:
            require_same(before, manifest, self.path)
            self._replaced = None
            forget_deleted(self.path)
        self.manifest = {**manifest, "status": "running"}
        if self._replaced is None:
            self.begin()

    def begin(self) -> None:
        """Removes an earlier run that this one replaces, once all that could be wrong has been looked at."""
        if self._replaced is not None:
            self._discard(self._replaced)
            self._replaced = None
        write_json(self.path / MANIFEST, self.manifest)
        self.begun = True

    def finish(self, status: str, **more: Any) -> None:
        """Records how the run ended, if it began, and lets go of the folder."""
        if self.begun:
            self.manifest = {**self.manifest, **more, "status": status}
            write_json(self.path / MANIFEST, self.manifest)
        self.close()

    def close(self) -> None:
        """Lets go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _discard(self, before: Mapping[str, Any]) -> None:
        write_json(self.path / MANIFEST, {**before, "status": DISCARDING})  # what a kill leaves is still known
        with writing(self.path):
            for name in _FOLDERS:
                if (self.path / name).exists():
                    remove_folder(self.path / name)
            for name in {"metrics.jsonl", "report.json", "loss.svg", *before.get("files", ())} - {MANIFEST}:
                file = self.path / Path(name).name
                if file.exists() or file.is_symlink():
                    remove_folder(file)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The `run.json` of a folder, None where there is none.

    Raises:
        OutputError: there is one and it cannot be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path / MANIFEST} cannot be read: {error}", "choose another --output") from error
    if not isinstance(manifest, dict) or "status" not in manifest:
        raise OutputError(f"{path / MANIFEST} is not the manifest of a run", "choose another --output")
    return manifest


def is_complete(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder holds the complete run of this very configuration.

    Raises:
        UsageError: it holds a complete run of other settings.
        OutputError: its manifest cannot be read.
    """
    manifest = read_manifest(path)
    if manifest is None or manifest["status"] != "complete":
        return False
    require_same(manifest, {"config": config}, path)
    return True


def check_usable(path: Path, *, resume: bool, force: bool) -> None:
    """Whether a run may use this folder; reads only.

    Raises:
        UsageError: it holds something that the run would overwrite.
        OutputError: it is not a folder, or cannot be written.
    """
    _require_writable(path)
    manifest = read_manifest(path)
    if manifest is None:
        others = [item.name for item in path.iterdir() if not item.name.startswith(".")] if path.is_dir() else []
        if others:
            raise UsageError(
                f"{path} holds {others[0]} and is not the folder of a run",
                "choose another --output, or an empty folder",
            )
    elif not resume and not force:
        _require_unfilled(path, complete=manifest["status"] == "complete")


def named_models(config: DistillationConfig) -> dict[str, str | None]:
    """What a configuration calls its models, by the names of the settings."""
    teachers = each_teacher(config)
    found: dict[str, str | None] = {"student.model_id": config.student.model_id}
    for place, one in enumerate(teachers):
        found[f"teacher.members[{place}].model_id" if len(teachers) > 1 else "teacher.model_id"] = one.teacher.model_id
    return found


def check_apart(path: Path, models: Mapping[str, str | None]) -> list[Problem]:
    """Models, by the names of their settings, in the folder of a run that would replace what is there with its own."""
    found, ours = [], path.expanduser().resolve()
    for setting, reference in models.items():
        place = Path(reference).expanduser() if reference else None
        if place is None or not place.exists():
            continue
        folder = place.resolve() if place.is_dir() else place.resolve().parent
        if folder == ours or any(folder.is_relative_to(ours / name) for name in _FOLDERS):
            what = f"the result would replace `{setting}` {reference}, which is in `output.dir`"
            found.append(Problem(what, "choose another `output.dir`", "output.dir"))
    return found


def _require_unfilled(path: Path, *, complete: bool) -> None:
    if complete or complete_checkpoints(path / "checkpoints"):
        ended = "a complete run" if complete else "checkpoints of an unfinished run"
        resuming = "for its report" if complete else "to go on with it"
        raise UsageError(
            f"{path} holds {ended}", f"give --resume {resuming}, --force to replace it, or another --output"
        )


def _require_writable(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is not a folder", "choose another --output")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        raise OutputError(f"{nearest} is not writable", "choose another --output")


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Whether two manifests are of one run, as far as `now` says.

    Raises:
        UsageError: they are not; it names what differs.
    """
    for part in ("config", "fingerprints"):
        if part not in now:
            continue
        old, new = flat(before.get(part, {})), flat(now.get(part, {}))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in HARMLESS)
        if changed:
            what = ", ".join(
                f"`{key or part}` ({_short(old.get(key))} → {_short(new.get(key))})" for key in changed[:5]
            )
            raise UsageError(
                f"the run in {path} was made with other settings or inputs: {what}",
                "resume with what it was made with, or give --force to start again",
            )


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: item for key, value in values.items() for name, item in flat(value, f"{prefix}.{key}".lstrip(".")).items()
    }


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:20]}…"


class Metrics:
    """`metrics.jsonl`: one JSON object a line, each with its `step`."""

    def __init__(self, file: Path, *, up_to_step: int | None) -> None:
        """Opens the file; lines after `up_to_step` are from steps that will be run again. None keeps nothing."""
        self.file = file
        lines = [line for line in read_metrics(file) if up_to_step is not None and line["step"] <= up_to_step]
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_name(f".{file.name}.partial")
            aside.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
            aside.replace(file)

    def add(self, **line: Any) -> None:
        """Appends a line; a number that is infinite or none is null, for JSON has no word for it.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_json_numbers(line), allow_nan=False) + "\n")


def _json_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _json_numbers(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file up to one that is none, such as a last one that was cut off by a kill."""
    lines: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            break
        lines.append(line)
    return lines

"""What is in the folder of a cache is looked at before the teacher is loaded, and one build at a time is at work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from cached_jobs import FP32, built, job, sure_models, using
from entrenar_core import Callback
from entrenar_core.errors import ModelError, OutputError, UsageError
from entrenar_core.teachers.cache.folder import CacheFolder
from entrenar_core.teachers.cache.settings import CacheForecast, CacheSettings
from entrenar_distill.cli import main
from tiny_jobs import Models, merged, write_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return sure_models(tmp_path_factory.mktemp("sure"))


class Phases(Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_phase(self, name: str, total_steps: int | None = None, step: int = 0) -> None:
        self.seen.append(name)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (CacheSettings(kind="topk"), {}, "of another kind: hidden, and topk is asked for"),
        (FP32, {"dataset": {"max_length": 12}}, r"`dataset\.max_length` \(16 when it was built, 12 now\)"),
        (FP32, {"teacher": {"dtype": "bfloat16"}}, r"`teacher\.dtype` \(float32 when it was built, bfloat16 now\)"),
    ],
)
def test_another_cache_is_named_before_the_teacher_is_loaded(
    settings: CacheSettings, changes: dict[str, Any], message: str, sure: Models, tmp_path: Path
) -> None:
    file, phases = job(sure, tmp_path), Phases()
    whole = built(file, tmp_path / "cache")
    with pytest.raises(UsageError, match=message):
        built(merged(file, changes), tmp_path / "cache", settings, callbacks=[phases])
    assert phases.seen == []
    assert built(file, tmp_path / "cache").fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (CacheSettings(precision="bfloat16"), {}, "of other settings"),
        (FP32, {"dataset": {"max_rows": 20}}, "of other rows"),
        (FP32, {"distillation": {"progressive": {"layer_mapping": [[0, 0]]}}}, "of other layers"),
    ],
)
def test_what_is_another_in_it_is_said(
    settings: CacheSettings, changes: dict[str, Any], message: str, sure: Models, tmp_path: Path
) -> None:
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache")
    with pytest.raises(UsageError, match=message):
        built(merged(file, changes), tmp_path / "cache", settings)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hidden", {"kind": {"name": "full"}}),
        ("hidden", {"kind": {"precision": None}}),
        ("topk", {"kind": {"highest": "4"}}),
        ("topk", {"kind": {"k": True}}),
        ("sampled", {"kind": {"temperature": []}}),
        ("sampled", {"kind": {"other": 1}}),
        ("hidden", {"rows": "many"}),
        ("hidden", {"shards": [1]}),
        ("hidden", {"shards": [{"file": "shard-00000.safetensors"}]}),
        ("hidden", {"teacher": []}),
        ("hidden", {"identity": None}),
        ("hidden", {"layers": 3}),
    ],
)
def test_a_manifest_that_was_changed_by_hand_is_told(
    kind: Any, changes: dict[str, Any], sure: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache", CacheSettings(kind=kind))
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(merged(manifest, changes)))
    config = write_config(tmp_path / "job.yaml", using(file, tmp_path / "cache"))
    for command in (["cache", "info", str(tmp_path / "cache")], ["run", str(config)], ["validate", str(config)]):
        capsys.readouterr()
        assert main(command) in (1, 2)
        assert "manifest.json is damaged" in capsys.readouterr().err.replace("\n", " ")


def test_two_builds_are_not_at_work_in_one_folder(sure: Models, tmp_path: Path) -> None:
    file, cache = job(sure, tmp_path), tmp_path / "cache"
    cache.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another build is at work"):
            built(file, cache)
        assert cache.is_dir(), "it is the other's"
        other.stdin.close()
    assert built(file, cache).complete


def test_with_force_nothing_but_the_cache_is_deleted(sure: Models, tmp_path: Path) -> None:
    file, cache = job(sure, tmp_path), tmp_path / "cache"
    built(file, cache)
    (cache / "notes.txt").write_text("mine")
    built(file, cache, CacheSettings(kind="topk"), force=True)
    assert (cache / "notes.txt").read_text() == "mine"
    assert not (cache / "head.safetensors").exists()
    page = tmp_path / "page"
    page.mkdir()
    (page / "manifest.json").write_text('{"name": "a web page", "version": 3}')
    with pytest.raises(UsageError, match="holds something else than a cache"):
        built(file, page, force=True)
    assert [path.name for path in page.iterdir()] == ["manifest.json"]


def test_a_build_goes_on_wherever_the_teacher_lies_now(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    shutil.copytree(sure.llama, tmp_path / "moved")
    small = CacheSettings(precision="float32", shard_bytes=20_000)
    whole = built(file, tmp_path / "cache", small)
    (tmp_path / "cache" / "shard-00001.safetensors").unlink()
    first = (tmp_path / "cache" / "shard-00000.safetensors").stat().st_mtime_ns
    again = built(merged(file, {"teacher": {"model_id": str(tmp_path / "moved")}}), tmp_path / "cache", small)
    assert again.fingerprint() == whole.fingerprint()
    assert (tmp_path / "cache" / "shard-00000.safetensors").stat().st_mtime_ns == first


def test_with_force_whole_shards_are_kept_where_the_manifest_is_broken(sure: Models, tmp_path: Path) -> None:
    file, small = job(sure, tmp_path), CacheSettings(precision="float32", shard_bytes=20_000)
    whole = built(file, tmp_path / "cache", small)
    (tmp_path / "cache" / "manifest.json").write_text("{")
    (tmp_path / "cache" / "shard-00002.safetensors").write_bytes(b"broken")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("shard-*")}
    assert built(file, tmp_path / "cache", small, force=True).fingerprint() == whole.fingerprint()
    anew = [path.name for path, before in written.items() if path.stat().st_mtime_ns != before]
    assert anew == ["shard-00002.safetensors"]


def test_a_file_in_place_of_a_folder_is_said(sure: Models, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(OutputError, match="cannot be written"):
            built(job(sure, tmp_path), place)


def test_a_build_that_ends_before_anything_is_written_leaves_no_folder(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    with safe_open(sure.llama / "model.safetensors", "pt") as weights:
        fewer = {name: weights.get_tensor(name) for name in weights.keys() if "layers.1" not in name}  # noqa: SIM118 - it is no dictionary
    shutil.copytree(sure.llama, tmp_path / "teacher")
    save_file(fewer, tmp_path / "teacher" / "model.safetensors")
    with pytest.raises(ModelError):
        built(merged(file, {"teacher": {"model_id": str(tmp_path / "teacher")}}), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("settings", [FP32, CacheSettings(kind="topk", top_k=9)], ids=["hidden", "topk"])
def test_the_size_that_is_told_is_that_of_the_folder(settings: CacheSettings, sure: Models, tmp_path: Path) -> None:
    told: list[CacheForecast] = []
    built(job(sure, tmp_path), tmp_path / "cache", settings, on_forecast=told.append)
    there = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors"))
    assert told[0].bytes == pytest.approx(there, rel=0.05)


def test_a_cache_that_has_no_room_is_refused(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path)
    folder.require_room(0)
    with pytest.raises(OutputError, match=r"takes about 1\.2 EB more|takes about .* more, and .* are free"):
        folder.require_room(2**60)

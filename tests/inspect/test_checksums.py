"""`validate --checksum` and `--expect`: hashes against the command line, files of sums, and what the Hub stated."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from entrenar_core.errors import UsageError
from entrenar_inspect.reports.validation import Check
from entrenar_inspect.validating import validate
from hub_server import HubServer

Program = Callable[[list[str]], int]
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def found(model: Path | str, **how: Any) -> Check:
    return next(check for check in validate(str(model), **how).checks if check.name == "sha-256")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def flip_a_value(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1  # the model stays sound: only its hash tells
    file.write_bytes(data)


def fetched(hub: HubServer, **how: Path) -> Path:
    """As `hf download` fetches; huggingface_hub looked for its cache when it was imported, so it is told."""
    return Path(snapshot_download("org/bert", endpoint=hub.url, cache_dir=Path(os.environ["HF_HOME"]) / "hub", **how))


def test_a_hash_is_held_against_what_is_expected(model: Path, program: Program, capsys: Any) -> None:
    right = digest(model / WEIGHTS)
    for given in (right, right.upper(), f"{WEIGHTS}={right}"):
        assert program(["validate", str(model), "--expect", given]) == 0
        assert "✓ sha-256" in capsys.readouterr().out
    wrong = "0" * 64
    assert program(["validate", str(model), "--expect", wrong]) == 1
    shown = capsys.readouterr().out
    assert f"{WEIGHTS} has the SHA-256 {right[:16]}…, and the hash of --expect is {wrong[:16]}…" in shown
    assert right in shown


def test_each_of_several_files_may_be_expected(llama: Path) -> None:
    shards = sorted(llama.glob("*.safetensors"))
    given = [f"{shard.name}={digest(shard)}" for shard in shards]
    assert found(llama, expect=given).message == "matches the hash of --expect"
    some = found(llama, expect=given[:1])
    others = len(shards) - 1
    assert (some.status, f"nothing states that of {others} other" in some.message) == ("ok", True)
    swapped = [f"{shards[0].name}={digest(shards[1])}", *given[1:]]
    assert found(llama, expect=swapped).status == "failed"


@pytest.mark.parametrize(
    "given", ["abc", "=" + "0" * 64, "", "model.safetensors=", "0" * 63 + "g", "other=" + "0" * 64]
)
def test_what_cannot_be_expected_is_refused(model: Path, program: Program, given: str, capsys: Any) -> None:
    assert program(["validate", str(model), "--expect", given]) == 2
    assert "hint: " in capsys.readouterr().err


def test_one_hash_for_several_files_is_refused(llama: Path) -> None:
    with pytest.raises(UsageError, match="one SHA-256 for"):
        validate(str(llama), expect=["0" * 64])


@pytest.mark.parametrize(
    ("listing", "arguments"),
    [
        ("SHA256SUMS", ["sha256sum", WEIGHTS, "config.json"]),
        ("sha256sums.txt", ["sha256sum", "--binary", f"./{WEIGHTS}"]),
        ("SHA256SUMS", ["sha256sum", "--tag", WEIGHTS]),
        (f"{WEIGHTS}.sha256", ["sha256sum", WEIGHTS]),
        (f"{WEIGHTS}.sha256", ["sha256sum", "../model/model.safetensors"]),
        ("all.sha256", ["sha256sum", WEIGHTS]),
    ],
)
def test_files_of_sums_are_those_of_coreutils(model: Path, listing: str, arguments: list[str]) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("coreutils are not installed")
    printed = subprocess.run(arguments, cwd=model, check=True, capture_output=True, timeout=30).stdout
    (model / listing).write_bytes(printed)
    check = found(model, checksum=True)
    assert (check.status, check.message) == ("ok", f"matches the hash in {listing}")
    flip_a_value(model / WEIGHTS)
    report = validate(str(model), checksum=True)
    assert not report.sound
    assert [check.name for check in report.checks if check.status == "failed"] == ["sha-256"]


def test_a_bare_hash_beside_a_file_is_that_of_the_file(model: Path) -> None:
    (model / f"{WEIGHTS}.sha256").write_text(digest(model / WEIGHTS).upper() + "\n")
    assert found(model / WEIGHTS, checksum=True).status == "ok"


def test_what_is_no_list_of_sums_says_nothing(model: Path) -> None:
    for content in (b"", b"\xff\xfe", b"0" * 2_000_000, b"deadbeef  model.safetensors\n"):
        (model / "SHA256SUMS").write_bytes(content)
        check = found(model, checksum=True)
        assert (check.status, "nothing here says" in check.message) == ("skipped", True)


def test_the_cache_of_the_hub_tells_what_it_stated(hub: HubServer, bert: Path) -> None:
    hub.add("org/bert", bert)
    snapshot = fetched(hub)
    assert found(snapshot, checksum=True).message == "matches the Hub's hash"
    assert found(snapshot / WEIGHTS, checksum=True).message == "matches the Hub's hash"
    # a model that is named by its repository, whose files are in the cache
    assert found("org/bert", checksum=True).message == "matches the Hub's hash"
    blob = (snapshot / WEIGHTS).resolve()
    flip_a_value(blob)
    for named in (snapshot, "org/bert"):
        check = found(named, checksum=True)
        assert (check.status, f"the Hub's hash is {blob.name[:16]}" in check.message) == ("failed", True)


def test_a_folder_that_was_fetched_into_tells_it_too(hub: HubServer, bert: Path, tmp_path: Path) -> None:
    hub.add("org/bert", bert)
    folder = fetched(hub, local_dir=tmp_path / "here")
    assert found(folder, checksum=True).message == "matches the Hub's hash"
    flip_a_value(folder / WEIGHTS)
    assert found(folder, checksum=True).status == "failed"


def test_what_is_on_the_hub_alone_has_no_hash(hub: HubServer, bert: Path) -> None:
    hub.add("org/bert", bert)
    report = validate("org/bert", checksum=True)
    assert (report.checks[-1].name, report.checks[-1].status, report.checksums) == ("sha-256", "skipped", {})

"""What goes wrong between the Hub and here, by a server that cuts, resets, corrupts and refuses."""

import errno
import os
from pathlib import Path

import pytest

from entrenar_core.errors import AccessError, EntrenarError, FetchError, NotFoundError
from entrenar_core.hub import Transfer
from entrenar_core.hub.client import Repository, connect
from entrenar_core.hub.failures import explained
from hub_client import cached_contents, fetch, run_python
from hub_content import FaultKind, ServedFile
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]


def big_model(size: int = 11_000_000) -> dict[str, bytes]:
    """More than the 10 MiB in which huggingface_hub writes and resumes."""
    return {"config.json": b'{"model_type": "bert"}', "model.safetensors": os.urandom(1) * size}


def test_a_connection_cut_in_the_middle_is_resumed_where_it_stopped(hub: HubServer) -> None:
    content = big_model()
    hub.add("org/big", content)
    hub.fail("model.safetensors", "close", after_bytes=10_600_000)
    seen: list[Transfer] = []
    artifact = fetch("org/big", progress=seen.append)
    assert artifact.weight_files[0].read_bytes() == content["model.safetensors"]
    resumed = [request.range for request in hub.requests if request.name == "model.safetensors"]
    assert resumed == [None, f"bytes={10 * 2**20}-"]
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_a_connection_that_is_reset_is_tried_again(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    hub.fail("model.safetensors", "reset", after_bytes=1000, times=2)
    assert fetch().fingerprint() == fetch(str(llama_folder)).fingerprint()


def test_a_connection_that_is_always_reset_is_a_fetch_error(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    hub.fail("model.safetensors", "reset", after_bytes=1000, times=99)
    with pytest.raises(FetchError, match=rf"model\.safetensors of org/llama: the connection to {hub.url}") as broken:
        fetch()
    assert "run it again" in str(broken.value.hint)
    assert hub.sent["model.safetensors"] == 3 * 1000
    assert not [path for path in cached_contents() if path.name.endswith((".incomplete", ".safetensors"))]


@pytest.mark.slow
def test_a_connection_that_always_closes_is_a_fetch_error(
    hub: HubServer, llama_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/llama", llama_folder)
    hub.fail("model.safetensors", "close", after_bytes=1000, times=99)
    with pytest.raises(FetchError, match=r"model\.safetensors of org/llama: the connection"):
        fetch(retry_delays_s=())
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_server_that_cannot_continue_a_file_is_not_asked_for_ever(hub: HubServer) -> None:
    hub.add("org/big", big_model())
    hub.fail("model.safetensors", "ignore_range", after_bytes=10_600_000, times=99)
    with pytest.raises(FetchError, match="cannot continue a file"):
        fetch("org/big", retry_delays_s=())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum_is_fetched_once_more(hub: HubServer, llama_folder: Path, name: str) -> None:
    hub.add("org/llama", llama_folder)
    hub.fail(name, "corrupt")
    assert fetch().fingerprint() == fetch(str(llama_folder)).fingerprint()
    assert hub.sent[name] == 2 * (llama_folder / name).stat().st_size


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum_that_stays_is_an_error_and_leaves_nothing(
    hub: HubServer, llama_folder: Path, name: str
) -> None:
    hub.add("org/llama", llama_folder)
    hub.fail(name, "corrupt", times=2)
    with pytest.raises(FetchError, match=rf"{name} of org/llama arrived twice with other bytes"):
        fetch()
    assert not [path for path in cached_contents() if path.name == name]
    assert all(path.is_symlink() or path.resolve().name in digests(llama_folder) for path in cached_contents())
    assert fetch().fingerprint() == fetch(str(llama_folder)).fingerprint()


def digests(folder: Path) -> set[str]:
    return {ServedFile(path.read_bytes(), path.suffix == ".safetensors").etag for path in folder.iterdir()}


def test_a_server_that_is_unwell_is_asked_again(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    hub.fail("config.json", "unavailable")
    fetch()
    hub.add("org/other", llama_folder)
    hub.fail("config.json", "unavailable", times=99)
    with pytest.raises(FetchError, match=r"answered 503 for config\.json of org/other"):
        fetch("org/other", cache_dir=Path(os.environ["HOME"]) / "other", retry_delays_s=())


@pytest.mark.parametrize(
    ("status", "kind", "complaint"),
    [
        (403, AccessError, "refuses org/llama"),
        (404, NotFoundError, "has no model org/llama"),
        (429, FetchError, "gets too many requests"),
        (500, FetchError, "answered 500 for org/llama"),
    ],
)
def test_what_the_hub_answers_is_told(hub: HubServer, status: int, kind: type[EntrenarError], complaint: str) -> None:
    hub.refuses_with = status
    with pytest.raises(kind, match=complaint) as refused:
        fetch()
    assert refused.value.hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_folder(tmp_path: Path, number: int) -> None:
    failure = explained(OSError(number, "full"), connect(cache_dir=tmp_path), Repository("model", "org/llama"), "x.bin")
    assert isinstance(failure, FetchError)
    assert failure.message == f"x.bin of org/llama: no space is left in {tmp_path}"


def test_a_file_that_grows_beyond_what_is_allowed_ends_in_one_clear_error(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    code = (
        "import resource, huggingface_hub; from entrenar_core import errors\n"
        "from entrenar_core.hub import fetch_model; from entrenar_core.references import parse_reference\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: fetch_model(parse_reference('org/llama'))\n"
        "except errors.FetchError as error: print(error)"
    )
    run = run_python(code)
    assert "model.safetensors of org/llama cannot be written to" in run.stdout
    assert "File too large" in run.stdout


def test_a_slow_server_is_waited_for(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    hub.delay_s = 0.05
    assert fetch().commit


def test_a_hub_that_is_not_there_is_a_fetch_error(hub: HubServer) -> None:
    with HubServer() as gone:
        endpoint = gone.url
    with pytest.raises(FetchError, match=f"the connection to {endpoint} failed") as unreachable:
        fetch(endpoint=endpoint)
    assert "HF_ENDPOINT" in str(unreachable.value.hint)


def test_a_cache_that_cannot_be_written_is_a_fetch_error(hub: HubServer, llama_folder: Path, tmp_path: Path) -> None:
    hub.add("org/llama", llama_folder)
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot be written to") as refused:
        fetch(cache_dir=tmp_path / "file")
    assert "HF_HUB_CACHE" in str(refused.value.hint)


def test_every_failure_is_one_of_ours(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    kinds: tuple[FaultKind, ...] = ("reset", "unavailable", "corrupt")
    for kind in kinds:
        hub.fail("model.safetensors", kind, times=9)
        with pytest.raises(EntrenarError) as failed:
            fetch(retry_delays_s=(0,))
        assert failed.value.hint
        assert failed.value.exit_status == 1

"""Looking into models on the Hub: headers come by ranges, whatever a server does with them, and nothing else does."""

import random
import traceback
from pathlib import Path

import numpy
import pytest
import safetensors.numpy

from entrenar_core.errors import AccessError, FetchError, ModelError, NotFoundError
from entrenar_core.formats.places import LocalPlace
from entrenar_core.formats.sources import FileSource, Source
from entrenar_core.hub.client import Repository, connect
from entrenar_core.hub.ranges import MAX_FETCHED_BYTES, RemoteSource, remote_place
from entrenar_core.hub.transfer import RemoteFile
from entrenar_core.references import HubReference, PathReference
from entrenar_core.stored_model import StoredModel, open_model
from hub_client import cached_contents, fetch
from hub_content import FaultKind
from hub_server import HubServer
from tiny_models import tiny_gguf, tiny_llama

pytest_plugins = ["hub_fixtures"]

SECRET = "hf_a-secret-that-nobody-may-see"
LLAMA = HubReference("org/llama")
NAME = "model.safetensors"
CONFIG = b'{"model_type": "llama"}'


@pytest.fixture(scope="session")
def big() -> bytes:
    """Weights of 8 MB under a header of some bytes."""
    random_state = numpy.random.default_rng(0)
    return safetensors.numpy.save({"a": random_state.random((1000, 1000)), "b": numpy.ones(7)})


def opened(name: str = NAME, reference: HubReference = LLAMA) -> Source:
    """A file of a repository, asked for twice more without a pause."""
    return remote_place(reference, retry_delays_s=(0, 0))[0].open(name)


def ranges(hub: HubServer, name: str = NAME) -> list[str | None]:
    return [request.range for request in hub.requests if request.name == name]


def shown(model: StoredModel) -> object:
    """What a model holds, wherever it lies."""
    return model.format, model.tensors, model.metadata, model.config, model.faults


def test_of_a_model_the_header_and_the_settings_are_fetched(hub: HubServer, big: bytes, tmp_path: Path) -> None:
    files = {"config.json": CONFIG, NAME: big, "README.md": b"about", "pytorch_model.bin": bytes(10_000)}
    hub.add("org/llama", files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with open_model(LLAMA) as remote, open_model(PathReference(str(tmp_path))) as local:
        assert shown(remote) == shown(local)
        assert (remote.commit, remote.is_here) == (hub.repositories["model", "org/llama"].refs["main"], False)
    assert hub.sent == {NAME: 100_000, "config.json": len(CONFIG)}
    assert hub.fetched() == {NAME, "config.json"}
    assert not cached_contents()


def test_a_model_in_shards_is_the_same_there_as_here(hub: HubServer, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "shards", max_shard_size="40KB")
    shards = {file.name for file in folder.glob("*.safetensors")}
    assert len(shards) > 1
    hub.add("org/llama", folder)
    with open_model(LLAMA) as remote, open_model(PathReference(str(folder))) as local:
        assert shown(remote) == shown(local)
        tensor = remote.tensors["model.norm.weight"]
        here, there = (model.sources[tensor.file].read(tensor.offset, tensor.size_bytes) for model in (local, remote))
        assert here == there
    assert hub.fetched() == {*shards, f"{NAME}.index.json", "config.json"}


def test_a_header_with_a_vocabulary_takes_a_handful_of_requests(hub: HubServer, tmp_path: Path) -> None:
    words = [f"token-number-{number}" for number in range(150_000)]
    path = tiny_gguf(tmp_path / "m.gguf", tokens=words, hidden_size=1024, layers=1)
    hub.add("org/llama", tmp_path)
    with open_model(LLAMA) as remote, open_model(PathReference(str(path))) as local:
        assert shown(remote)[:3] == shown(local)[:3]  # type: ignore[index]
        header_bytes = local.files[0].header.header_bytes
    assert 3_500_000 < header_bytes < hub.sent["m.gguf"] <= header_bytes + 1_048_576 < path.stat().st_size
    storage = [request for request in hub.requests if request.path.startswith("/blob")]
    resolved = [request for request in hub.requests if "/resolve/" in request.path]
    assert (len(storage), len(resolved)) == (7, 1), "the Hub is asked once where the file lies"


def test_windows_grow_while_a_file_is_read_on_and_are_small_after_a_leap(hub: HubServer, big: bytes) -> None:
    hub.add("org/llama", {NAME: big})
    source = opened()
    for offset in range(0, 500_000, 50_000):
        assert source.read(offset, 50_000) == big[offset : offset + 50_000]
    assert source.read(6_000_000, 9) == big[6_000_000:6_000_009]
    assert source.read(4_000_000, 300_000) == big[4_000_000:4_300_000]
    assert ranges(hub) == [
        "bytes=0-99999",
        "bytes=100000-165535",
        "bytes=165536-427679",
        "bytes=427680-1476255",
        "bytes=6000000-6065535",
        "bytes=4000000-4299999",
    ]


def test_any_ranges_are_those_of_the_file_and_no_byte_is_sent_twice(hub: HubServer, big: bytes) -> None:
    content, chance = big[:700_000], random.Random(0)
    hub.add("org/llama", {NAME: content, "config.json": content[:1000], "empty.json": b""})
    for _ in range(10):
        source = opened()
        hub.forget()
        for _ in range(20):
            offset = chance.randrange(len(content) + 1)
            size = min(int(10 ** chance.uniform(0, 6)), len(content) - offset)
            assert source.read(offset, size) == content[offset : offset + size]
        assert hub.sent[NAME] <= len(content)
    with pytest.raises(ModelError, match=r"org/llama/model\.safetensors ends 1 B too early: it has 700,000 bytes"):
        source.read(699_990, 11)
    assert opened("config.json").read(10, 20) == content[10:30]
    hub.forget()
    assert opened("empty.json").read(0, 0) == b""
    assert not ranges(hub, "empty.json")


def test_too_much_of_a_file_is_not_fetched_through_memory(hub: HubServer) -> None:
    huge = RemoteFile(NAME, 10**12, "0" * 64, "0" * 40)
    source = RemoteSource(connect(), Repository("model", "org/llama", "v1"), "0" * 40, huge)
    with pytest.raises(FetchError, match="takes more than 128 MB of it") as refused:
        source.read(0, MAX_FETCHED_BYTES + 1)
    assert str(refused.value.hint) == f"fetch it first: `hf download org/llama {NAME} --revision v1`"
    assert not hub.requests


def test_a_server_that_ignores_ranges_is_hung_up_on(hub: HubServer) -> None:
    content = bytes(32_000_000)
    hub.add("org/llama", {NAME: content})
    hub.fail(NAME, "whole", times=99)
    with pytest.raises(FetchError, match=r"model\.safetensors of org/llama: the server .* ignores ranges") as refused:
        opened().read(0, 8)
    assert f"`hf download org/llama {NAME}`" in str(refused.value.hint)
    assert len(ranges(hub)) == 1
    assert hub.sent[NAME] < len(content) / 2, "what the sockets held, and no more"


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("shifted", r"sends 'bytes 1-100000/8000\d+' instead of 'bytes 0-99999/8000\d+'"),
        ("shorter", r"sends 'bytes 0-49999/50000' instead of 'bytes 0-99999/8000\d+'"),
        ("packed", "sends it packed by 'gzip'"),
    ],
)
def test_another_range_than_was_asked_for_is_refused(
    hub: HubServer, big: bytes, kind: FaultKind, complaint: str
) -> None:
    hub.add("org/llama", {NAME: big})
    hub.fail(NAME, kind, after_bytes=50_000, times=99)
    with pytest.raises(FetchError, match=complaint) as refused:
        opened().read(0, 8)
    assert "a proxy or mirror" in str(refused.value.hint)
    assert len(ranges(hub)) == 1, "asking again would not help"


def test_a_file_that_is_shorter_than_it_is_listed_is_told(hub: HubServer, big: bytes) -> None:
    hub.add("org/llama", {NAME: big, "config.json": CONFIG})
    source = opened()
    source.read(0, 8)
    hub.fail(NAME, "shorter", after_bytes=50_000)
    with pytest.raises(FetchError, match=r"answered 416 instead of bytes 5000000-"):
        source.read(5_000_000, 8)
    hub.fail("config.json", "few", after_bytes=5, times=99)
    with pytest.raises(FetchError, match=r"config\.json of org/llama"):
        opened("config.json").read(0, 8)


@pytest.mark.parametrize("kind", ["reset", "close", "few", "unavailable"])
@pytest.mark.parametrize("name", [NAME, "config.json"])
def test_what_breaks_off_is_asked_for_again(hub: HubServer, big: bytes, name: str, kind: FaultKind) -> None:
    content = big[:300_000]
    hub.add("org/llama", {name: content})
    hub.fail(name, kind, after_bytes=1000, times=2)
    source = opened(name)
    assert source.read(0, 500) == content[:500]
    hub.fail(name, kind, after_bytes=1000, times=1)
    assert source.read(200_000, 500) == content[200_000:200_500]
    hub.fail(name, kind, after_bytes=1000, times=99)
    with pytest.raises(FetchError, match=rf"{name} of org/llama") as broken:
        opened(name).read(0, 500)
    assert "run it again" in str(broken.value.hint)


@pytest.mark.parametrize("kind", ["expired", "reset"])
def test_an_address_that_holds_no_longer_is_asked_for_again(hub: HubServer, big: bytes, kind: FaultKind) -> None:
    hub.tokens.add(SECRET)
    hub.add("org/llama", {NAME: big})
    source = opened()
    source.read(0, 8)
    hub.fail(NAME, kind)
    hub.forget()
    assert source.read(5_000_000, 8) == big[5_000_000:5_000_008]
    assert [request.path.split("?")[0] for request in hub.requests if "/api/" not in request.path] == [
        "/blob",
        f"/org/llama/resolve/{hub.repositories['model', 'org/llama'].refs['main']}/{NAME}",
        "/blob",
    ]


def test_the_login_goes_to_the_hub_and_not_to_its_storage(
    hub: HubServer, big: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens.add(SECRET)
    hub.add("org/llama", {NAME: big, "config.json": CONFIG}).gate(SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with open_model(LLAMA) as model:
        model.sources[NAME].read(4_000_000, 8)
    sent = {(request.path.startswith("/blob"), request.authorization) for request in hub.requests}
    assert sent == {(False, f"Bearer {SECRET}"), (True, None)}
    assert SECRET not in repr((model, model.place, model.sources, vars(model.sources[NAME])))


@pytest.mark.parametrize(
    ("token", "kind", "complaint"),
    [
        (None, AccessError, "org/llama is gated: it needs a login"),
        ("hf_other", AccessError, "the login in use has no access to org/llama"),
        (SECRET, AccessError, "does not know the login in use"),
    ],
)
def test_a_gated_repository_says_how_to_get_in_and_not_who_asked(
    hub: HubServer,
    big: bytes,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    kind: type[Exception],
    complaint: str,
) -> None:
    hub.tokens.add("hf_other")
    hub.add("org/llama", {NAME: big}).gate("hf_granted")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=complaint) as refused:
        open_model(LLAMA)
    assert token is None or token not in "".join(traceback.format_exception(refused.value))
    hub.repositories["model", "org/llama"].private = True
    with pytest.raises((NotFoundError, AccessError), match=r"or does not show it|does not know the login"):
        open_model(LLAMA)


def test_a_revision_is_that_one_and_stays_it(hub: HubServer) -> None:
    repository = hub.add("org/llama", {NAME: safetensors.numpy.save({"a": numpy.ones(3)})})
    old = repository.refs["main"]
    new = repository.commit({NAME: safetensors.numpy.save({"b": numpy.ones(4)})}, revision="v/2")
    with open_model(HubReference("org/llama", "v/2")) as model:
        assert (list(model.tensors), model.commit) == (["b"], new)
        assert model.sources[NAME].name == f"org/llama@v/2/{NAME}"
    place, commit = remote_place(LLAMA)
    repository.commit({NAME: bytes(9)})
    assert (commit, place.open(NAME).size_bytes) == (old, place.sizes[NAME])
    assert place.open(NAME).read(0, 8) != bytes(8), "of the commit that was listed"
    with pytest.raises(NotFoundError, match="has no revision v3"):
        remote_place(HubReference("org/llama", "v3"))


def test_names_that_are_not_there_or_lead_out_are_refused(hub: HubServer, big: bytes) -> None:
    hub.add("org/llama", {NAME: big})
    with pytest.raises(NotFoundError, match=r"org/llama has no file other\.safetensors") as absent:
        opened("other.safetensors")
    assert f"{hub.url}/org/llama" in str(absent.value.hint)
    with pytest.raises(ModelError, match="lies outside of its repository"):
        opened("../../../secret")


def test_what_the_cache_has_is_read_from_there(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    fetched = fetch()
    hub.forget()
    with open_model(LLAMA) as model:
        assert isinstance(model.sources[NAME], FileSource)
        assert model.commit == fetched.commit
    assert not hub.fetched()
    with fetched.weight_files[0].open("r+b") as stream:
        stream.truncate(5000)
    with open_model(LLAMA) as model:
        assert isinstance(model.sources[NAME], RemoteSource), "the Hub has the whole of it"


def test_offline_the_cache_is_all_there_is(hub: HubServer, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/llama", llama_folder)
    with open_model(LLAMA) as online:
        expected = shown(online)
    fetched = fetch()
    hub.forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place, commit = remote_place(LLAMA)
    assert isinstance(place, LocalPlace)
    assert commit == fetched.commit
    with open_model(LLAMA) as offline:
        assert (shown(offline), offline.is_here) == (expected, True)
    with pytest.raises(NotFoundError, match="does not exist") as absent:
        place.open("model-00002-of-00002.safetensors")
    assert "only the cache was looked at" in str(absent.value.hint)
    with pytest.raises(NotFoundError, match="org/other is not in the cache, and offline mode is on"):
        open_model(HubReference("org/other"))
    assert not hub.requests

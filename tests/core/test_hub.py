"""The Hub: exactly the files that are needed arrive, by the real client from a real server, or from the cache alone."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from entrenar_core.artifact import WeightFormat
from entrenar_core.errors import ModelError, NotFoundError
from entrenar_core.hub import Transfer, list_files
from entrenar_core.hub.progress import Meter
from entrenar_core.hub.transfer import RemoteFile
from entrenar_core.references import HubReference
from hub_client import fetch, files_of, run_python
from hub_server import HubServer
from tiny_models import tiny_gguf, tiny_llama

pytest_plugins = ["hub_fixtures"]

SECRET = "hf_a-secret-that-nobody-may-see"
MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tiny_gguf(tmp_path_factory.mktemp("models") / "x.gguf")
    return {name: path.read_bytes() for name in ("x.Q4_0.gguf", "x.Q8_0.gguf")}


def test_a_repository_with_many_copies_gives_exactly_what_is_needed(hub: HubServer, llama_folder: Path) -> None:
    copies = {"pytorch_model.bin": b"p", "model.onnx": b"o", "x.gguf": b"g", "flax_model.msgpack": b"f"}
    repository = hub.add(
        "org/llama", files_of(llama_folder) | copies | {"README.md": b"#", "original/model.safetensors": b"x"}
    )
    artifact = fetch()
    assert hub.fetched() == MODEL_FILES
    assert hub.sent.total() == sum((llama_folder / name).stat().st_size for name in MODEL_FILES)
    assert artifact.reference == HubReference("org/llama")
    assert artifact.commit == repository.refs["main"]
    assert artifact.format is WeightFormat.SAFETENSORS
    assert {path.name for path in artifact.path.iterdir()} == MODEL_FILES
    assert artifact.architecture.num_layers == 2


def test_what_was_fetched_loads_in_transformers_with_the_same_weights(hub: HubServer, llama_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hub.add("org/llama", llama_folder)
    artifact = fetch()
    model, original = (AutoModelForCausalLM.from_pretrained(path) for path in (artifact.path, llama_folder))
    assert all((a == b).all() for a, b in zip(model.parameters(), original.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(artifact.tokenizer_path)("the fox").input_ids


def test_a_second_fetch_downloads_nothing(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    first = fetch()
    hub.forget()
    assert fetch() == first
    assert not hub.fetched()
    assert first.fingerprint() == fetch(str(llama_folder)).fingerprint()


def test_a_branch_that_moves_gives_its_new_files_and_keeps_the_unchanged(hub: HubServer, llama_folder: Path) -> None:
    repository = hub.add("org/llama", llama_folder)
    first = fetch()
    repository.commit(files_of(llama_folder) | {"config.json": (llama_folder / "config.json").read_bytes() + b" "})
    hub.forget()
    second = fetch()
    assert second.commit == repository.refs["main"] != first.commit
    assert hub.fetched() == {"config.json"}
    assert second.path != first.path


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/4", "feature/a@b"])
def test_a_revision_is_followed_to_its_commit(hub: HubServer, llama_folder: Path, revision: str) -> None:
    repository = hub.add("org/llama", {"config.json": b"{}"})
    commit = repository.commit(files_of(llama_folder), revision=revision)
    assert fetch(f"org/llama@{revision}").commit == commit
    assert fetch(f"org/llama@{commit}").commit == commit
    assert fetch(f"org/llama@{revision}", offline=True).commit == commit


def test_several_ggufs_are_listed_and_one_is_fetched_by_name(hub: HubServer, ggufs: Mapping[str, bytes]) -> None:
    hub.add("org/ggufs", {**ggufs, "config.json": b"{}", "tokenizer.json": b"{}"})
    with pytest.raises(ModelError, match=r"org/ggufs holds 2 gguf files: x\.Q4_0\.gguf, x\.Q8_0\.gguf"):
        fetch("org/ggufs")
    assert not hub.fetched()
    artifact = fetch("org/ggufs", files=["x.Q8_0.gguf"])
    assert hub.fetched() == {"x.Q8_0.gguf"}
    assert (artifact.format, artifact.architecture.num_layers) == (WeightFormat.GGUF, 2)


def test_a_format_chooses_among_copies(hub: HubServer, llama_folder: Path, ggufs: Mapping[str, bytes]) -> None:
    hub.add("org/llama", files_of(llama_folder) | {"x.gguf": ggufs["x.Q4_0.gguf"]})
    assert fetch(format=WeightFormat.GGUF).weight_files[0].name == "x.gguf"
    assert hub.fetched() == {"x.gguf"}


def test_code_is_fetched_only_where_it_is_trusted(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", files_of(llama_folder) | {"own.py": b"1 / 0", "layers/attention.py": b"2 / 0"})
    assert not list(fetch().path.rglob("*.py"))
    assert hub.fetched() == MODEL_FILES
    hub.forget()
    artifact = fetch(trust_remote_code=True)
    assert hub.fetched() == {"own.py", "layers/attention.py"}
    assert (artifact.path / "layers" / "attention.py").read_bytes() == b"2 / 0"


def test_a_name_without_an_organisation_is_a_repository_too(hub: HubServer, llama_folder: Path) -> None:
    hub.add("gpt2", llama_folder)
    assert fetch("gpt2").architecture.num_layers == 2
    assert {file.name for file in list_files("gpt2", revision="main")} >= MODEL_FILES


def test_a_pickle_is_not_even_fetched_unless_allowed(hub: HubServer) -> None:
    hub.add("org/old", {"pytorch_model.bin": b"a pickle", "config.json": b'{"model_type": "bert"}'})
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle") as refused:
        fetch("org/old")
    assert "allow_pickle" in str(refused.value.hint)
    assert not hub.fetched()
    assert fetch("org/old", allow_pickle=True).format is WeightFormat.PYTORCH


def test_shards_are_fetched_through_their_index(hub: HubServer, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "sharded", max_shard_size="40KB")
    hub.add("org/sharded", files_of(folder) | {"model-00009-of-00009.safetensors": b"not in the index"})
    artifact = fetch("org/sharded")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert {path.name for path in artifact.weight_files} == shards
    assert hub.fetched() == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("shard", "complaint"),
    [("../../x.safetensors", "no weight file of its folder"), ("gone.safetensors", "lacks gone")],
)
def test_an_index_that_is_wrong_ends_the_fetch_before_the_weights(hub: HubServer, shard: str, complaint: str) -> None:
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": shard}}).encode()
    hub.add("org/odd", {"model.safetensors.index.json": index, "one.safetensors": b"x", "config.json": b"{}"})
    with pytest.raises(ModelError, match=complaint):
        fetch("org/odd")
    assert hub.fetched() == {"model.safetensors.index.json"}


def test_a_listing_is_read_over_all_of_its_pages(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", files_of(llama_folder) | {"inner/notes.txt": b"12345"})
    hub.page_size = 2
    files = {file.name: file for file in list_files("org/llama")}
    assert files.keys() == {path.name for path in llama_folder.iterdir()} | {"inner/notes.txt"}
    oid = "bd41cba781d8349272bf3eb92568285b411c027c"  # by `git hash-object`
    assert files["inner/notes.txt"] == RemoteFile("inner/notes.txt", 5, None, oid)
    weights = files["model.safetensors"]
    assert weights.size_bytes == (llama_folder / "model.safetensors").stat().st_size
    assert weights.sha256 is not None


def test_progress_counts_bytes_over_all_files(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    seen: list[Transfer] = []
    fetch(progress=seen.append)
    total = sum((llama_folder / name).stat().st_size for name in MODEL_FILES)
    assert {transfer.total_bytes for transfer in seen} == {total}
    done = [transfer.done_bytes for transfer in seen]
    assert done == sorted(done)
    assert done[-1] == total
    assert {transfer.name for transfer in seen} == MODEL_FILES


def test_a_deduplicated_download_is_counted_once() -> None:
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    class Report:
        total_bytes = total_bytes_completed = 100
        total_transfer_bytes_completed = 30
        total_bytes_completion_rate = total_transfer_bytes_completion_rate = 1.0

    seen: list[Transfer] = []
    meter = Meter(seen.append, 100)
    reporter = XetDownloadProgressReporter(reconstruction_desc="", total=100, log_level=0, tqdm_class=meter.bar_class())
    with reporter:
        reporter.update_progress(Report())
    assert [transfer.done_bytes for transfer in seen] == [100]


@pytest.mark.parametrize("by_environment", [True, False])
def test_offline_uses_the_cache_alone(
    hub: HubServer, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    hub.add("org/llama", llama_folder)
    online = fetch()
    hub.forget()
    if by_environment:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(offline=None if by_environment else True) == online
    with pytest.raises(NotFoundError, match="org/other is not in the cache, and offline mode is on") as absent:
        fetch("org/other", offline=None if by_environment else True)
    assert "HF_HUB_OFFLINE" in str(absent.value.hint)
    assert not hub.requests


def test_offline_says_so_where_the_cache_lacks_a_part(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    fetch().weight_files[0].unlink()
    with pytest.raises(ModelError, match="has no weights") as partial:
        fetch(offline=True)
    assert "only the cache was looked at" in str(partial.value.hint)


def test_a_program_finds_the_hub_in_its_environment_and_writes_nothing_of_its_own(
    hub: HubServer, llama_folder: Path
) -> None:
    hub.add("org/llama", llama_folder)
    hub.fail("model.safetensors", "close", after_bytes=1000)
    code = (
        "from entrenar_core.hub import fetch_model; from entrenar_core.references import parse_reference;"
        "print(fetch_model(parse_reference('org/llama')).architecture.family)"
    )
    run = run_python(code, HF_TOKEN=SECRET)
    assert "does not know the login in use" in run.stderr
    assert SECRET not in run.stdout + run.stderr
    hub.tokens.add(SECRET)
    run = run_python(code, HF_TOKEN=SECRET)
    assert (run.returncode, run.stdout, run.stderr) == (0, "llama\n", "")


def test_a_program_that_started_offline_says_so_where_it_needs_the_network(hub: HubServer) -> None:
    code = (
        "from entrenar_core.errors import FetchError; from entrenar_core.hub import fetch_model, list_files\n"
        "from entrenar_core.references import HubReference\n"
        "for ask in (lambda: list_files('org/llama'), lambda: fetch_model(HubReference('org/llama'), offline=False)):\n"
        "    try: ask()\n"
        "    except FetchError as error: print(error, '/', error.hint)"
    )
    assert run_python(code, HF_HUB_OFFLINE="1").stdout.splitlines() == [
        "the files of org/llama cannot be listed in offline mode / unset HF_HUB_OFFLINE",
        "org/llama needs the network, and offline mode is on / unset HF_HUB_OFFLINE",
    ]


def test_local_models_are_inspected_without_the_client(llama_folder: Path) -> None:
    code = (
        "import sys; from entrenar_core.hub import fetch_model; from entrenar_core.references import parse_reference;"
        f"fetch_model(parse_reference({str(llama_folder)!r}));"
        "print({'torch', 'transformers', 'huggingface_hub', 'datasets'} & set(sys.modules))"
    )
    assert run_python(code).stdout == "set()\n"

"""Data sets from the Hub: the files of a split or configuration, chosen as the `datasets` library would."""

import json
import tempfile
from typing import Any

import pytest

from entrenar_core.errors import AccessError, DataError, FetchError, NotFoundError
from entrenar_core.hub import download_dataset
from hub_client import run_python
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]

SECRET = "hf_a-secret-that-nobody-may-see"


CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: train
    path: small/*.csv
  sep: ";"
- config_name: big
  data_files:
  - split: train
    path: big/part-*.csv
  - split: test
    path: big/test.csv
---
"""


@pytest.fixture
def data(hub: HubServer) -> HubServer:
    rows = [json.dumps({"text": f"row {i}", "label": i % 2}).encode() for i in range(4)]
    tables = [f"text,label\nrow {i},1\n".encode() for i in range(3)]
    named = {"train.jsonl": b"\n".join(rows[:3]), "dev.jsonl": rows[3], "notes.md": b"#", "weights.bin": b"x"}
    hub.add("org/plain", named, kind="dataset")
    parts = {"big/part-0.csv": tables[0], "big/part-1.csv": tables[1], "big/test.csv": tables[2]}
    hub.add("org/carded", {**parts, "small/a.csv": b"text;label\nrow;1\n", "README.md": CARD}, kind="dataset")
    return hub


def test_a_data_set_is_fetched_by_split_and_read_by_datasets(data: HubServer) -> None:
    import datasets

    files = download_dataset("org/plain", splits=["validation"])
    assert data.fetched() == {"dev.jsonl"}
    assert (files.builder, files.config, [*files.splits]) == ("json", "default", ["validation"])
    everything = download_dataset("org/plain")
    assert data.fetched() == {"train.jsonl", "dev.jsonl"}
    loaded = datasets.load_dataset(everything.builder, data_files=everything.data_files, **everything.options)
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 3, "validation": 1}
    assert loaded["validation"]["text"][:] == ["row 3"]


def test_the_card_of_a_data_set_is_followed(data: HubServer) -> None:
    import datasets

    files = download_dataset("org/carded", config="big", splits=["train"])
    assert data.fetched() == {"README.md", "big/part-0.csv", "big/part-1.csv"}
    assert [path.name for path in files.splits["train"]] == ["part-0.csv", "part-1.csv"]
    small = download_dataset("org/carded", config="small")
    assert (small.builder, small.options) == ("csv", {"sep": ";"})
    loaded = datasets.load_dataset(small.builder, data_files=small.data_files, split="train", **small.options)
    assert loaded[0] == {"text": "row", "label": 1}


def test_a_data_set_in_the_cache_needs_no_network(data: HubServer) -> None:
    online = download_dataset("org/plain")
    data.forget()
    assert download_dataset("org/plain", offline=True) == online
    with pytest.raises(NotFoundError, match="org/carded is not in the cache"):
        download_dataset("org/carded", offline=True)
    assert not data.requests


@pytest.mark.parametrize(
    ("repo_id", "settings", "complaint"),
    [
        ("org/carded", {}, "Config name is missing.*small.*big"),
        ("org/carded", {"config": "none"}, "none.*small.*big"),
        ("org/plain", {"splits": ["test"]}, "has no split test"),
        ("org/empty", {}, "holds no data files"),
    ],
)
def test_what_a_data_set_does_not_have_is_named(
    data: HubServer, repo_id: str, settings: dict[str, Any], complaint: str
) -> None:
    data.add("org/empty", {"README.md": b"# nothing", "../evil.csv": b"a", "script.py": b"raise"}, kind="dataset")
    with pytest.raises(DataError, match=complaint) as missing:
        download_dataset(repo_id, **settings)
    assert missing.value.hint
    assert tempfile.gettempdir() not in missing.value.message


def test_data_sets_have_the_gates_and_faults_of_models(data: HubServer) -> None:
    with pytest.raises(NotFoundError, match="has no dataset org/nothing"):
        download_dataset("org/nothing")
    data.fail("train.jsonl", "corrupt", times=2)
    with pytest.raises(FetchError, match=r"train\.jsonl of org/plain arrived twice"):
        download_dataset("org/plain")
    data.repositories["dataset", "org/plain"].gate()
    with pytest.raises(AccessError, match="org/plain is gated") as gated:
        download_dataset("org/plain")
    assert f"{data.url}/datasets/org/plain" in str(gated.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_itself_reads_from_the_hub_in_the_environment(data: HubServer, streaming: bool) -> None:
    data.tokens.add(SECRET)
    data.repositories["dataset", "org/carded"].gate(SECRET)
    code = (
        "import datasets; rows = datasets.load_dataset('org/carded', 'big', split='train', "
        f"streaming={streaming}, token={SECRET!r}); print([row['text'] for row in rows])"
    )
    run = run_python(code, HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert run.stdout == "['row 0', 'row 1']\n", run.stderr
    assert ("big/test.csv" in data.fetched()) is not streaming

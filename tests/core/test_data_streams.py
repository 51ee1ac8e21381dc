"""Streams give the rows of the files, in order, with the same classes; the Hub's are read as they are needed."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.sources import Rows, load_rows
from entrenar_core.data.streams import shuffled
from entrenar_core.errors import AccessError, DataError, FetchError, NotFoundError
from hub_client import run_python
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]

ROWS = [{"text": f"text {i}", "label": ("ant", "bee", None)[i % 3]} for i in range(40)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(path: Path, *, task: str = "sequence-classification", **settings: Any) -> Rows:
    config = DatasetConfig(path=str(path), **{"streaming": True, "eval_rows": 9, **settings})
    return load_rows(config, task=task, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    (made / "train-0.jsonl").write_bytes(lines(ROWS[:25]))
    (made / "train-1.jsonl").write_bytes(lines(ROWS[25:]))
    (made / "test.jsonl").write_bytes(lines(ROWS[:6]))
    return made


def test_the_first_rows_are_for_evaluation_and_training_skips_them(folder: Path) -> None:
    rows = read(folder)
    assert (rows.num_train_rows, rows.num_labelled_rows, rows.label_names) == (31, None, ("ant", "bee"))
    assert isinstance(rows.train, datasets.IterableDataset)
    expected = [{"row": i, "text": f"text {i}", "label": (0, 1, -1)[i % 3]} for i in range(40)]
    assert list(rows.train) == expected[9:] == list(rows.train)
    assert list(rows.evaluation) == [row for row in expected[:9] if row["label"] >= 0]


def test_settings_of_size_and_split_hold_for_streams(folder: Path) -> None:
    assert read(folder, max_rows=20).num_train_rows == len(list(read(folder, max_rows=20).train)) == 11
    beside = read(folder, eval_split="test", eval_rows=None)
    assert beside.num_train_rows == len(list(beside.train)) == 40
    assert beside.evaluation["row"][:] == [40, 41, 43, 44]
    with pytest.raises(DataError, match="too few rows to hold some out: 40, and the first 512 are for evaluation"):
        read(folder, eval_rows=None)
    with pytest.raises(DataError, match="no split validation"):
        read(folder, eval_split="validation")


def test_a_stream_is_shuffled_by_seed_and_epoch_and_its_rows_keep_their_numbers(folder: Path) -> None:
    stream = read(folder).train
    orders = {
        (seed, epoch): [row["row"] for row in shuffled(stream, seed=seed, epoch=epoch, buffer_rows=8)]
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    }
    assert all(sorted(order) == list(range(9, 40)) != order for order in orders.values())
    assert len(set(map(str, orders.values()))) == 3
    again = read(folder).train
    assert [row["row"] for row in shuffled(again, seed=1, epoch=1, buffer_rows=8)] == orders[1, 1]
    assert all(row["text"] == f"text {row['row']}" for row in shuffled(stream, seed=1, epoch=0))


def test_the_fingerprint_of_a_stream_is_of_its_files_and_choices(folder: Path, tmp_path: Path) -> None:
    first = read(folder).fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert read(moved).fingerprint == first
    assert read(moved, eval_rows=10).fingerprint != first
    (moved / "train-1.jsonl").write_bytes(lines([*ROWS[25:], ROWS[0]]))
    assert read(moved).fingerprint != first


def test_parquet_says_how_many_rows_and_which_classes_it_has(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "y"])})
    table = datasets.Dataset.from_dict({"text": ["a"] * 30, "label": [0, 1, -1] * 10}, features)
    table.to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert (rows.num_train_rows, rows.label_names) == (21, ("z", "y"))
    assert [row["label"] for row in rows.train] == [0, 1, -1] * 7


def test_built_ins_and_columns_of_language_models_stream(tmp_path: Path) -> None:
    config = DatasetConfig(name="stdlib-docs", streaming=True, max_rows=30, eval_rows=10)
    rows = load_rows(config, task="causal-lm", seed=1)
    assert rows.num_train_rows == len(list(rows.train)) == 20
    assert len(rows.evaluation) == 10
    (tmp_path / "a.jsonl").write_bytes(lines([{"m": [{"role": "user", "content": str(i)}]} for i in range(12)]))
    chats = read(tmp_path / "a.jsonl", task="causal-lm", messages_column="m")
    assert [row["messages"][0]["content"] for row in chats.train] == ["9", "10", "11"]


def test_what_is_wrong_far_down_a_stream_is_told_when_it_is_read(tmp_path: Path) -> None:
    table = [{"text": "a" if i < 150 else None, "label": i % 2} for i in range(200)]
    datasets.Dataset.from_list(table).to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 150 has nothing in column `text`"):
        list(rows.train)


@pytest.fixture
def data(hub: HubServer) -> HubServer:
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two"))
    card = f"---\nconfigs:\n{configs}---\n".encode()
    hub.add("org/plain", {"train.jsonl": lines(ROWS), "test.jsonl": lines(ROWS[:6])}, kind="dataset")
    named = {"one.jsonl": lines(ROWS[:20]), "two.jsonl": lines(ROWS[:30]), "README.md": card}
    hub.add("org/carded", named, kind="dataset")
    return hub


def from_hub(name: str, **settings: Any) -> Rows:
    return load_rows(DatasetConfig(name=name, **settings), task="sequence-classification", seed=1)


def test_a_data_set_of_the_hub_is_read_by_subset_split_and_revision(data: HubServer) -> None:
    rows = from_hub("org/plain", eval_split="test")
    assert (rows.num_train_rows, len(rows.evaluation), rows.name) == (40, 4, "org/plain")
    assert data.fetched() == {"train.jsonl", "test.jsonl"}
    sizes = [from_hub("org/carded", subset=name) for name in ("one", "two")]
    assert [len(read.train) + len(read.evaluation) for read in sizes] == [20, 30]
    old = data.repositories["dataset", "org/plain"]
    old.commit({"train.jsonl": lines(ROWS[:10])}, revision="small")
    assert from_hub("org/plain", revision="small").num_train_rows < 10
    assert from_hub("org/plain", eval_split="test").fingerprint == rows.fingerprint
    data.forget()
    offline = DatasetConfig(name="org/plain", eval_split="test")
    again = load_rows(offline, task="sequence-classification", seed=1, offline=True)
    assert again.fingerprint == rows.fingerprint
    assert not data.requests


def test_what_the_hub_does_not_have_is_told(data: HubServer) -> None:
    for streaming in (False, True):
        with pytest.raises(NotFoundError, match="has no dataset org/none"):
            from_hub("org/none", streaming=streaming)
    with pytest.raises(DataError, match="has no split validation"):
        from_hub("org/plain", eval_split="validation")
    with pytest.raises(FetchError, match="cannot be streamed in offline mode"):
        load_rows(DatasetConfig(name="org/plain", streaming=True), task="sequence-classification", seed=1, offline=True)
    data.repositories["dataset", "org/plain"].gate()
    with pytest.raises(AccessError, match="gated"):
        from_hub("org/plain")


def test_a_data_set_of_the_hub_streams(data: HubServer) -> None:
    code = (
        "from entrenar_core.config.schema import DatasetConfig; from entrenar_core.data.sources import load_rows\n"
        "def rows(**settings):\n"
        " config = DatasetConfig(streaming=True, **{'eval_rows': 9, **settings})\n"
        " return load_rows(config, task='sequence-classification', seed=1)\n"
        "first, beside = rows(name='org/plain'), rows(name='org/plain', eval_split='test', eval_rows=None)\n"
        "print(first.num_train_rows, first.label_names, [row['row'] for row in first.train] == list(range(9, 40)))\n"
        "print(beside.num_train_rows, len(beside.evaluation), "
        "first.fingerprint == rows(name='org/plain').fingerprint)\n"
        "print(rows(name='org/carded', subset='two').num_train_rows)\n"
        "try: rows(name='org/plain', split='none')\n"
        "except Exception as error: print(type(error).__name__, error, error.hint)"
    )
    run = run_python(code)
    assert run.stdout.splitlines() == [
        "31 ('ant', 'bee') True",
        "40 4 True",
        "21",
        "DataError org/plain has no split none its splits are train, test",
    ], run.stderr
    assert run.stderr == ""

"""Rows from files and built-ins: what each setting of `dataset` changes, and what is said of unusable data."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.labels import UNLABELLED, hold_out, keep_labels
from entrenar_core.data.sources import Rows, load_rows
from entrenar_core.errors import DataError, NotFoundError

CLASSES = ("ant", "bee", "cat")


def some(count: int = 60, **extra: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": CLASSES[i % 3], **extra} for i in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        case ".csv" | ".tsv":
            with path.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        case ".json":
            path.write_text(json.dumps(rows))
        case ".txt":
            path.write_text("".join(f"{row['text']}\n" for row in rows))
        case _:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def classify(path: Path | str, *, seed: int = 42, head: tuple[str, ...] | None = None, **settings: Any) -> Rows:
    config = DatasetConfig(path=str(path), **settings)
    return load_rows(config, task="sequence-classification", seed=seed, label_names=head)


def model(path: Path | str, **settings: Any) -> Rows:
    return load_rows(DatasetConfig(path=str(path), **settings), task="causal-lm", seed=42)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", some())


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.jsonl", "a.csv", "a.tsv", "odd [1] name*.jsonl"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, rows: Path, name: str) -> None:
    assert classify(write(tmp_path / "other" / name, some())).fingerprint == classify(rows).fingerprint


def test_compressed_files_are_read(tmp_path: Path, rows: Path) -> None:
    with gzip.open(tmp_path / "packed.jsonl.gz", "wb") as stream:
        stream.write(rows.read_bytes())
    assert classify(tmp_path / "packed.jsonl.gz").fingerprint == classify(rows).fingerprint


def test_a_text_file_is_a_row_per_line(tmp_path: Path) -> None:
    read = model(write(tmp_path / "a.txt", some(20)))
    assert sorted([*read.train["text"], *read.evaluation["text"]]) == sorted(row["text"] for row in some(20))
    assert read.label_names is None
    assert read.num_labelled_rows is None


def test_a_tenth_is_held_out_in_the_share_of_each_class_by_the_seed(rows: Path) -> None:
    read = classify(rows)
    assert (read.num_train_rows, len(read.evaluation), read.num_labelled_rows) == (54, 6, 54)
    assert read.label_names == CLASSES
    assert set(Counter(read.evaluation["label"]).values()) == {2}
    everything = [*read.train, *read.evaluation]
    assert sorted(row["row"] for row in everything) == list(range(60))
    assert all(row["text"] == f"text {row['row']}" and row["label"] == row["row"] % 3 for row in everything)
    assert classify(rows).evaluation["row"][:] == read.evaluation["row"][:]
    assert classify(rows, seed=43).evaluation["row"][:] != read.evaluation["row"][:]


def test_eval_fraction_eval_rows_and_max_rows_set_how_many(rows: Path) -> None:
    sizes = {
        (len(read.train), len(read.evaluation))
        for settings in ({"eval_fraction": 0.5}, {"eval_rows": 3}, {"eval_fraction": 0.2, "max_rows": 30})
        for read in [classify(rows, **settings)]
    }
    assert sizes == {(30, 30), (57, 3), (24, 6)}
    assert max(classify(rows, max_rows=30).train["row"]) < 30


def test_split_and_eval_split_choose_files_by_their_names(tmp_path: Path) -> None:
    for name, number in (("train-0.jsonl", 9), ("train-1.jsonl", 9), ("dev.jsonl", 6), ("test/part.jsonl", 3)):
        write(tmp_path / name, some(number))
    read = classify(tmp_path, eval_split="validation")
    assert (len(read.train), len(read.evaluation)) == (18, 6)
    assert read.evaluation["row"][:] == list(range(18, 24)), "rows are told apart across splits"
    assert len(classify(tmp_path, eval_split="validation", eval_rows=3).evaluation) == 3
    other = classify(tmp_path, split="validation", eval_split="test")
    assert (len(other.train), len(other.evaluation)) == (6, 3)
    assert len(classify(tmp_path / "train-*.jsonl", eval_split="train").train) == 18
    with pytest.raises(DataError, match="no split training") as missing:
        classify(tmp_path, split="training")
    assert missing.value.hint == "found by the names of the files: train, validation, test"


def test_columns_are_read_under_the_names_that_settings_give(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"body": "x", "kind": i % 2, "q": "1", "a": str(i)} for i in range(20)])
    named = classify(path, text_column="body", label_column="kind")
    assert named.label_names == ("0", "1")
    assert set(named.train.column_names) == {"row", "text", "label"}
    pairs = model(path, prompt_column="q", completion_column="a")
    assert set(pairs.train.column_names) == {"row", "prompt", "completion"}
    assert all(row["completion"] == str(row["row"]) for row in pairs.train)
    assert model(path, text_column="body").train[0]["text"] == "x"
    chats = write(tmp_path / "c.jsonl", [{"chat": [{"role": "user", "content": "x"}]} for _ in range(9)])
    assert model(chats, messages_column="chat").train[0]["messages"] == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 100], ("9", "10", "100")),
        ([True, False], ("false", "true")),
        (["b", "a"], ("a", "b")),
        ([2.0, 1.0], ("1", "2")),
    ],
)
def test_classes_are_sorted_as_what_they_are(tmp_path: Path, values: list[Any], names: tuple[str, ...]) -> None:
    rows = [{"text": "x", "label": values[i % len(values)]} for i in range(30)]
    assert classify(write(tmp_path / "a.jsonl", rows)).label_names == names


def test_declared_classes_keep_their_numbers_and_minus_one_is_no_label(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "y", "x"])}
    )
    labels = [0, 1, 2, 0, 1, 2, -1, 0, 1, 2] * 3
    datasets.Dataset.from_dict({"text": ["t"] * 30, "label": labels}, features).to_parquet(tmp_path / "a.parquet")
    read = classify(tmp_path / "a.parquet")
    assert read.label_names == ("z", "y", "x")
    assert read.num_labelled_rows == read.num_train_rows - 3
    assert all(row["label"] == labels[row["row"]] for row in [*read.train, *read.evaluation])
    assert UNLABELLED not in read.evaluation["label"]
    by_name = classify(tmp_path / "a.parquet", head=("x", "y", "z"))
    assert all(row["label"] == (2 - labels[row["row"]] if labels[row["row"]] >= 0 else -1) for row in by_name.train)
    generic = classify(tmp_path / "a.parquet", head=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert generic.train["label"][:] == read.train["label"][:]
    with pytest.raises(DataError, match="unknown to the model's head"):
        classify(tmp_path / "a.parquet", head=("positive", "neutral", "negative"))


def test_empty_labels_are_rows_without_one_and_na_is_a_text(tmp_path: Path) -> None:
    lines = "".join(f"NA,{i % 2 if i % 3 else ''}\n" for i in range(30))
    (tmp_path / "a.csv").write_text(f"text,label\n{lines}")
    read = classify(tmp_path / "a.csv")
    assert read.label_names == ("0", "1")
    assert set(read.train["text"]) == {"NA"}
    assert read.num_labelled_rows == 20 - len(read.evaluation)
    assert UNLABELLED in read.train["label"]


def test_labelled_rows_keeps_so_many_labels_and_every_class(rows: Path) -> None:
    read = classify(rows, labelled_rows=4)
    kept = [label for label in read.train["label"] if label != UNLABELLED]
    assert read.num_labelled_rows == len(kept) == 4
    assert set(kept) == {0, 1, 2}
    assert read.num_train_rows == 54
    assert UNLABELLED not in read.evaluation["label"]
    assert read.evaluation["row"][:] == classify(rows).evaluation["row"][:]
    assert read.train["label"][:] != classify(rows, labelled_rows=4, seed=1).train["label"][:]
    with pytest.raises(DataError, match=r"labelled_rows` is 55, and 54"):
        classify(rows, labelled_rows=55)


def test_labels_must_be_known_to_a_trained_head_or_to_the_training_rows(tmp_path: Path, rows: Path) -> None:
    assert classify(rows, head=("cat", "dog", "bee", "ant")).label_names == ("cat", "dog", "bee", "ant")
    with pytest.raises(DataError, match=r"label 'cat' in column `label` is unknown .* which has ant, bee$"):
        classify(rows, head=("ant", "bee"))
    numbers = write(tmp_path / "n.jsonl", [{"text": "x", "label": i % 2} for i in range(20)])
    assert set(classify(numbers, head=("no", "yes")).train["label"]) == {0, 1}
    write(tmp_path / "f" / "train.jsonl", some())
    write(tmp_path / "f" / "test.jsonl", [{"text": "x", "label": "dog"}])
    with pytest.raises(DataError, match="'dog' in column `label` is in the evaluation rows and in no training row"):
        classify(tmp_path / "f", eval_split="test")


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path, rows: Path) -> None:
    first = classify(rows).fingerprint
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert classify(tmp_path / "moved" / "rows.jsonl", name="another").fingerprint == first
    assert len(first) == 64
    assert classify(rows, labelled_rows=5).fingerprint != first
    changed = some()
    changed[7]["text"] += "!"
    assert classify(write(tmp_path / "b.jsonl", changed)).fingerprint != first


def test_reports_call_the_data_by_name_or_file(rows: Path) -> None:
    assert classify(rows).name == "rows.jsonl"
    assert classify(rows, name="pets").name == "pets"


BROKEN: dict[str, tuple[str, bytes, dict[str, Any], str, str]] = {
    "line": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', {}, r"a\.jsonl:3: not JSON", "each line"),
    "list": ("a.json", b'[{"text": "a"},\n {"text" 1}]', {}, r"a\.json:2: not JSON", "a list"),
    "encoding": ("a.txt", b"one\n\xff\xfe\xff", {}, r"a\.txt:2: not text in UTF-8", "iconv"),
    "csv": ("a.csv", b"text\na\nb,c,d\n", {}, "line 3", "whole"),
    "parquet": ("a.parquet", b"PAR1 no", {}, "cannot be read", "whole"),
    "empty": ("a.jsonl", b"", {}, "is empty", "at least one row"),
    "blank": ("a.jsonl", b"\n\n", {}, "a.jsonl", ""),
    "header": ("a.csv", b"text,label\n", {}, "is empty", "at least one row"),
    "kind": ("a.docx", b"x", {}, "is not a data file", ".parquet"),
    "type": ("a.jsonl", b'{"text": 1}\n', {}, "`text` holds int64, not text", "text_column"),
    "null": ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', {}, "row 1 has nothing in column `text`", "remove"),
    "column": ("a.jsonl", b'{"texts": "a", "id": 1}\n', {}, "no column `text`", "did you mean `texts`"),
    "few": ("a.jsonl", b'{"text": "a"}\n', {}, "too few rows", "eval_split"),
    "unread": ("a.jsonl", b'{"text": "a"}\n', {"label_column": "x"}, "label_column` is not read", "remove"),
    "labelled": ("a.jsonl", b'{"text": "a"}\n', {"labelled_rows": 3}, "labelled_rows` is about classes", "remove"),
}


@pytest.mark.parametrize(("name", "content", "settings", "message", "hint"), BROKEN.values(), ids=list(BROKEN))
@pytest.mark.parametrize("streaming", [False, True])
def test_data_that_cannot_be_read_is_told_in_one_error(
    tmp_path: Path, name: str, content: bytes, settings: dict[str, Any], message: str, hint: str, streaming: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as told:
        list(model(tmp_path / name, streaming=streaming, eval_rows=1, **settings).train)
    assert told.value.hint is not None
    assert hint in told.value.hint
    assert "entrenar-data-" not in told.value.message


@pytest.mark.parametrize(
    ("label", "message"), [(0.5, "0.5, which is no class"), ("ant", "only the label 'ant'"), (None, "no label at all")]
)
def test_labels_that_make_no_classifier_are_refused(tmp_path: Path, label: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x", "label": label}] * 9)
    with pytest.raises(DataError, match=message):
        classify(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.csv", "no such file"), (tmp_path / "*.csv", "no file matches")):
        with pytest.raises(NotFoundError, match=message):
            classify(path)
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match="holds no data files"):
        classify(tmp_path)
    write(tmp_path / "a.csv", some())
    write(tmp_path / "b.jsonl", some())
    with pytest.raises(DataError, match="several kinds"):
        classify(tmp_path)
    config = DatasetConfig(source="builtin", name="stdlib-docstring")
    with pytest.raises(NotFoundError, match="no built-in data set stdlib-docstring") as unknown:
        load_rows(config, task="sequence-classification", seed=1)
    assert unknown.value.hint == "did you mean `stdlib-docstrings`?"
    with pytest.raises(DataError, match="stdlib-docs has no split test"):
        load_rows(DatasetConfig(name="stdlib-docs", split="test"), task="causal-lm", seed=1)


def test_the_built_in_docstrings_are_split_without_a_text_on_both_sides() -> None:
    config = DatasetConfig(name="stdlib-docstrings", eval_fraction=0.2, labelled_rows=800)
    read = load_rows(config, task="sequence-classification", seed=42)
    assert read.num_labelled_rows == 800
    assert read.label_names is not None
    assert read.name == "stdlib-docstrings"
    assert not set(read.train["text"]) & set(read.evaluation["text"])
    assert set(read.evaluation["label"]) == set(range(len(read.label_names)))


def test_reading_says_nothing_and_leaves_nothing_at_home(tmp_path: Path, rows: Path) -> None:
    code = (
        "from entrenar_core.config.schema import DatasetConfig; from entrenar_core.data.sources import load_rows\n"
        f"for streaming in (False, True):\n config = DatasetConfig(path={str(rows)!r}, streaming=streaming,"
        " eval_rows=9)\n"
        " read = load_rows(config, task='sequence-classification', seed=1); list(read.train)"
    )
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    for folder in (home, temporary):
        folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment = kept | {"HOME": str(home), "TMPDIR": str(temporary)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert [path for folder in (home, temporary) for path in folder.rglob("*") if path.is_file()] == []
    chosen = environment | {"HF_DATASETS_CACHE": str(tmp_path / "chosen")}
    subprocess.run([sys.executable, "-c", code], env=chosen, check=True)
    assert list((tmp_path / "chosen").rglob("*.arrow"))


@given(labels=st.lists(st.integers(-1, 4), min_size=1, max_size=80), count=st.integers(1, 80), seed=st.integers(0, 9))
def test_holding_out_takes_labelled_rows_in_their_share_and_never_the_last_of_a_class(
    labels: list[int], count: int, seed: int
) -> None:
    held = hold_out(labels, len(labels), count, seed)
    assert held == sorted(set(held))
    assert len(held) <= count
    assert all(labels[row] != UNLABELLED for row in held)
    sizes, taken = Counter(label for label in labels if label >= 0), Counter(labels[row] for row in held)
    for label, size in sizes.items():
        share = min(count, sizes.total()) * size / sizes.total()
        assert taken[label] < size
        assert min(int(share), size - 1) <= taken[label] <= share + 1
    assert held == hold_out(labels, len(labels), count, seed)


@given(labels=st.lists(st.integers(-1, 4), max_size=60), seed=st.integers(0, 9), data=st.data())
def test_keeping_labels_keeps_that_many_and_each_class_if_it_can(labels: list[int], seed: int, data: Any) -> None:
    labelled = [label for label in labels if label != UNLABELLED]
    count = data.draw(st.integers(0, len(labelled)))
    kept = keep_labels(labels, count, seed, "label")
    assert sum(label != UNLABELLED for label in kept) == count
    assert all(new in (old, UNLABELLED) for old, new in zip(labels, kept, strict=True))
    assert count < len(set(labelled)) or set(kept) - {UNLABELLED} == set(labelled)


def test_a_folder_that_can_hardly_be_meant_is_not_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entrenar_core.data import files

    monkeypatch.setattr(files, "MOST_FILES", 3)
    for index in range(3):
        (tmp_path / f"{index}.jsonl").write_text('{"text": "a"}\n')
    assert len(files.find_files(str(tmp_path)).of("train")) == 3
    (tmp_path / "4.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="holds more than 3 files"):
        files.find_files(str(tmp_path))

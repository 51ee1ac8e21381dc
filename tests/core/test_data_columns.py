"""Columns are known before anything heavy is loaded, and wrong ones are named with the nearest."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.columns import check_columns, check_splits, peek_columns
from entrenar_core.errors import DataError, NotFoundError

CONTENTS = {
    "a.csv": b'"text, long",label\n"x",1\n',
    "a.tsv": b"text, long\tlabel\nx\t1\n",
    "a.jsonl": b'\n{"text, long": "x"}\n{"text, long": "x", "label": 1}\n',
    "a.json": b'[{"text, long": "x"},\n{"label": 1}]',
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_columns_of_a_file_are_found(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(CONTENTS[name]) if packed else CONTENTS[name])
    assert peek_columns(DatasetConfig(path=str(path))) == ("text, long", "label")


def test_parquet_text_built_ins_and_the_hub(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "b": ["x"]}), tmp_path / "a.parquet")
    assert peek_columns(DatasetConfig(path=str(tmp_path / "a.parquet"))) == ("a", "b")
    (tmp_path / "a.txt").write_text("x\n")
    assert peek_columns(DatasetConfig(path=str(tmp_path / "a.txt"))) == ("text",)
    assert peek_columns(DatasetConfig(name="stdlib-docstrings")) == ("text", "label")
    assert peek_columns(DatasetConfig(name="stdlib-docs", source="huggingface")) is None
    assert peek_columns(DatasetConfig(name="org/data")) is None


def test_the_split_says_which_file_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a\n1\n")
    (tmp_path / "test.csv").write_text("b\n1\n")
    assert peek_columns(DatasetConfig(path=str(tmp_path))) == ("a",)
    assert peek_columns(DatasetConfig(path=str(tmp_path), split="test")) == ("b",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": 1}\n{', r"a\.jsonl:2: not JSON"),
        ("a.json", b"[1,\n2,,]", r"a\.json:2: not JSON"),
        ("a.csv", b"\xff\xfe", r"a\.csv:1: not text in UTF-8"),
        ("a.parquet", b"nothing", "cannot be read"),
        ("a.csv.gz", b"nothing", "cannot be read"),
        ("a.csv", b"", "is empty"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as broken:
        peek_columns(DatasetConfig(path=str(tmp_path / name)))
    assert broken.value.hint
    with pytest.raises(NotFoundError):
        peek_columns(DatasetConfig(path=str(tmp_path / "none.csv")))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("path", ["a.parquet{}", ".", "*"])
def test_parquet_in_an_archive_is_refused(tmp_path: Path, ending: str, path: str) -> None:
    (tmp_path / f"a.parquet{ending}").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.parquet\S* is parquet, which is compressed inside") as packed:
        peek_columns(DatasetConfig(path=str(tmp_path / path.format(ending))))
    assert packed.value.hint == "unpack it"


@pytest.mark.parametrize("path", ["a.docx", "."])
def test_what_is_no_data_is_told_what_is_read(tmp_path: Path, path: str) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is not a data file|holds no data files") as refused:
        peek_columns(DatasetConfig(path=str(tmp_path / path)))
    assert refused.value.hint == (
        "files that end in .parquet, .json, .jsonl, .csv, .tsv, .txt are read; "
        "those of text also with .gz, .bz2, .xz, .zst behind it"
    )


def test_splits_are_those_of_the_file_names(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("a\n1\n")
    assert check_splits(DatasetConfig(path=str(tmp_path), eval_split="test")) == []
    assert check_splits(DatasetConfig(name="org/data", split="any")) == []
    first, second = check_splits(DatasetConfig(path=str(tmp_path), split="dev", eval_split="validation"))
    assert (first.message, first.where) == ("`dataset.split`: there is no split dev", "dataset.split")
    assert second.where == "dataset.eval_split"
    assert second.hint
    assert "train, test" in second.hint or "test, train" in second.hint
    (built_in,) = check_splits(DatasetConfig(name="stdlib-docs", eval_split="test"))
    assert built_in.where == "dataset.eval_split"


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}))
    code = (
        "import sys; from entrenar_core.config.schema import DatasetConfig; "
        "from entrenar_core.data.columns import check_columns, peek_columns; "
        f"config = DatasetConfig(path={str(tmp_path / 'a.jsonl')!r}); "
        "print(check_columns(config, 'causal-lm', peek_columns(config)), "
        "[name for name in ('torch', 'datasets', 'transformers', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[] []\n"


def test_a_column_that_is_not_there_gets_the_nearest_and_the_list() -> None:
    config = DatasetConfig(path="x", text_column="txt", label_column="class")
    first, second = check_columns(config, "sequence-classification", ("text", "id"))
    assert first.message == "`dataset.text_column`: the data has no column `txt`"
    assert first.hint == "did you mean `text`? the columns are text, id"
    assert second.hint == "set `dataset.label_column` to the one to read; the columns are text, id"
    assert (first.where, second.where) == ("dataset.text_column", "dataset.label_column")
    assert check_columns(config, "sequence-classification", ("txt", "class")) == []
    (alone,) = check_columns(DatasetConfig(path="x"), "causal-lm", ("messages",))
    assert alone.hint == "set `dataset.text_column` to the one to read; the only column is messages"


def test_a_setting_that_the_task_does_not_read_is_a_problem() -> None:
    chats = DatasetConfig(path="x", messages_column="m", text_column="t", labelled_rows=3)
    assert [problem.message for problem in check_columns(chats, "causal-lm", None)] == [
        "`dataset.text_column` is not read: causal-lm reads messages_column",
        "`dataset.labelled_rows` is about classes, and causal-lm has none",
    ]
    pairs = DatasetConfig(path="x", prompt_column="q", completion_column="a")
    assert check_columns(pairs, "causal-lm", ("q", "a")) == []
    assert len(check_columns(pairs, "sequence-classification", ("text", "label"))) == 2

"""The built-in data sets: the running Python's documentation, each text once, in one order."""

import subprocess
import sys
from collections import Counter

import pytest

from entrenar_core.data.builtin import BUILTIN_DATASETS, FEWEST_ROWS


def test_docstrings_have_classes_worth_learning_and_no_text_twice() -> None:
    rows = list(BUILTIN_DATASETS["stdlib-docstrings"].rows())
    sizes = Counter(row["label"] for row in rows)
    assert min(sizes.values()) >= FEWEST_ROWS
    assert len(sizes) >= 25
    assert len(rows) >= 3500
    assert {"tkinter", "email", "asyncio"} <= set(sizes)
    assert not {"test", "site-packages"} & set(sizes)
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts)
    assert all(text == " ".join(text.split()) for text in texts)
    if sys.version_info[:3] == (3, 11, 7):
        assert (len(rows), len(sizes)) == (4929, 33)


def test_docs_are_whole_texts_each_once() -> None:
    texts = [row["text"] for row in BUILTIN_DATASETS["stdlib-docs"].rows()]
    assert len(set(texts)) == len(texts) > 500
    assert min(map(len, texts)) >= 200
    assert any("\n\n" in text for text in texts)


@pytest.mark.nightly
def test_the_order_is_that_of_the_files_whatever_the_hash_seed() -> None:
    code = (
        "import hashlib; from entrenar_core.data.builtin import BUILTIN_DATASETS as B; "
        "print([hashlib.sha256(repr(list(B[name].rows())).encode()).hexdigest() for name in sorted(B)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_every_entry_is_called_by_its_name_and_has_its_columns() -> None:
    for name, data in BUILTIN_DATASETS.items():
        assert data.name == name
        assert data.description
        assert tuple(next(data.rows())) == data.columns


def test_names_are_words_with_tags_that_begin_before_they_go_on() -> None:
    rows = list(BUILTIN_DATASETS["stdlib-names"].rows())
    assert len({tuple(row["tokens"]) for row in rows}) == len(rows) > 1500
    kinds = Counter(tag for row in rows for tag in row["tags"])
    assert set(kinds) == {"O", *(f"{begin}-{kind}" for begin in "BI" for kind in ("PARAMETER", "CLASS", "FUNCTION"))}
    assert min(kinds.values()) >= 20
    for row in rows:
        assert len(row["tokens"]) == len(row["tags"]) >= 6
        assert set(row["tags"]) != {"O"}
        before = ["O", *row["tags"]]
        assert all(last[2:] == tag[2:] for last, tag in zip(before, row["tags"], strict=False) if tag[0] == "I")

"""JSON that would end the process, or that is no text, is told with its place before anything reads it."""

import gzip
from pathlib import Path

import pytest

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.library import DEEPEST, require_shallow
from entrenar_core.data.sources import load_rows
from entrenar_core.errors import DataError

GOOD = b'{"text": "a fox", "label": "x"}\n{"text": "a dog", "label": "y"}\n' * 6


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("deep", [b"[" * 20000 + b"]" * 20000, b'{"a":' * 20000 + b"1" + b"}" * 20000])
def test_rows_nested_without_end_are_an_error_with_its_line(tmp_path: Path, deep: bytes, streaming: bool) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b'{"text": ' + deep + b', "label": "x"}\n')
    config = DatasetConfig(path=str(file), streaming=streaming, eval_rows=2)
    with pytest.raises(DataError, match=r"rows\.jsonl:13: lists or objects inside each other"):
        load_rows(config, task="sequence-classification", seed=1)


def test_brackets_in_texts_and_many_rows_in_one_line_are_no_nesting(tmp_path: Path) -> None:
    quoted = b'{"text": "' + b"[{" * 4000 + b'\\" [", "label": "x"}\n'
    (tmp_path / "quoted.jsonl").write_bytes(quoted)
    (tmp_path / "list.json").write_bytes(b"[" + b",".join([b'{"text": ["a"]}'] * 4000) + b"]")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(quoted))
    require_shallow(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize(("depth", "refused"), [(DEEPEST, False), (DEEPEST + 1, True)])
def test_the_limit_is_what_it_says(tmp_path: Path, depth: int, refused: bool) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"[" * depth + b"]" * depth)
    if refused:
        with pytest.raises(DataError, match=f"more than {DEEPEST} deep"):
            require_shallow([tmp_path / "rows.jsonl"])
    else:
        require_shallow([tmp_path / "rows.jsonl"])


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_that_are_no_text_are_an_error_with_the_file(tmp_path: Path, streaming: bool) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b'{"text": "caf\xe9", "label": "x"}\n')
    config = DatasetConfig(path=str(file), streaming=streaming, eval_rows=2)
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        list(load_rows(config, task="sequence-classification", seed=1).train)

"""Walking JSON in a file: keys, values and lists are where Python's reader has them, whatever the windows cut."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import ModelError
from entrenar_core.formats import json_scanning
from entrenar_core.formats.json_scanning import Scan
from entrenar_core.formats.json_texts import JsonError
from entrenar_core.formats.sources import FileSource

NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=9)
LISTS = st.lists(st.integers(-999, 999) | st.floats(allow_nan=False), max_size=40)
OTHERS = NAMES | st.integers() | st.booleans() | st.dictionaries(NAMES, LISTS, max_size=3)


def fail(what: str) -> ModelError:
    return ModelError(what, "")


def walked(path: Path) -> dict[str, Any]:
    """What a file holds: each list read from where it was said to lie."""
    found: dict[str, Any] = {}
    with FileSource(path) as source:
        scan = Scan(source, fail)
        for name in scan.members():
            if scan.next() != b"[":
                found[name] = json.loads(scan.value())
                continue
            place = scan.pass_list()
            found[name] = json.loads(b"[" + source.read(place.start, place.end - place.start) + b"]")
            assert place.values == len(found[name])
        scan.finish()
    return found


@given(st.dictionaries(NAMES, LISTS | OTHERS, max_size=5), st.integers(1, 40), st.sampled_from([None, 1]))
def test_what_is_walked_is_what_is_there(content: dict[str, Any], window: int, indent: int | None) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scanning, "WINDOW_BYTES", window)
        path = Path(folder) / "a.json"
        text = json.dumps(content, indent=indent)
        path.write_text(f" {text}\n")
        assert walked(path) == content
        path.write_text(text[:-1])
        with pytest.raises(JsonError, match="is not JSON"):
            walked(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"a":[1,[2]]}', "a bracket among values, before byte 10"),
        (b'{"a":[1', "ends at byte 7 before it is complete"),
        (b'{"a":1}x', "something follows its end at byte 7"),
        (b'{"a":1,}', "a key with a colon is missing at byte 7"),
        (b'{"a":1 "b":2}', "`,` is missing at byte 7"),
    ],
)
def test_what_is_broken_is_told(text: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(JsonError, match=complaint):
        walked(tmp_path / "a.json")


def test_a_hole_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a":[1,')
    with path.open("r+b") as file:
        file.truncate(10**9)
    with pytest.raises(ModelError, match="a zero at byte 8, where text should be"):
        walked(path)

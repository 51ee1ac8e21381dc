"""JSON that strangers wrote: it reads as Python has it, takes no more than was reckoned, and costs little if broken."""

import json
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.formats.json_texts import JsonError, built_bytes, members, parse, parse_object, without_list

ANY = re.compile(rb"(?!)(.)(.)")
"""Nothing is usual."""
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=30,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_members_are_those_of_the_object(content: dict[str, Any], escaped: bool, indent: int | None) -> None:
    text = json.dumps(content, ensure_ascii=escaped, indent=indent).encode()
    found = {name: json.loads(member[2]) for name, member in members(b" " + text + b"\n", ANY)}
    assert found == parse(text) == content


@given(st.dictionaries(TEXTS, VALUES, max_size=6), st.data())
def test_a_text_that_is_cut_is_an_error(content: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(content, ensure_ascii=False).encode()
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    for read in (parse, lambda text: list(members(text, ANY))):
        with pytest.raises(JsonError, match=r"^is not JSON"):
            read(cut)


def test_a_list_that_nobody_asks_for_is_emptied() -> None:
    content = {"model": {"vocab": {"merges": 1, '"merges": [': 2}, "merges": [["a", "]\\"], "b c", []], "z": [1]}}
    text = bytearray(json.dumps(content, indent=1).encode())
    without_list(text, "merges")
    content["model"]["merges"] = []
    assert parse(text) == content


GREEDY = {
    "lists": b"[],", "lists of one": b"[0],", "objects": b"{},", "objects of one": b'{"":0},', "floats": b"1e5,",
    "numbers": b"1000,", "texts": b'"ab",', "wide texts": '"é日",'.encode(), "very wide texts": '"a😀",'.encode(),
    "escaped": b'"\\u0416aaaa",', "escaped and very wide": b'"\\ud83d\\ude00aaaa",',
}  # fmt: skip


@pytest.mark.parametrize("what", GREEDY)
def test_no_text_takes_more_than_was_reckoned(what: str) -> None:
    text = b"[" + GREEDY[what] * 20_000 + b"0]"
    _assert_reckoned(text)


@pytest.mark.parametrize("member", ['"{0:x}":0', '"{0:x}":1{0}000', '"é{0:x}":[{0},"😀"]'])
def test_no_object_takes_more_than_was_reckoned(member: str) -> None:
    _assert_reckoned(("{" + ",".join(member.format(key) for key in range(20_000)) + "}").encode())


@pytest.mark.parametrize("text", ["a" * 999_999, "é" * 500_000, "😀" * 250_000, "a" * 999_999 + "😀"])
def test_no_long_text_takes_more_than_was_reckoned(text: str) -> None:
    _assert_reckoned(json.dumps([text], ensure_ascii=False).encode())


def _assert_reckoned(text: bytes) -> None:
    tracemalloc.start()
    try:
        found = parse(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found
    reserved = 4 * len(text)  # while it is decoded, and not touched
    assert peak < len(text) + max(built_bytes(text), reserved) + 100_000


BROKEN = {
    "nothing": (b"", "Expecting value"),
    "a zero": (b"[1,\0]", "a zero at byte 3"),
    "nested": (b"[" * 100_000, "nested too deep"),
    "a long number": (b"9" * 5000, "a number of thousands of digits"),
    "no UTF-8": (b'"\xff"', "not UTF-8"),
    "a mark": (b"\xef\xbb\xbf{}", "a byte order mark"),
    "NaN": (b"[NaN]", "NaN is no JSON"),
    "many lists": (b"[" + b"[]," * 3_000_000 + b"0]", "has more values than any file of its kind"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_told_without_words_of_python(what: str) -> None:
    text, complaint = BROKEN[what]
    with pytest.raises(JsonError, match=complaint) as refused:
        parse(text, constants=False)
    assert not re.search(r"set_int|4300|recursion|codec|utf-8-sig", str(refused.value))


def test_an_object_of_more_than_brackets_is_refused_before_it_is_walked() -> None:
    with pytest.raises(JsonError, match="more values"):
        list(members(b'{"a":' + b"[" * 8_000_001, ANY))


def test_what_is_nested_deeper_than_any_header_is_an_error() -> None:
    assert len(list(members(b'{"a":' + b"[" * 25 + b"]" * 25 + b"}", ANY))) == 1
    with pytest.raises(JsonError, match="nested more than 24 deep"):
        list(members(b'{"a":' + b"[" * 26 + b"]" * 26 + b"}", ANY))


def test_long_lists_are_read_in_pieces() -> None:
    values = [1.5, 'a,]\\"', None] * 100_000 + [[1], {"a": 2}] + ["é"] * 100_000
    content = {"a": values, "b": 1, "c": values[:300_000]}
    assert parse_object(json.dumps(content, ensure_ascii=False).encode(), dict) == content


@pytest.mark.parametrize("end", [b"]}", b" ]}", b",1]}", b"1}", b"nul]}"])
def test_a_long_list_that_ends_otherwise_is_no_json(end: bytes) -> None:
    with pytest.raises(JsonError, match="is not JSON"):
        parse_object(b'{"a":[' + b"1," * 600_000 + end, dict)

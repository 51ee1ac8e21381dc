"""README.md as two parts: whatever a stranger wrote there, it is read within bounds, and only what changes changes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.exporting.card import card_facts
from entrenar_core.exporting.card_files import (
    CardFile,
    escaped,
    front_matter,
    parse_card,
    read_card,
    rendered,
    with_values,
    without_local_paths,
)
from entrenar_core.exporting.card_measured import ExportedFile
from entrenar_core.exporting.card_writing import export_card

Q4 = ExportedFile("m-Q4_K_M.gguf", "gguf", 123_456_789, "Q4_K_M", 4.85)


def folder_with(tmp_path: Path, card: str) -> Path:
    (tmp_path / "README.md").write_text(card)
    return tmp_path


HOSTILE = {
    "never ends": "---\nlicense: mit\n# no end",
    "no mapping": "---\n- a\n- b\n---\nbody",
    "no yaml": "---\na: [\n---\nbody",
    "python": "---\nlicense: !!python/object/apply:os.system ['false']\n---\nbody",
    "laughs": "---\na: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghij")) + "---\n",
    "deep": "---\nlicense: " + "[" * 5000 + "]" * 5000 + "\n---\n",
    "itself": "---\ntags: &t [*t, a]\n---\n",
    "long": f"---\nlicense: {'x' * 300_000}\n---\nbody",
    "keys": "---\n? [a, b]\n: c\n1: 2\nlicense: {a: b}\n---\nbody",
    "braces": "---\n{license: mit, tags: [a]}\n---\nbody",
    "binary": "---\nlicense: \x00\x1b[31m\n---\n\x00",
    "twice": "---\ntags: [a]\ntags: [b]\n---\n---\ntags: [c]\n---\n",
    "our mark": "# x\n<!-- entrenar: files -->\nall the rest",
}  # fmt: skip


@pytest.mark.parametrize("card", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_card_is_read_as_what_it_is_and_gives_a_sound_one(tmp_path: Path, card: str) -> None:
    folder = folder_with(tmp_path, card)
    facts = card_facts(folder)
    assert all(isinstance(value, str) and len(value) <= 300 for value in (*facts.tags, facts.license or ""))
    made = parse_card(export_card(folder, [Q4], repo_id="org/model"))
    assert yaml.safe_load(made.front)["base_model"] == ["org/model"]
    assert "gguf" in yaml.safe_load(made.front)["tags"]
    body = parse_card(card.replace("\r\n", "\n")).body.rstrip()
    assert body in made.body


@given(text=st.text(max_size=400))
def test_any_text_is_a_card(text: str) -> None:
    card = parse_card(text)
    assert parse_card(rendered(card)).body.strip() in text.replace("\r\n", "\n")


_PLAIN = st.from_regex(r"[a-z][a-z ]{0,12}[a-z]|yes|null|1e3|0x1f|'|: ", fullmatch=True)


@given(
    before=st.dictionaries(st.sampled_from(["license", "tags", "x-y", "language"]), st.lists(_PLAIN) | _PLAIN),
    after=st.dictionaries(st.sampled_from(["tags", "license", "base_model"]), st.lists(_PLAIN, min_size=1) | _PLAIN),
    flow=st.sampled_from([True, False, None]),
)
def test_said_anew_is_what_is_read_and_all_else_is_as_before(
    before: dict[str, Any], after: dict[str, Any], *, flow: bool | None
) -> None:
    front = yaml.safe_dump(before, default_flow_style=flow, width=20)
    card = parse_card(f"---\n{front}---\nbody\n")
    changed = parse_card(rendered(with_values(card, after)))
    expected = {**before, **after}
    assert yaml.safe_load(changed.front or "{}") == expected
    assert changed.body == "body\n"
    assert rendered(with_values(card, {})) == (f"---\n{front}---\nbody\n" if card.values else rendered(card))


@given(name=st.text(max_size=40))
def test_a_name_stays_on_its_line_and_is_no_markup(name: str) -> None:
    shown = escaped(name)
    assert shown.isprintable()
    bare = shown.replace("&lt;", "").replace("&gt;", "")
    assert not set("<>") & set(bare)
    for special in "`*[]|":
        assert bare.count(special) == bare.count("\\" + special)


def test_paths_of_this_machine_are_cut_and_others_are_not(tmp_path: Path) -> None:
    told = f"a: {tmp_path}/x y: ~/models/z, `/v1/chat`, a/b/c, https://h.co/tmp/x and {tmp_path}/d/e.jsonl"
    assert without_local_paths(told) == "a: x y: z, `/v1/chat`, a/b/c, https://h.co/tmp/x and e.jsonl"


def test_a_card_that_is_too_large_or_no_file_is_none(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    (tmp_path / "README.md").mkdir()
    assert read_card(tmp_path) is None
    (tmp_path / "README.md").rmdir()
    assert read_card(folder_with(tmp_path, "x" * 4_000_001)) is None


def test_front_matter_leaves_out_what_is_not_known() -> None:
    assert front_matter({"license": None, "tags": [], "base_model": ("a/b",)}) == "base_model: [a/b]\n"
    assert rendered(CardFile("", "body")) == "body"

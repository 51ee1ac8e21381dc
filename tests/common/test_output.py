"""What a report becomes as JSON, what is safe to print, and which messages are wanted where."""

import io
import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_common import output, styles
from entrenar_common.output import View
from entrenar_common.reports import as_json
from entrenar_core.errors import OutputError, UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


class Task(Enum):
    EMBEDDING = "embedding"


class Level(IntEnum):
    HIGH = 3


@dataclass(frozen=True)
class Inner:
    where: Path
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Outer:
    task: Task
    inner: Inner
    by_layer: dict[int, Inner]
    tags: frozenset[str]
    began: datetime
    level: Level
    loss: float = math.inf


class Special(Outer):
    pass


INNER = Inner(Path("a/b"), (0.5, math.nan))
OUTER = Outer(Task.EMBEDDING, INNER, {3: INNER}, frozenset("ba"), datetime(2026, 1, 2, tzinfo=UTC), Level.HIGH)


@pytest.fixture(autouse=True)
def own_sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with output.fresh():
        yield


def test_a_report_becomes_plain_values_under_its_field_names() -> None:
    inner = {"where": "a/b", "scores": [0.5, None]}
    assert as_json(OUTER) == {
        "task": "embedding",
        "inner": inner,
        "by_layer": {"3": inner},
        "tags": ["a", "b"],
        "began": "2026-01-02T00:00:00+00:00",
        "level": 3,
        "loss": None,
    }


@given(VALUES)
def test_any_report_is_strict_json(value: object) -> None:
    text = json.dumps(as_json(value), allow_nan=False)
    assert json.loads(text) == as_json(value)


def test_what_json_has_no_place_for_is_a_bug() -> None:
    with pytest.raises(TypeError, match="holds object"):
        as_json({"x": object()})


def test_a_report_without_a_view_of_its_own_has_that_of_its_base(capsys: pytest.CaptureFixture[str]) -> None:
    special = Special(**vars(OUTER))
    assert output.current().show(special, lambda: {Outer: lambda report: report.task.value}) == 0
    assert capsys.readouterr().out == "embedding\n"
    with pytest.raises(LookupError, match="no view for Special"):
        output.current().show(special, dict)


def test_a_view_without_quiet_lines_is_silent_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    output.switch("quiet")
    output.current().show(OUTER, lambda: {Outer: View(lambda _: "seen")})
    assert capsys.readouterr().out == ""


def test_messages_go_to_stderr_and_details_only_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("a\x1b[31m\nb")
    output.warning("odd")
    output.detail("hidden")
    output.switch("verbose")
    output.detail("seen")
    assert capsys.readouterr() == ("", "a\\x1b[31m\n  b\nwarning: odd\nseen\n")


@pytest.mark.parametrize("mode", ["quiet", "json"])
def test_nobody_listens_when_quiet_or_when_a_program_reads(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.switch(mode)
    output.note("a")
    output.warning("b")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("one", "other"), [("json", "compact"), ("compact", "json"), ("quiet", "verbose")])
def test_modes_that_contradict_are_refused(one: str, other: str) -> None:
    output.switch(one)
    with pytest.raises(UsageError, match="exclude each other"):
        output.switch(other)


def test_a_sink_lasts_for_one_program() -> None:
    output.switch("json")
    with output.fresh():
        assert not output.current().json
        output.switch("quiet")
    assert output.current() == output.Sink(json=True)


def test_only_the_first_of_several_processes_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, said in (("1", ""), ("0", "a\nembedding\n")):
        monkeypatch.setenv("RANK", rank)
        output.note("a")
        output.current().show(OUTER, lambda: {Outer: lambda report: report.task.value})
        out, err = capsys.readouterr()
        assert err + out == said


def test_a_result_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device, not a path
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OutputError, match="No space left on device"):
            output.current().show(OUTER, lambda: {Outer: lambda _: "x"})


def test_tokens_appear_nowhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    stored = "hf_" + "aB3" * 12
    output.warning(f"refused s3cret and {stored}")
    output.current().show(OUTER, lambda: {Outer: lambda _: f"s3cret {stored}"})
    output.switch("json")
    output.current().show(Inner(Path("s3cret"), ()), dict)
    out, err = capsys.readouterr()
    assert "s3cret" not in out + err
    assert stored not in out + err
    assert err.startswith("warning: refused [token] and [token]")


@given(st.text())
def test_printable_text_has_no_character_that_acts(text: str) -> None:
    shown = styles.printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert text.isprintable() <= (shown == text)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_can_be_written_to_an_ascii_stream(text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.write(styles.safe_for(stream, text))
    stream.flush()

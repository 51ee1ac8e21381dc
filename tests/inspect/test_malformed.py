"""Malformed files of every format: each ends in one clear error, in time and in little memory, and leads nowhere."""

import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from malformed import CASES, write, write_outside
from measured_runs import Runner, Told

LIMIT_S, LIMIT_BYTES = 2.0, 200_000_000
HERE = Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), Path(__file__).parents[2].resolve()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("malformed").resolve()
    write_outside(folder)
    return folder


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_model_ends_in_one_clear_error(name: str, runner: Runner, corpus: Path) -> None:
    model, case = write(corpus, name), CASES[name]
    ran = runner.run(["info", model, "--allow-pickle"], ["validate", model, "--strict", "--allow-pickle"])
    assert ran.status == 0, ran
    info, validation = ran.told
    if case.odd:
        assert info.status == 0, info.err
    else:
        assert info.status == 1
        assert re.fullmatch(r"error: .+\n(hint: .+\n)?", info.err, re.DOTALL), info.err
    assert validation.status == 1
    assert re.search(case.says, _joined(info) + _joined(validation)), (info, validation)
    for told in ran.told:
        _assert_harmless(told)
    assert ran.peak_bytes < LIMIT_BYTES
    assert not ran.did
    assert not [path for path in ran.opened if not _may_be_read(path, corpus / name)]


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_model_leaves_nothing_half_written(name: str, runner: Runner, tmp_path: Path) -> None:
    """What `info` reads may be converted: to a model that is sound, or to none at all."""
    write_outside(tmp_path)
    model, output = write(tmp_path, name), tmp_path / "written" / "model.safetensors"
    convert = ["convert", model, "--to", "safetensors", "-o", output, "--allow-pickle"]
    ran = runner.run(["layers", model, "--stats", "--allow-pickle"], convert, ["info", output])
    assert ran.status == 0, ran
    for told in ran.told:
        assert told.status in (0, 1), told.err
        _assert_harmless(told)
    _, conversion, written = ran.told
    assert conversion.status == written.status == int(not output.exists())
    assert output.exists() or not output.parent.exists()
    assert not ran.did


def _joined(told: Told) -> str:
    """What was said, as one line: tables break it anywhere."""
    return " ".join((told.out + told.err).split())


def _assert_harmless(told: Told) -> None:
    assert told.seconds < LIMIT_S
    said = told.out + told.err
    assert "Traceback" not in said
    steering = {
        character for character in said if character != "\n" and unicodedata.category(character) in ("Cc", "Cf")
    }
    assert not steering, steering
    assert len(said) < 100_000  # a long name is shown in a few places


def _may_be_read(path: str, folder: Path) -> bool:
    found = Path(path)
    return found.is_relative_to(folder) or any(found.is_relative_to(own) for own in HERE)

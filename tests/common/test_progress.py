"""Progress in a log: few lines, true numbers, silence where silence is asked for. (The live one: test_processes.)"""

from collections.abc import Iterator

import pytest

from entrenar_common import output, progress
from entrenar_common.progress import Progress


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    monkeypatch.delenv("RANK", raising=False)
    with output.fresh():
        yield clock


def work(clock: Clock, seconds: int, total: float | None, unit: str = "steps", each: float = 1, note: str = "") -> None:
    with Progress() as display:
        task = display.task("training", total, unit)
        for _ in range(seconds):
            clock.now_s += 1
            task.advance(each, note=note)


def test_a_log_hears_of_the_work_and_of_its_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 25, total=25, note="loss 2.31")
    assert capsys.readouterr() == (
        "",
        "training: 10/25 steps, 1.0/s, 15s left, loss 2.31\n"
        "training: 20/25 steps, 1.0/s, 5s left, loss 2.31\n"
        "training: 25/25 steps in 25s, loss 2.31\n",
    )


def test_a_download_is_counted_in_bytes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 20, total=98_200_000, unit="bytes", each=4_910_000)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "training: 49.1 MB of 98.2 MB, 4.9 MB/s, 10s left"
    assert last == "training: 98.2 MB of 98.2 MB in 20s"


def test_without_a_total_nothing_is_promised(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 12, total=None, unit="rows", each=250)
    assert capsys.readouterr().err == "training: 2,500 rows, 250/s\ntraining: 3,000 rows in 12s\n"


def test_slow_work_gives_the_time_of_one_piece(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as display:
        task = display.task("searching", total=10, unit="runs")
        clock.now_s += 90
        task.advance()
        assert capsys.readouterr().err == "searching: 1/10 runs, 1m 30s each, 13m 30s left\n"


def test_a_resumed_task_is_timed_from_where_it_began(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as display:
        task = display.task("training", total=1000, unit="steps", completed=900)
        clock.now_s += 10
        task.update(completed=910)
        assert capsys.readouterr().err == "training: 910/1,000 steps, 1.0/s, 1m 30s left\n"


def test_a_day_of_work_gives_a_log_that_can_be_read(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 86_400, total=86_400)
    assert 100 < len(capsys.readouterr().err.splitlines()) < 250


def test_what_takes_no_time_leaves_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as display:
        for _ in range(100):
            display.task("file", total=1).advance()
    assert capsys.readouterr().err == ""


def fail_at_work(clock: Clock) -> None:
    with Progress() as display:
        task = display.task("training", total=10)
        clock.now_s += 5
        task.advance()
        raise KeyError


def test_work_that_failed_does_not_claim_its_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError):
        fail_at_work(clock)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["quiet", "json"])
def test_nothing_is_shown_when_quiet_or_when_a_program_reads(
    mode: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    output.switch(mode)
    work(clock, 100, total=100)
    assert capsys.readouterr() == ("", "")

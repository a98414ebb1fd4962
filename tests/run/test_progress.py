"""What is said of the time left, and work spread over processes."""

from __future__ import annotations

import pytest

from wsss.run import progress
from wsss.run.pool import parallel
from wsss.run.progress import Lines, duration, track


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, as its only entry."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"), (-3, "0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_come_at_their_time_and_the_rest_is_estimated_from_the_rate(clock, capsys) -> None:
    lines = Lines("work", 10, every=15)
    for _ in range(4):
        clock[0] += 10
        lines.advance()
    lines.advance(count=5)  # at the same moment: no line
    clock[0] += 5
    lines.advance("done")
    assert capsys.readouterr().out.splitlines() == [
        "work: 2/10, 1 min 20 s left",
        "work: 4/10, 1 min 00 s left",
        "work: 10/10 in 45 s, done",
    ]


def test_chunks_count_for_what_they_hold(clock, capsys) -> None:
    def chunks():
        for chunk in ([1, 2, 3], [4, 5, 6], [7]):
            clock[0] += 30
            yield chunk

    assert list(track(chunks(), "work", 7, len)) == [[1, 2, 3], [4, 5, 6], [7]]
    assert capsys.readouterr().out.splitlines() == [
        "work: 3/7, 40 s left",
        "work: 6/7, 10 s left",
        "work: 7/7 in 1 min 30 s",
    ]


def square(n: int) -> int:
    if n == 1000:
        raise ValueError("a thousand")
    return n * n


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 17, 100])
def test_results_are_in_order_whatever_the_number_of_processes(
    count: int, workers: int, capsys
) -> None:
    assert parallel(square, list(range(count)), "work", workers) == [n * n for n in range(count)]
    out = capsys.readouterr().out
    assert f"work: {count}/{count} in" in out if count else out == ""


def test_an_error_in_another_process_is_raised_here() -> None:
    with pytest.raises(ValueError, match="a thousand"):
        parallel(square, [1, 2, 1000, 4], "work", 2)

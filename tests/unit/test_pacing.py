"""How the pool's thread paces its looks at the pipes."""

from __future__ import annotations

import pytest
from unit.scheduling import Bench

from snakepit._pool import pacing
from snakepit._pool.pacing import DEEP, GATHER_S, LEAST_AHEAD, SLEPT_S, Pace


@pytest.mark.parametrize(
    ("ahead", "queued", "pauses"),
    [(LEAST_AHEAD, 0, [GATHER_S]), (LEAST_AHEAD - 1, 0, []), (LEAST_AHEAD, DEEP, []), (0, 0, [])],
)
def test_answers_gather_while_the_workers_have_work(
    monkeypatch: pytest.MonkeyPatch, ahead: int, queued: int, pauses: list[float]
) -> None:
    """There is a pause only where no worker runs dry in it, and the thread would have little to do without it."""
    bench = Bench(1, min_workers=0)
    for number in range(queued):
        bench.submit(f"r{number}")
    bench.board.ahead = ahead
    slept: list[float] = []
    monkeypatch.setattr(pacing, "sleep", slept.append)

    Pace(bench.board).gather()

    assert pauses == slept


def test_a_look_knows_since_when_there_was_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one that found something at once that is the look before it, after one that slept its own beginning."""
    board = Bench().board
    pace = Pace(board)
    ends = iter([10.0, 20.0, 30.0 + 2 * SLEPT_S, 40.0 + 2 * SLEPT_S])
    monkeypatch.setattr(pacing, "monotonic_s", lambda: next(ends))

    known = []
    for began, may_sleep in ((10.0, True), (20.0, True), (30.0, True), (40.0, False)):
        pace.looked(began, may_sleep=may_sleep)
        known.append(board.looked_at)

    assert [0.0, 10.0, 30.0, 30.0 + 2 * SLEPT_S] == known

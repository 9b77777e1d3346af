"""Every way in which a worker can misbehave, in every state: one truth each, and the pool goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_table.cells import CELLS
from crash_table.drivers import BUDGET, FOLLOWERS, TINY_S, Stage, drive, numbers
from crash_table.knobs import KNOBS
from crash_table.model import Cell, State
from integration.workers.pools import LIMIT_S, balance, lines

from snakepit import WorkerStartError
from snakepit._core import dispatcher

from gates import Gate
from leaks import is_gone, wait_until

BY_NAME = {knob.name: knob for knob in KNOBS}


@pytest.fixture(autouse=True)
def steady_service_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are sent ahead whatever a call has taken: how long it was is a matter of the machine."""

    def keep(worker: object, _: float) -> None:
        worker.service_s = TINY_S  # type: ignore[attr-defined]

    monkeypatch.setattr(dispatcher, "note_time", keep)


def test_every_cell_is_in_the_table_once() -> None:
    """No combination of a knob and a state is silently left out, and what is left out has a reason."""
    wanted = Counter((name, state) for name in BY_NAME for state in State)

    assert wanted == Counter((cell.knob, cell.state) for cell in CELLS)
    assert all(cell.left_out == "" or len(cell.left_out) > 20 for cell in CELLS)


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in CELLS if not cell.left_out])
def test_cell(cell: Cell, tmp_path: Path, make_gate: Callable[[], Gate]) -> None:
    """The call fails with the cause, or has its result; the numbers are true; the next is served; nothing is left."""
    stage = Stage(cell, BY_NAME[cell.knob], tmp_path, make_gate(), make_gate())

    seen = drive(stage)

    assert cell.error is (None if seen.error is None else type(seen.error))
    told = seen.error
    if cell.state is State.STARTING and told is not None:
        told = told.__cause__
        assert isinstance(told, WorkerStartError)
        assert BUDGET == len(seen.started)
    assert cell.text in str(told)
    assert cell.pid == ("none" if seen.pids[0] is None else "same" if seen.pids[0] == seen.pids[1] else "new")
    assert numbers(cell) == seen.stats
    assert seen.stats.requests == balance(seen.stats)
    assert cell.end == seen.exits[1]
    if seen.others:
        # The sabotaged request ran once; each one behind it as well, in order, and all have their results.
        assert FOLLOWERS[: len(seen.others)] == seen.others
        assert ["done", *map(str, seen.others)] == lines(stage.log)
    assert all(is_gone(pid) for pid in seen.started)
    # Killed, a grandchild may be seen on its last steps: its memory is gone, and with it what tells whose it is.
    wait_until(lambda: all(is_gone(int(pid)) for pid in lines(stage.grandchildren)), LIMIT_S, "no grandchild is left")


def test_garbage_that_nobody_waited_for_is_logged(
    tmp_path: Path, make_gate: Callable[[], Gate], caplog: pytest.LogCaptureFixture
) -> None:
    """No caller is told why an idle worker was replaced, so the log tells, with the bytes seen."""
    cell = next(cell for cell in CELLS if cell.id == "idle-text_on_stream")

    drive(Stage(cell, BY_NAME[cell.knob], tmp_path, make_gate(), make_gate()))

    told = [record.getMessage() for record in caplog.records if record.name == "snakepit.pool"]
    assert ["broke the protocol" in text and "loaded 3 models" in text for text in told] == [True]

"""The public test tools."""

from __future__ import annotations

import threading

import pytest

from snakepit import CommandError, ProtocolError, SnakepitExecutor, WorkerDied
from snakepit.testing import FakeClock, ScriptedAdapter, ThreadSequencer


def test_clock_moves_when_told() -> None:
    """A fake clock stands still until it is advanced."""
    clock = FakeClock(5.0)

    before = clock()
    clock.advance(2.5)

    assert (5.0, 7.5) == (before, clock())


def test_clock_never_goes_back() -> None:
    """A negative step is refused."""
    with pytest.raises(ValueError, match="back"):
        FakeClock().advance(-1)


def test_blocks_run_in_their_order() -> None:
    """Blocks run by number, whichever thread comes first."""
    sequence, order = ThreadSequencer(), []

    def second() -> None:
        with sequence(1):
            order.append(1)

    thread = threading.Thread(target=second)
    thread.start()
    with sequence(0):
        order.append(0)
    with sequence(2):
        order.append(2)
    thread.join(10)

    assert [0, 1, 2] == order


def test_a_missing_block_ends_the_wait() -> None:
    """A block whose turn does not come raises, and so do those after it."""
    sequence = ThreadSequencer(timeout_s=0.01)

    with pytest.raises(TimeoutError, match="block 0"), sequence(1):
        pytest.fail("ran before its turn")

    with pytest.raises(TimeoutError), sequence(0):
        pytest.fail("ran after the sequence broke")


def test_a_block_runs_once() -> None:
    """A place that was used is refused."""
    sequence = ThreadSequencer()
    with sequence(0):
        pass

    with pytest.raises(RuntimeError, match="already"), sequence(0):
        pytest.fail("ran twice")


def test_script_is_followed() -> None:
    """Each kind of step has its effect, and the pool goes on with a worker at the first step."""
    steps = [
        {"expect": "add", "args": {"a": 1}, "result": 2},
        {"expect": "fail", "error": "no"},
        {"expect": "die", "exit": 3},
    ]
    with SnakepitExecutor(ScriptedAdapter(steps), max_workers=1) as ex:
        result = ex.execute("add", {"a": 1})
        with pytest.raises(CommandError, match="no"):
            ex.execute("fail")
        with pytest.raises(WorkerDied) as died:
            ex.execute("die")
        again = ex.execute("add", {"a": 1})

    assert (2, 3, 2) == (result, died.value.exit_code, again)


def test_script_refuses_what_it_does_not_expect() -> None:
    """Another command, other args and a command after the end are errors that say so."""
    with SnakepitExecutor(ScriptedAdapter([{"expect": "add", "args": {"a": 1}}]), max_workers=1) as ex:
        with pytest.raises(CommandError, match="expects"):
            ex.execute("add", {"a": 2})
        with pytest.raises(CommandError, match="at its end"):
            ex.execute("add", {"a": 1})


def test_script_may_break_the_protocol() -> None:
    """Raw bytes reach the host as they are."""
    with (
        SnakepitExecutor(ScriptedAdapter([{"expect": "x", "raw": "hello, world"}]), max_workers=1) as ex,
        pytest.raises(ProtocolError, match="hello, world"),
    ):
        ex.execute("x")


def test_a_bad_step_is_refused() -> None:
    """A step without an expected command is a TypeError that shows it."""
    with pytest.raises(TypeError, match="expect"):
        ScriptedAdapter([{"result": 1}])


def test_a_long_script() -> None:
    """A script beyond what one word of a command line may hold is followed all the same."""
    text = "\u20ac" * 30_000
    with SnakepitExecutor(ScriptedAdapter([{"expect": "a", "result": text}]), max_workers=1) as ex:
        assert text == ex.execute("a")


def test_a_script_beyond_the_limit_is_refused() -> None:
    """The constructor says how long it is, and how long it may be."""
    with pytest.raises(ValueError, match=r"of 600,\d\d\d bytes .* at most 524,288"):
        ScriptedAdapter([{"expect": "a", "result": "x" * 600_000}])


def test_a_long_bad_step_is_shown_in_part() -> None:
    """A message is for reading."""
    with pytest.raises(TypeError, match="expect") as refused:
        ScriptedAdapter([{"result": "x" * 600_000}])

    assert len(str(refused.value)) < 300

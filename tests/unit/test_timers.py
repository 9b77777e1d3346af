"""Deadlines: their order, their replacement, and what stale ones leave behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from snakepit._core.timers import Timers


class Owner:
    def __init__(self) -> None:
        self.timer: Any = None


def test_due_in_order() -> None:
    """Deadlines come out earliest first, and only once they are due."""
    timers = Timers()
    late, soon = Owner(), Owner()
    timers.set(late, 20.0, "late")
    timers.set(soon, 10.0, "soon")

    assert 10.0 == timers.next_deadline()
    assert timers.pop_due(9.9) is None
    assert ("soon", soon) == timers.pop_due(25.0)
    assert ("late", late) == timers.pop_due(25.0)
    assert timers.pop_due(25.0) is None
    assert timers.next_deadline() is None
    assert soon.timer is None


def test_equal_deadlines_in_order_of_setting() -> None:
    """Of two equal deadlines the one that was set first comes first."""
    timers = Timers()
    first, second = Owner(), Owner()

    timers.set(first, 1.0, "run")
    timers.set(second, 1.0, "run")

    assert ("run", first) == timers.pop_due(1.0)
    assert ("run", second) == timers.pop_due(1.0)


def test_new_deadline_replaces_the_old() -> None:
    """An owner has one deadline: the last one that was set."""
    timers = Timers()
    owner = Owner()
    timers.set(owner, 1.0, "queue")

    timers.set(owner, 5.0, "run")

    assert 1 == len(timers)
    assert timers.pop_due(4.0) is None
    assert ("run", owner) == timers.pop_due(5.0)


def test_cleared_deadline_is_gone_and_holds_nothing() -> None:
    """A cleared deadline is never due, and keeps its owner alive no longer."""
    timers = Timers()
    other, owner = Owner(), Owner()
    timers.set(other, 0.5, "x")
    timers.set(owner, 1.0, "x")
    ref = weakref.ref(owner)

    timers.clear(owner)
    timers.clear(owner)
    del owner
    gc.collect()

    assert ref() is None
    assert 1 == len(timers)
    assert ("x", other) == timers.pop_due(2.0)
    assert timers.pop_due(2.0) is None


def test_stale_deadlines_do_not_pile_up() -> None:
    """100,000 deadlines that were set and cleared leave a small heap."""
    timers = Timers()
    keeper = Owner()
    timers.set(keeper, 1e9, "keep")
    owner = Owner()

    for deadline in range(100_000):
        timers.set(owner, float(deadline), "run")
        timers.clear(owner)

    assert 1 == len(timers)
    assert 100 > len(timers._heap)
    assert 1e9 == timers.next_deadline()

"""Blocks in which Ctrl-C does not raise, and who may have them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from snakepit._pool import interrupts
from snakepit._pool.interrupts import Deferred


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the handlers of signals as they were."""
    asked = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM]
    before = {number: signal.getsignal(number) for number in asked}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_one_ctrl_c_is_raised_at_the_end() -> None:
    """However many come in the block; the block runs to its end."""
    steps = []
    with pytest.raises(KeyboardInterrupt) as raised, Deferred() as safe:
        assert safe
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        steps.append(1)

    assert [1] == steps
    assert raised.value.__context__ is None
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT)


def test_a_block_that_raises() -> None:
    """Its error goes on; after Ctrl-C that is what is raised, and the error its context."""
    with pytest.raises(ValueError, match="mine"), Deferred():
        raise ValueError("mine")
    with pytest.raises(KeyboardInterrupt) as raised, Deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")

    assert isinstance(raised.value.__context__, ValueError)
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_silent_handlers_stay(handler: Any) -> None:
    """Where Ctrl-C raises nothing there is nothing to defer."""
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with Deferred() as safe:
        assert safe
        assert handler is signal.getsignal(signal.SIGINT)
    assert handler is signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM])
def test_handlers_of_the_users(number: signal.Signals) -> None:
    """They might raise between any two steps, so the block promises nothing and changes nothing."""

    def handler(*_: Any) -> None:
        raise RuntimeError("of the user's")

    with Deferred() as before:
        pass
    signal.signal(number, handler)
    with Deferred() as safe:
        assert handler is signal.getsignal(number)
    signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    with Deferred() as after:
        pass

    assert (True, False, True) == (before, safe, after)


def test_other_threads_are_safe_whatever_the_handlers() -> None:
    """Handlers run on the main thread only."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    seen: list[Any] = []

    def block() -> None:
        with Deferred() as safe:
            seen.extend((safe, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join(20)

    assert [True, signal.default_int_handler] == seen


def test_a_block_within_a_block_is_not_safe() -> None:
    """The outer one's handler is no default; it stays."""
    with pytest.raises(KeyboardInterrupt), Deferred() as outer:
        with Deferred() as inner:
            signal.raise_signal(signal.SIGINT)
        went_on = True

    assert (True, False, True) == (outer, inner, went_on)


def test_a_forked_child_gets_the_default_back() -> None:
    """The handler of a block that goes on elsewhere is replaced, and nobody else's."""
    with Deferred():
        interrupts._after_fork()
        assert signal.default_int_handler is signal.getsignal(signal.SIGINT)
    mine = lambda *_: None  # noqa: E731
    signal.signal(signal.SIGINT, mine)
    interrupts._after_fork()
    assert mine is signal.getsignal(signal.SIGINT)

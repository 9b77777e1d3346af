"""Steps of a caller's thread between which no signal handler may raise.

Runs on callers' threads; owns the SIGINT handler for the length of one block.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # not in typeshed; see `_ASKED`
import os
import signal
import threading
from types import FrameType

__all__ = ("Deferred",)

# Asked through `_signal`: the public module turns each handler into an enum member, 0.5 us for each of 64 signals.
_ASKED = tuple(sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_SILENT = (signal.SIG_DFL, signal.SIG_IGN, None)


def _is_tame(handlers: list[object]) -> bool:
    """Say whether Ctrl-C is all that can raise, and raises what it does without anybody's doing."""
    for number, handler in zip(_ASKED, handlers, strict=True):
        if handler in _SILENT or (number == signal.SIGINT and handler is signal.default_int_handler):
            continue
        return False
    return True


class Deferred:
    """A block in whose middle Ctrl-C does not raise; it does at the end, some milliseconds later.

    ``with Deferred() as safe``: ``safe`` is False where that cannot be promised, since other handlers of
    signals are written in Python, and might raise.  Signals are handled on the main thread: on the others
    the block costs and does nothing.
    """

    # RACE: 1. a caller has read a reply off the pipe, 2. Ctrl-C raises before the bytes are kept: the worker's
    # stream is torn.  Signals cannot be blocked, since the interpreter runs its handlers between any two steps
    # of the main thread; so the handler there only takes a note
    # (tests/integration/test_direct_interrupts.py::test_ctrl_c_between_any_two_steps).
    __slots__ = ("_noted", "_swapped")

    # INVARIANT: the last handlers that were found to be tame; main thread only.
    _tame: list[object] | None = None

    def __enter__(self) -> bool:
        self._swapped = False
        if threading.get_ident() != threading.main_thread().ident:
            return True
        handlers = list(map(_signal.getsignal, _ASKED))
        if handlers != Deferred._tame:
            if not _is_tame(handlers):
                return False
            Deferred._tame = handlers
        self._noted = False
        # SIG_IGN and SIG_DFL stay: the one does nothing, the other ends the process.
        if handlers[_SIGINT_PLACE] is signal.default_int_handler:
            self._swapped = True
            _signal.signal(signal.SIGINT, self._note)
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True

    def __exit__(self, *_: object) -> None:
        if self._swapped:
            _signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._noted:
                raise KeyboardInterrupt


_SIGINT_PLACE = _ASKED.index(signal.SIGINT)


def _after_fork() -> None:
    # RACE: 1. the main thread begins a block, 2. another one forks: in the child nobody ends the block, and
    # Ctrl-C would mean nothing
    # (tests/integration/test_direct_interrupts.py::test_a_child_of_another_thread_hears_ctrl_c).
    if getattr(_signal.getsignal(signal.SIGINT), "__func__", None) is Deferred._note:
        _signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(after_in_child=_after_fork)

"""The pools of this process: closed at interpreter exit, abandoned in a forked child.

Called from any thread; owns the set of live pools.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

from .._core import model as m
from .._inbox import Inbox
from ..errors import PoolBroken
from .ledger import Ledger
from .manager import Manager

__all__ = ("INTERRUPTS", "close", "forget", "leave", "remember")

INTERRUPTS = (KeyboardInterrupt, SystemExit)
"""What means that a program is to end; SystemExit also as raised by a user's signal handler."""

# LOCK: protects `_live`; never held while calling out.
_lock = threading.Lock()
_live: dict[Manager, tuple[Inbox, Ledger]] = {}
_exiting = False


def remember(manager: Manager, inbox: Inbox, ledger: Ledger) -> None:
    """Note a pool that was started.

    Raises:
        RuntimeError: The interpreter is shutting down; raised here.
    """
    with _lock:
        if _exiting:
            raise RuntimeError("cannot start a pool after interpreter shutdown")
        _live[manager] = (inbox, ledger)


def forget(manager: Manager) -> None:
    """Note that a pool has ended."""
    with _lock:
        _live.pop(manager, None)


def close(inbox: Inbox, ledger: Ledger, reason: str = "cannot schedule new futures after shutdown") -> None:
    """Shut the door of a pool and let it finish what was accepted."""
    ledger.refuse(lambda: RuntimeError(reason), final=True)
    inbox.post(m.ShutdownRequested())


def leave(steps: Iterable[Callable[[], object]]) -> BaseException | None:
    """Take the first step to its end; while steps are interrupted, go on with the next, less patient one.

    Returns:
        The first interrupt, or None.
    """
    first: BaseException | None = None
    for step in steps:
        try:
            step()
            break
        except INTERRUPTS as interrupt:
            first = first or interrupt
    return first


def _at_exit() -> None:
    global _exiting
    with _lock:
        _exiting = True
        pools = list(_live.items())
    for _, (inbox, ledger) in pools:
        close(inbox, ledger, "cannot schedule new futures after interpreter shutdown")
    for manager, _ in pools:
        manager.join()


def _in_child() -> None:
    global _lock
    _lock = threading.Lock()
    pools = list(_live.items())
    _live.clear()
    for manager, (inbox, ledger) in pools:
        inbox.replace_lock()
        pending = ledger.abandon(_forked)
        manager.abandon()
        inbox.close()
        for request in pending:
            request.future.fail_after_fork(_forked())


def _forked() -> PoolBroken:
    return PoolBroken("forked: this process is a fork of the pool's host; the pool serves its parent only")


os.register_at_fork(after_in_child=_in_child)
# Runs before the interpreter joins its threads, as for the standard pools.
# Source: CPython 3.11, Lib/concurrent/futures/process.py (_python_exit).
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # no public hook runs early enough

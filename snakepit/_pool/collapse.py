"""The end of a pool whose own thread has failed: nobody is left waiting, no process is left.

THREAD: manager.  Owns no state; whatever of the pool's may be broken, each step is taken.
"""

from __future__ import annotations

from collections.abc import Iterable

from .._core import model as m
from .._core.board import fresh
from .._core.scheduler import Scheduler
from .._supervision.watchdog import Watchdog
from ..errors import PoolBroken
from .ledger import Ledger
from .quiet import QuietLogger, quietly
from .settling import Settler

__all__ = ("collapse",)

_log = QuietLogger("snakepit.pool")


def collapse(
    name: str,
    error: BaseException,
    undone: Iterable[object],
    scheduler: Scheduler,
    ledger: Ledger,
    settler: Settler,
    watchdog: Watchdog,
) -> None:
    """Shut the door, kill every process and fail every future and waiter with ``PoolBroken``.

    Args:
        name: The pool's.
        error: What its thread has failed with.
        undone: Actions that were decided and not taken, but for those of an event that the scheduler raised on.
        scheduler: Its state may be anything.
        ledger: Knows every request that has not ended.
        settler: Tells users.
        watchdog: Ends the processes.
    """
    cause = "" if error.__cause__ is None else f": {error.__cause__!r}"
    broken = PoolBroken(f"pool {name!r}: its manager failed: {error!r}{cause}")
    broken.__cause__ = error
    quietly(ledger.refuse_with, broken)
    quietly(watchdog.kill_all)
    _log.critical("pool %r: its manager failed", name, exc_info=error)
    quietly(_tell_waiters, undone, scheduler, broken)
    for request in ledger.pending():
        quietly(settler.fail_all, [request], fresh(broken))
    settler.settle()


def _tell_waiters(undone: Iterable[object], scheduler: Scheduler, broken: PoolBroken) -> None:
    decided = (*undone, *scheduler.board.actions)
    waiters = [action.waiter for action in decided if isinstance(action, m.Notify)]
    waiters += [notice.waiter for notice in scheduler.give_up_waiters(broken)]
    for waiter in waiters:
        quietly(waiter.set_exception, fresh(broken))

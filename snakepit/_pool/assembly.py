"""A pool put together from its parts and started.

Runs on the thread that makes the executor; owns nothing: the parts go to the caller.
"""

from __future__ import annotations

from typing import Any

import attrs

from .._core.scheduler import Scheduler
from .._inbox import Inbox
from ..adapters import Adapter
from ..config import PoolConfig
from . import lifetime
from .launch import Launcher
from .ledger import Ledger
from .loans import Lender
from .manager import Manager

__all__ = ("Parts", "start_pool")


@attrs.frozen
class Parts:
    """The parts of a running pool that its executor speaks to."""

    inbox: Inbox
    ledger: Ledger
    manager: Manager
    lender: Lender


def start_pool(
    adapter: Adapter,
    config: PoolConfig,
    name: str,
    preparation: Any,
    *,
    size: int,
    least: int,
    max_queue_size: int | None,
) -> Parts:
    """Start a pool.

    Args:
        adapter: What the workers are.
        config: Everything about the pool that is not below.
        name: The pool's.
        preparation: Builds the first pickle of a callable worker, or None.
        size: Most workers, >= 1.
        least: Workers to keep, 0 to ``size``.
        max_queue_size: Unsettled requests beyond ``size``, >= 0; None: any number.

    Raises:
        WorkerStartError: The adapter's program or script is not there.
        RuntimeError: The interpreter is shutting down.
    """
    launcher = Launcher(adapter, name, preparation)
    inbox = Inbox()
    limit = None if max_queue_size is None else size + max_queue_size
    ledger = Ledger(inbox, limit, config.max_queued_bytes)
    try:
        manager = Manager(
            scheduler=Scheduler(name, size, least, config),
            inbox=inbox,
            ledger=ledger,
            launcher=launcher,
            adapter=adapter,
            config=config,
            name=name,
            on_end=lifetime.forget,
        )
        lifetime.remember(manager, inbox, ledger)
        try:
            manager.start()
        except BaseException:
            if manager.is_running:
                lifetime.close(inbox, ledger)
                manager.join()
            lifetime.forget(manager)
            raise
    except BaseException:
        inbox.close()
        raise
    return Parts(inbox, ledger, manager, manager.lender)

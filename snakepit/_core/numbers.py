"""What users see of a pool: its numbers, and its workers, at one instant.

Pure data; no thread, no I/O.
"""

from __future__ import annotations

import attrs

__all__ = ("PoolStats", "WorkerInfo")


@attrs.frozen
class PoolStats:
    """The pool's numbers at one instant.

    Always ``requests == completed + errors + cancelled + queue_timeouts + command_timeouts
    + queued + running``.

    Attributes:
        workers: Processes that live, those being ended included.
        available: Workers ready for a request.
        busy: Workers that run one.
        starting: Workers before the end of their handshake.
        queued: Accepted and not yet the oldest request of a worker.
        running: The oldest request of some worker.
        requests: Accepted; a chunk counts its items.
        completed: Ended with a result.
        errors: Ended with an error of any kind that has no counter of its own.
        cancelled: Ended by ``cancel`` or by the pool's shutdown.
        queue_timeouts: Waited too long and never ran.
        command_timeouts: Ran too long.
        pool_saturated: Refused with ``QueueFull`` (not in ``requests``).
        restarts: Workers started in the place of one that ended unasked.
        recycled: Workers replaced as planned.
    """

    workers: int = 0
    available: int = 0
    busy: int = 0
    starting: int = 0
    queued: int = 0
    running: int = 0
    requests: int = 0
    completed: int = 0
    errors: int = 0
    cancelled: int = 0
    queue_timeouts: int = 0
    command_timeouts: int = 0
    pool_saturated: int = 0
    restarts: int = 0
    recycled: int = 0


@attrs.frozen
class WorkerInfo:
    """One worker at one instant.

    Attributes:
        worker_id: Name of this incarnation; never used again.
        slot: Place in the pool, 0 to ``max_workers - 1``.
        incarnation: 1 for the slot's first process, rising.
        pid: Process id, None before the spawn.
        state: "starting", "idle", "checking", "busy" or "condemned".
        sessions: Ids of the sessions bound to it.
        requests: Requests it has answered.
        uptime_s: Seconds since its spawn.
        rss_bytes: Resident memory of its process group when last measured, else of the process now; None
            if unknown.
    """

    worker_id: str
    slot: int
    incarnation: int
    pid: int | None
    state: str
    sessions: tuple[str, ...]
    requests: int
    uptime_s: float
    rss_bytes: int | None

"""How much one worker is given at a time: of a bulk, and ahead of a request's turn; by what recent ones took.

Pure; used by the dispatcher.
"""

from __future__ import annotations

from .model import Request, RequestKind, Worker

__all__ = ("is_light", "is_tiny", "most_ahead", "note_haste", "note_time", "part_size")

MAX_AHEAD = 64
"""Most requests in one worker's pipe.  Measured (benchmarks/throughput.py): more gains nothing."""

AHEAD_S = 0.005
"""Most work, in seconds of recent service time, that is sent ahead to one worker."""

MAX_AHEAD_BYTES = 8192
"""Largest request that is sent ahead: 64 of them do not fill more than a few pipes' worth.  Arbitrary."""

PART_S = 0.003
"""Work, in seconds of recent service time, that travels together: a turn of the pool's thread is dear beside less."""

LEAST_S = 0.0002
"""Work that is not shared out any further: another worker would not be faster."""

SLOW_S = 0.0004
"""Items that take longer travel one by one.  A single one's time includes that of its way, some 0.1 ms."""

MAX_PART = 512
"""Most items that travel together.  Measured (benchmarks/maps.py): more gains nothing."""


def part_size(worker: Worker, items: int, workers: int) -> int:
    """Return how many of a bulk's items go to a worker at a time, >= 1.

    Args:
        worker: An idle one.
        items: Those left, >= 1.
        workers: Those that share them.
    """
    item_s = worker.item_s
    if not worker.can_batch or item_s is None or item_s > SLOW_S:
        return 1
    item_s = max(item_s, 1e-6)
    # The last ones are shared out in smaller and smaller parts, so that all workers end together.
    share = max(-(-items // (2 * workers)), int(LEAST_S / item_s))
    return min(MAX_PART, int(PART_S / item_s), share, items)


def most_ahead(worker: Worker) -> int:
    """Return how many requests may be in a worker's pipe at a time; 0 where nothing is known of it."""
    return 0 if worker.service_s is None else min(MAX_AHEAD, int(AHEAD_S / max(worker.service_s, 1e-6)))


def note_time(worker: Worker, service_s: float) -> None:
    """Follow the service time: at once upwards, smoothly downwards."""
    old = worker.service_s
    worker.service_s = service_s if old is None or service_s > old else 0.8 * old + 0.2 * service_s
    worker.item_s = service_s if worker.item_s is None else 0.5 * (worker.item_s + service_s)


def note_haste(worker: Worker, count: int) -> None:
    """Take in that all that was in the pipe, so many requests, was sent and answered between two looks at it.

    For most of that time the worker may have waited for the host, or for a processor.  So it is tried with twice as
    much, as TCP does in its slow start (RFC 5681).
    """
    assert worker.service_s is not None
    worker.service_s = min(worker.service_s, AHEAD_S / (2 * count))


def is_light(request: Request) -> bool:
    """Say whether a request may wait in a pipe: nobody would have to look after it there."""
    return (
        request.kind is RequestKind.USER
        and request.queue_deadline is None
        and not request.priority
        and request.encoded_bytes <= MAX_AHEAD_BYTES
        and not request.splits
    )


def is_tiny(request: Request) -> bool:
    """Say whether it may do so in anybody's pipe."""
    return request.session is None and is_light(request)

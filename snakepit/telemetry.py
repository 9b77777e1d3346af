"""What the library reports while it runs: named events, and the handlers a program attaches to them.

Handlers run on the thread that emits: mostly a pool's manager thread, so a slow handler delays that
pool.  This module owns one process-wide table of handlers; it imports the standard library only.

Every event is a name, its measurements (numbers; durations in seconds, never negative, from one
monotonic clock) and its metadata.  ``handler(event, measurements, metadata)`` receives the three; both
dicts are shared by all handlers of the event and must not be changed.  ``EVENTS`` has the same names
and keys in a form that programs can read.

``snakepit.worker.request``: a request has ended; ``worker_id`` is None where it never reached a worker.
    measurements ``{"duration_s": float, "queue_s": float}``;
    metadata ``{"pool": str, "worker_id": str | None, "command": str, "session": str | None,
    "result": "ok" | "error" | "timeout" | "died" | "cancelled" | "queue_timeout"}``
``snakepit.worker.initialized``: a worker answered the handshake and is ready.
    measurements ``{"initialization_time_s": float}``; metadata ``{"pool": str, "worker_id": str}``
``snakepit.worker.spawned``: a worker process exists, not yet ready.
    measurements ``{}``; metadata ``{"pool": str, "worker_id": str, "pid": int}``
``snakepit.worker.exited``: a worker process is gone and reaped.
    measurements ``{"uptime_s": float}``;
    metadata ``{"pool": str, "worker_id": str, "reason": reason, "exit_code": int | None,
    "signal": int | None, "stderr_tail": str}``, where reason is one of
    ``"crash" | "start_failed" | "timeout" | "cancelled" | "protocol" | "health" | "max_requests" |
    "max_age" | "max_rss" | "recycled" | "idle" | "shutdown" | "terminated" | "broken"``
``snakepit.worker.restarted``: a new worker takes the place of one that ended unasked.
    measurements ``{}``; metadata ``{"pool": str, "worker_id": str, "reason": reason}``: the new
    worker, and why the old one ended
``snakepit.worker.recycled``: a new worker takes the place of one that was retired as planned.
    measurements ``{}``; metadata ``{"pool": str, "worker_id": str, "reason": reason}``
``snakepit.pool.saturated``: ``submit`` refused a request.
    measurements ``{}``; metadata ``{"pool": str, "command": str}``
``snakepit.pool.queue_timeout``: a request waited too long and will never run.
    measurements ``{"queue_s": float}``;
    metadata ``{"pool": str, "command": str, "session": str | None}``
``snakepit.pool.broken``: a pool cannot serve any more.
    measurements ``{}``; metadata ``{"pool": str, "error": str}``
``snakepit.pool.callback_slow``: user code kept a pool's thread for a long time.
    measurements ``{"duration_s": float}``;
    metadata ``{"pool": str | None, "kind": "handler" | "callback", "name": str}``; a handler goes by its
    handler_id and has no pool; a done-callback or ``process_response`` goes by the request's command
``snakepit.session.created``: a session is bound to a worker for the first time.
    measurements ``{}``;
    metadata ``{"pool": str, "session": str, "worker_id": str, "affinity": "strict" | "hint" | "fail_fast"}``
``snakepit.session.moved``: a session is bound to another worker.
    measurements ``{}``;
    metadata ``{"pool": str, "session": str, "worker_id": str, "affinity": "strict" | "hint" | "fail_fast"}``
``snakepit.session.lost``: the worker that held a session's state is gone.
    measurements ``{}``; metadata ``{"pool": str, "session": str, "worker_id": str}``
``snakepit.session.expired``: a session's binding ended, for it was idle too long.
    measurements ``{"idle_s": float}``; metadata ``{"pool": str, "session": str}``
``snakepit.telemetry.handler_failed``: a handler raised and was detached.
    measurements ``{}``; metadata ``{"handler_id": str, "event": str, "error": BaseException}``
"""

from __future__ import annotations

import difflib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

__all__ = (
    "EVENTS",
    "SLOW_HANDLER_S",
    "Event",
    "Handler",
    "attach",
    "attach_many",
    "detach",
    "enabled",
    "execute",
    "handlers",
)

Handler = Callable[[str, Mapping[str, Any], Mapping[str, Any]], object]
"""``handler(event, measurements, metadata)``; what it returns is ignored."""

SLOW_HANDLER_S: Final = 0.1
"""Seconds a handler may take before ``snakepit.pool.callback_slow`` names it.  Arbitrary."""


class Event(NamedTuple):
    """The keys that every emission of an event carries.

    Attributes:
        measurements: Keys of the measurements, in documented order.
        metadata: Keys of the metadata, in documented order.
    """

    measurements: tuple[str, ...]
    metadata: tuple[str, ...]


EVENTS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        "snakepit.worker.request": Event(
            ("duration_s", "queue_s"), ("pool", "worker_id", "command", "session", "result")
        ),
        "snakepit.worker.initialized": Event(("initialization_time_s",), ("pool", "worker_id")),
        "snakepit.worker.spawned": Event((), ("pool", "worker_id", "pid")),
        "snakepit.worker.exited": Event(
            ("uptime_s",), ("pool", "worker_id", "reason", "exit_code", "signal", "stderr_tail")
        ),
        "snakepit.worker.restarted": Event((), ("pool", "worker_id", "reason")),
        "snakepit.worker.recycled": Event((), ("pool", "worker_id", "reason")),
        "snakepit.pool.saturated": Event((), ("pool", "command")),
        "snakepit.pool.queue_timeout": Event(("queue_s",), ("pool", "command", "session")),
        "snakepit.pool.broken": Event((), ("pool", "error")),
        "snakepit.pool.callback_slow": Event(("duration_s",), ("pool", "kind", "name")),
        "snakepit.session.created": Event((), ("pool", "session", "worker_id", "affinity")),
        "snakepit.session.moved": Event((), ("pool", "session", "worker_id", "affinity")),
        "snakepit.session.lost": Event((), ("pool", "session", "worker_id")),
        "snakepit.session.expired": Event(("idle_s",), ("pool", "session")),
        "snakepit.telemetry.handler_failed": Event((), ("handler_id", "event", "error")),
    }
)
"""``{event: Event(measurements, metadata)}``; the module's docstring has the types and meanings."""

_HANDLER_FAILED: Final = "snakepit.telemetry.handler_failed"
_CALLBACK_SLOW: Final = "snakepit.pool.callback_slow"

_logger = logging.getLogger("snakepit.telemetry")
_now_s = time.perf_counter

_Table = dict[str, tuple[tuple[str, Handler], ...]]

# INVARIANT: a table is never changed once it is bound here, only replaced under _lock; so readers need
# no lock, and a walk over an event's handlers is not disturbed by attach or detach.
_table: _Table = {}

# LOCK: orders the replacements of _table.  It nests, because a finalizer or a signal handler may run
# inside attach on the same thread and detach something; never held while calling a handler.
_lock = threading.RLock()


def attach(handler_id: str, event: str, handler: Handler) -> None:
    """Call ``handler`` at each emission of ``event``, on the emitting thread.

    A handler that raises is detached, logged to ``snakepit.telemetry`` and reported as
    ``snakepit.telemetry.handler_failed``; only KeyboardInterrupt goes through.

    Args:
        handler_id: Names the handler for ``detach`` and in messages; unique, not empty.
        event: One name of ``EVENTS``; there are no patterns.
        handler: ``handler(event, measurements, metadata)``.

    Raises:
        ValueError: Unknown event, or an id that is empty or in use; raised here.
        TypeError: An id or event that is no str, or a handler that cannot be called; raised here.
    """
    _attach(handler_id, (event,), handler)


def attach_many(handler_id: str, events: Iterable[str], handler: Handler) -> None:
    """Attach one handler to several events, all or none; ``detach`` takes it off all of them.

    Args:
        handler_id: As in ``attach``.
        events: Names of ``EVENTS``, at least one; repetitions count once.
        handler: As in ``attach``.

    Raises:
        ValueError: No event, or as in ``attach``; raised here.
        TypeError: ``events`` is a str, or as in ``attach``; raised here.
    """
    if isinstance(events, str):
        raise TypeError(f"events must be an iterable of names, not the str {events!r}; use attach for one")
    _attach(handler_id, tuple(dict.fromkeys(events)), handler)


def detach(handler_id: str) -> bool:
    """Take a handler off all its events; an emission that has begun may still call it once.

    Returns:
        Whether it was attached.  A missing one is no error, because a handler that raises is
        detached already when its owner cleans up.
    """
    return _remove(handler_id, None)


def handlers(event: str) -> tuple[tuple[str, Handler], ...]:
    """Return ``((handler_id, handler), ...)`` of an event, in the order of attachment.

    Raises:
        ValueError: Unknown event; raised here.
        TypeError: Not a str; raised here.
    """
    _check_event(event)
    return _table.get(event, ())


def enabled(event: str) -> bool:
    """Say whether anybody listens, so that an emitter can save building the dicts."""
    return event in _table


def execute(event: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Emit an event: call its handlers in order.  For the library; never raises what a handler raises.

    Args:
        event: A name of ``EVENTS``.
        measurements: ``{key: number}`` with the keys of the event's ``Event.measurements``.
        metadata: ``{key: value}`` with the keys of the event's ``Event.metadata``.
    """
    entries = _table.get(event)
    if entries is None:
        return
    for handler_id, handler in entries:
        start_s = _now_s()
        try:
            handler(event, measurements, metadata)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a SystemExit of a handler must not end the pool's thread
            _report_failure(event, handler_id, handler, error)
        duration_s = _now_s() - start_s
        if duration_s >= SLOW_HANDLER_S and event != _CALLBACK_SLOW:
            execute(
                _CALLBACK_SLOW,
                {"duration_s": duration_s},
                {"pool": None, "kind": "handler", "name": handler_id},
            )


def _report_failure(event: str, handler_id: str, handler: Handler, error: BaseException) -> None:
    # RACE: 1. two threads emit, the same handler raises in both; 2. each comes here.  The removal says
    # who was first, so it is reported once; and an id that was attached anew meanwhile stays
    # (tests/unit/test_telemetry.py::test_a_handler_failing_on_two_threads_is_reported_once).
    if not _remove(handler_id, handler):
        return
    _logger.warning(
        "handler %r of %s raised %s and was detached", handler_id, event, type(error).__name__, exc_info=error
    )
    if event != _HANDLER_FAILED:
        execute(_HANDLER_FAILED, {}, {"handler_id": handler_id, "event": event, "error": error})


def _attach(handler_id: str, events: tuple[str, ...], handler: Handler) -> None:
    if not isinstance(handler_id, str):
        raise TypeError(f"handler_id must be a str, not {handler_id!r} ({type(handler_id).__name__})")
    if not handler_id:
        raise ValueError("handler_id must not be empty")
    if not callable(handler):
        raise TypeError(f"handler {handler_id!r} must be callable, not {handler!r}")
    if not events:
        raise ValueError(f"handler {handler_id!r}: no event to attach to")
    for event in events:
        _check_event(event)

    def change(table: _Table) -> _Table:
        if any(handler_id == known for entries in table.values() for known, _ in entries):
            raise ValueError(f"handler_id {handler_id!r} is attached already; detach it first")
        added = {event: (*table.get(event, ()), (handler_id, handler)) for event in events}
        return {**table, **added}

    _replace_table(change)


def _remove(handler_id: str, handler: Handler | None) -> bool:
    """Take a handler off, with ``handler`` given only if the id still means that one."""
    removed = False

    def change(table: _Table) -> _Table:
        nonlocal removed
        kept = {
            event: tuple(
                entry
                for entry in entries
                if entry[0] != handler_id or (handler is not None and entry[1] is not handler)
            )
            for event, entries in table.items()
        }
        removed = kept != table
        return {event: entries for event, entries in kept.items() if entries}

    _replace_table(change)
    return removed


def _replace_table(change: Callable[[_Table], _Table]) -> None:
    global _table
    with _lock:
        while True:
            old = _table
            new = change(old)
            # RACE: 1. change() allocates; 2. the collector runs a finalizer on this thread; 3. it
            # detaches, through the lock that nests; 4. the table made in 1 is stale, so make it anew
            # (tests/unit/test_telemetry.py::test_a_finalizer_may_detach_in_the_middle_of_attach).
            if _table is old:
                _table = new
                return


def _check_event(event: object) -> None:
    if not isinstance(event, str):
        raise TypeError(f"event must be a str, not {event!r} ({type(event).__name__})")
    if event not in EVENTS:
        nearest = difflib.get_close_matches(event, EVENTS, n=1, cutoff=0.0)
        raise ValueError(f"unknown event {event!r}; the nearest is {nearest[0]!r}")


def _renew_lock_after_fork() -> None:
    # Another thread of the parent may have held the lock when it forked; it does not exist here.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock_after_fork)

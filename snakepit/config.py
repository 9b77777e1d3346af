"""The pool's settings: validated, frozen, units in the names.

Pure; made on the caller's thread and read everywhere.
"""

from __future__ import annotations

from typing import Any

import attrs

from ._clock import check_timeout

__all__ = ("PoolConfig",)


def _seconds(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        raise TypeError(f"{attribute.name} must be seconds > 0, not None")
    check_timeout(attribute.name, value)


def _optional_seconds(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    check_timeout(attribute.name, value)


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int >= {least}, not {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"{name} must be an int >= {least}, not {value!r}")


def _count(least: int) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
        _check_count(attribute.name, value, least)

    return check


def _optional_count(least: int) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            _check_count(attribute.name, value, least)

    return check


def _frame_limit(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    _check_count(attribute.name, value, 1024)
    assert isinstance(value, int)
    if value >= 128 << 20:
        raise ValueError(
            f"{attribute.name} must be below 128 MiB, not {value}: stray text on the stream reads as a"
            " length above that and is caught at once; larger data travels as bytes, in several frames"
        )


@attrs.frozen(kw_only=True)
class PoolConfig:
    """Everything about a pool that is not a parameter of ``SnakepitExecutor``.

    Every bad value is a ``TypeError`` or ``ValueError`` that names the field; raised here.

    Attributes:
        worker_init_timeout_s: Seconds from a worker's spawn to the end of its handshake and ``on_start``.
        startup_timeout_s: Default bound of ``wait_ready``; breaks nothing.
        health_check_interval_s: Seconds between checks of idle workers.
        health_check_timeout_s: Seconds an idle worker has to answer one; then it is replaced.
        shutdown_grace_s: Seconds an idle worker has to end after its pipe is closed, before TERM.
        kill_grace_s: Seconds between TERM and KILL.
        restart_backoff_s: Seconds before a slot's second start after a failed one.
        restart_backoff_factor: Growth of that delay per further failure, >= 1.
        restart_backoff_cap_s: Longest such delay, before it is varied.
        restart_backoff_jitter: Share by which a delay varies both ways, 0 to 1.
        restart_budget: Consecutive failed starts after which the pool is broken, >= 1.  A worker that ends unasked
            before it was given anything failed to start, unless it has been ready for ``restart_backoff_cap_s``.
        max_frame_bytes: Longest frame either way, 1 KiB to below 128 MiB.
        max_message_bytes: Longest message with its attachments.
        max_queued_bytes: Encoded requests that may wait; beyond it callables are pickled at their turn.
        stderr_tail_bytes: Bytes of stderr kept for error messages.
        min_workers: Workers kept at all times, from the start; None: all for commands, 0 for callables.
        worker_idle_timeout_s: Seconds after which an idle worker above ``min_workers`` is ended; None: never.
        max_requests_per_worker: Answered requests after which a worker is replaced, from 10 on varied by 10 %
            downwards; None: never.
        max_worker_age_s: Seconds after which a worker is replaced (varied by 10 %); None: never.
        max_worker_rss_bytes: Resident memory of a worker's process group above which it is replaced, or None.
        session_ttl_s: Idle seconds after which a session's binding ends.
        max_sessions: Sessions bound at a time, >= 1.
        session_drain_s: Seconds that the planned end of a worker waits for its strict sessions; it serves on.
        callback_slow_s: Seconds after which a callback on the pool's thread is reported as slow.
    """

    worker_init_timeout_s: float = attrs.field(default=20.0, validator=_seconds)
    startup_timeout_s: float = attrs.field(default=10.0, validator=_seconds)
    health_check_interval_s: float = attrs.field(default=30.0, validator=_seconds)
    health_check_timeout_s: float = attrs.field(default=5.0, validator=_seconds)
    shutdown_grace_s: float = attrs.field(default=2.0, validator=_seconds)
    kill_grace_s: float = attrs.field(default=1.0, validator=_seconds)
    restart_backoff_s: float = attrs.field(default=0.1, validator=_seconds)
    restart_backoff_factor: float = attrs.field(default=2.0)
    restart_backoff_cap_s: float = attrs.field(default=10.0, validator=_seconds)
    restart_backoff_jitter: float = attrs.field(default=0.2)
    restart_budget: int = attrs.field(default=5, validator=_count(1))
    max_frame_bytes: int = attrs.field(default=64 << 20, validator=_frame_limit)
    max_message_bytes: int = attrs.field(default=1 << 30, validator=_count(1024))
    max_queued_bytes: int = attrs.field(default=256 << 20, validator=_count(1))
    stderr_tail_bytes: int = attrs.field(default=4096, validator=_count(0))
    min_workers: int | None = attrs.field(default=None, validator=_optional_count(0))
    worker_idle_timeout_s: float | None = attrs.field(default=None, validator=_optional_seconds)
    max_requests_per_worker: int | None = attrs.field(default=None, validator=_optional_count(1))
    max_worker_age_s: float | None = attrs.field(default=None, validator=_optional_seconds)
    max_worker_rss_bytes: int | None = attrs.field(default=None, validator=_optional_count(1))
    session_ttl_s: float = attrs.field(default=3600.0, validator=_seconds)
    max_sessions: int = attrs.field(default=10_000, validator=_count(1))
    session_drain_s: float = attrs.field(default=300.0, validator=_seconds)
    callback_slow_s: float = attrs.field(default=0.1, validator=_seconds)

    @restart_backoff_factor.validator
    def _check_factor(self, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{attribute.name} must be a number >= 1, not {value!r}")
        try:
            factor = float(value)
        except OverflowError:
            bits = int(value).bit_length()
            raise ValueError(f"{attribute.name} must be a number >= 1, not an int of {bits} bits") from None
        if not factor >= 1:
            raise ValueError(f"{attribute.name} must be a number >= 1, not {value!r}")

    @restart_backoff_jitter.validator
    def _check_jitter(self, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{attribute.name} must be a number from 0 to 1, not {value!r}")
        if not 0 <= value <= 1:
            raise ValueError(f"{attribute.name} must be a number from 0 to 1, not {value!r}")

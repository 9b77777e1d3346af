"""What a session store hands out and keeps: records, rows, and the checks of ids and times.

Runs on the caller's thread; owns the number of the next version.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Any, NamedTuple

import attrs

__all__ = (
    "Row",
    "Session",
    "SessionStats",
    "check_callable",
    "check_id",
    "check_quota",
    "check_ttl",
    "new_version",
)


@attrs.frozen
class Session:
    """A snapshot of a session; changing its dicts changes nothing in the store.

    Attributes:
        id: The session's id.
        created_at: Wall-clock seconds since the epoch.
        last_accessed_at: Wall-clock seconds; set by ``get``, ``update`` and whatever touches a program.
        ttl_s: Seconds from the last access to expiry; ``math.inf`` for never.
        metadata: ``{key: value}`` as given to ``create``.
        data: ``{key: value}`` as left by the last ``update``.
        programs: ``{program_id: program}``, in the order they were first stored.
    """

    id: str
    created_at: float
    last_accessed_at: float
    ttl_s: float
    metadata: dict[str, Any]
    data: dict[str, Any]
    programs: dict[str, Any]


@attrs.frozen
class SessionStats:
    """Numbers of a store; what has expired does not count, swept or not.

    Attributes:
        sessions: Sessions.
        programs: Programs of these sessions.
        global_programs: Global programs.
        expired_total: Expired sessions and global programs that this store object has removed.
        max_sessions: The quota, or None.
        backend: The backend's name.
        size_bytes: Bytes of the file, or None in memory.
    """

    sessions: int
    programs: int
    global_programs: int
    expired_total: int
    max_sessions: int | None
    backend: str
    size_bytes: int | None


class Row(NamedTuple):
    """One stored value and its times.

    Attributes:
        value: What ``SessionBackend.encode`` made.
        created_at: Wall-clock seconds.
        last_accessed_at: Wall-clock seconds.
        ttl_s: Seconds from the last access to expiry; ``math.inf`` for never.
        version: Changes whenever the value does, and never comes back for another row.
    """

    # A tuple, for the store makes one or two of them in each call: 0.2 us against 0.7 us for an attrs class.
    value: Any
    created_at: float
    last_accessed_at: float
    ttl_s: float
    version: int

    def expired(self, now: float) -> bool:
        """Say whether the row is past its time, at the wall-clock time ``now``."""
        return self.last_accessed_at + self.ttl_s <= now


def check_id(name: str, value: object) -> str:
    """Return an id as plain text, or raise TypeError or ValueError naming it."""
    if type(value) is str and value and value.isascii():
        return value
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r:.80} ({type(value).__name__})")
    if not value:
        raise ValueError(f"{name} must not be empty: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that UTF-8 can carry, not {value!r:.80}") from None
    return str.__str__(value)  # of an enum member the text, in every backend


def check_ttl(name: str, value: object) -> float:
    """Return a time to live in seconds, ``math.inf`` for never, or raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds > 0, or math.inf for never, not {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be seconds > 0, or math.inf for never, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_quota(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless ``value`` is an int > 0, or None for no limit."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int > 0 or None, not {value!r}")
    if value <= 0:
        raise ValueError(f"{name} must be an int > 0 or None, not {value!r}")


def check_callable(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {value!r}")


def new_version() -> int:
    """Return a number that no other row has had."""
    return next(_versions)


def _begin_versions() -> None:
    """Count from a random place on, so that processes that share a file use different numbers."""
    global _versions
    _versions = itertools.count(int.from_bytes(os.urandom(8), "big") >> 2)  # SQLite integers are signed


_versions: itertools.count[int]
_begin_versions()
os.register_at_fork(after_in_child=_begin_versions)

"""Where a session store keeps its rows: the protocol, and the backend in memory.

Runs on the threads of the store's callers.  A backend owns its rows and the one lock in front of
them; what the rows mean (sessions, programs, expiry, quota) is the business of ``sessions``, which
this module must not import.

A row is addressed by ``(owner, key)``; neither ids nor keys of users are empty, so "" is free:

    (session_id, "")            the session: {"metadata": ..., "data": ...}
    (session_id, program_id)    a program of the session; lives as long as the session
    ("", program_id)            a global program
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .._threads import is_owned
from ..errors import SessionError
from .copies import copy_plain, copy_tree
from .locks import INSIDE, Lock, watch_forks
from .records import Row

__all__ = ("MemoryBackend", "SessionBackend", "Table")

T = TypeVar("T")


class Table(Protocol):
    """The rows, inside one transaction.  A program of a session has no times of its own."""

    def get(self, owner: str, key: str) -> Row | None:
        """Return a row, expired or not, or None."""

    def owned(self, owner: str) -> dict[str, Row]:
        """Return ``{key: row}`` of an owner, oldest first, as a new dict."""

    def put(self, owner: str, key: str, row: Row) -> None:
        """Insert a row, or replace it at its place in the order."""

    def touch(self, owner: str, key: str, now: float) -> None:
        """Set ``last_accessed_at`` of an existing row."""

    def delete(self, owner: str, key: str) -> None:
        """Remove a row; with the key "" everything of the owner."""

    def sweep(self, now: float) -> int:
        """Remove expired sessions (with their programs) and global programs; return how many."""

    def ids(self, now: float) -> tuple[str, ...]:
        """Return the ids of the sessions that have not expired, oldest first."""

    def sizes(self) -> tuple[int, int]:
        """Return the numbers of sessions and of global programs, expired ones included; cheap."""

    def counts(self, now: float) -> tuple[int, int, int]:
        """Return the numbers of sessions, their programs, and global programs that have not expired."""

    def size_bytes(self) -> int | None:
        """Return the bytes in use, or None where nobody knows."""


class SessionBackend(Protocol):
    """Where rows live.  All methods are safe from any thread; values are encoded outside transactions."""

    name: str

    def encode(self, value: Any, path: str) -> Any:
        """Return a form of ``value`` that shares nothing with it.

        Raises:
            ValueError: It cannot be stored; the message starts with ``path`` and leads to the place.
        """

    def decode(self, stored: Any) -> Any:
        """Return a new value from what ``encode`` made."""

    def transact(self, body: Callable[[Table], T], *, write: bool, durable: bool = True) -> T:
        """Call ``body`` as the one transaction at a time that this process has, and return its result.

        Args:
            body: Receives the rows; what it raises undoes its changes.
            write: Whether rows will change.
            durable: Whether the change is worth waiting for the disk, in a backend that waits for it at all.

        Raises:
            SessionError: Closed, damaged, locked for too long, or called from inside a transaction; raised here.
        """

    def close(self) -> None:
        """End the use of the backend; again is harmless."""


class MemoryBackend:
    """Rows in this process, gone with it.

    Values are copied on the way in and out, so that nobody can change a stored value by keeping a reference.
    Whatever ``copy.deepcopy`` can copy can be stored.
    """

    name = "memory"

    def __init__(self) -> None:
        # LOCK: protects the rows; held while calling out to nothing but the store's clock.
        self.lock = Lock()
        self._table: _MemoryTable | None = _MemoryTable()
        watch_forks(self)

    def encode(self, value: Any, path: str) -> Any:
        """Copy a value.

        Raises:
            ValueError: It cannot be copied; raised here.
        """
        try:
            return copy_tree, copy_plain(value, set())
        except Exception:  # a plain value may also be nested too deeply, or be changed by another thread
            try:
                return copy.deepcopy, copy.deepcopy(value)
            except Exception as error:
                raise ValueError(f"{path}: cannot be stored, for it cannot be copied: {error}") from error

    def decode(self, stored: Any) -> Any:
        """Copy a stored value."""
        copier, value = stored
        return copier(value)

    def transact(self, body: Callable[[Table], T], *, write: bool, durable: bool = True) -> T:
        """Call ``body`` under the lock.  Nothing is rolled back: the store checks first and changes last.

        Raises:
            SessionError: Closed, or called from inside a transaction; raised here.
        """
        if is_owned(self.lock):
            raise SessionError(INSIDE)
        with self.lock:
            if self._table is None:
                raise SessionError("the session store is closed")
            return body(self._table)

    def close(self) -> None:
        """Drop the rows."""
        if is_owned(self.lock):
            raise SessionError(INSIDE)
        with self.lock:
            self._table = None

    def _stop(self) -> None:
        """Keep the rows from changing until the fork is over, which the lock does."""

    def _go_on(self, *, child: bool) -> None:
        """Let the threads in again, which the lock does."""


class _MemoryTable:
    def __init__(self) -> None:
        # INVARIANT: no owner but "" has an empty dict, and every other owner has the key "".
        self._rows: dict[str, dict[str, Row]] = {"": {}}

    def get(self, owner: str, key: str) -> Row | None:
        rows = self._rows.get(owner)
        return None if rows is None else rows.get(key)

    def owned(self, owner: str) -> dict[str, Row]:
        return dict(self._rows.get(owner, ()))

    def put(self, owner: str, key: str, row: Row) -> None:
        self._rows.setdefault(owner, {})[key] = row

    def touch(self, owner: str, key: str, now: float) -> None:
        rows = self._rows[owner]
        value, created_at, _, ttl_s, version = rows[key]
        rows[key] = Row(value, created_at, now, ttl_s, version)

    def delete(self, owner: str, key: str) -> None:
        if key:
            del self._rows[owner][key]
        else:
            del self._rows[owner]

    def sweep(self, now: float) -> int:
        sessions = [owner for owner, rows in self._rows.items() if owner and rows[""].expired(now)]
        programs = [key for key, row in self._rows[""].items() if row.expired(now)]
        for owner in sessions:
            del self._rows[owner]
        for key in programs:
            del self._rows[""][key]
        return len(sessions) + len(programs)

    def ids(self, now: float) -> tuple[str, ...]:
        return tuple(owner for owner, rows in self._rows.items() if owner and not rows[""].expired(now))

    def sizes(self) -> tuple[int, int]:
        return len(self._rows) - 1, len(self._rows[""])

    def counts(self, now: float) -> tuple[int, int, int]:
        live = [rows for owner, rows in self._rows.items() if owner and not rows[""].expired(now)]
        shared = sum(not row.expired(now) for row in self._rows[""].values())
        return len(live), sum(len(rows) - 1 for rows in live), shared

    def size_bytes(self) -> int | None:
        return None

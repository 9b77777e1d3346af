"""User data by session: a store with idle time-outs, programs, a quota, and a choice of backends.

Runs on the threads of its callers and owns no thread.  It has nothing to do with the affinity of
requests to workers: nothing here lies on the way of a request.

A missing or expired session or program is ``SessionNotFound``; a stored None is a value like any
other.  Whatever goes in or comes out is a copy.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from ._store import transactions as _tx
from ._store.backends import MemoryBackend, SessionBackend, Table
from ._store.locks import Turns
from ._store.records import (
    Row,
    Session,
    SessionStats,
    check_callable,
    check_id,
    check_quota,
    check_ttl,
    new_version,
)
from ._store.sqlite import SQLiteBackend
from ._store.transactions import GLOBAL, SESSION
from .errors import SessionError, SessionExists, SessionQuotaExceeded

__all__ = ("MemoryBackend", "SQLiteBackend", "Session", "SessionBackend", "SessionStats", "SessionStore")

T = TypeVar("T")

_SWEEP_S: Final = 60.0  # arbitrary; what has expired is invisible meanwhile
_UPDATE_ATTEMPTS: Final = 50  # arbitrary; each lost attempt means that another process got its change in


class SessionStore:
    """Sessions and programs by id, safe from any thread, with idle expiry.

    An expired session is gone for every method, and its id is free.  ``create`` frees the space of all expired ones
    once a minute and where the quota is reached, ``cleanup_expired`` at any time.  The store iterates over the ids,
    oldest first.  Ids are text, not empty; every method raises TypeError or ValueError for another one, ``in`` says
    False, and every method but ``close`` raises ``SessionError`` after ``close``.

    Args:
        backend: ``MemoryBackend()`` when left out, or a ``SQLiteBackend``.
        default_ttl_s: Seconds, > 0, that an id may be idle; ``math.inf`` for never.
        max_sessions: The most sessions, and also the most global programs, > 0; None for no limit.
        clock: Returns wall-clock seconds, so that times mean the same after a restart.

    Raises:
        TypeError, ValueError: An argument of the wrong type, or a number out of range; raised here.
    """

    def __init__(
        self,
        backend: SessionBackend | None = None,
        *,
        default_ttl_s: float = 3600.0,
        max_sessions: int | None = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_quota("max_sessions", max_sessions)
        check_callable("clock", clock)
        self._default_ttl_s = check_ttl("default_ttl_s", default_ttl_s)
        self._max_sessions = max_sessions
        self._clock = clock
        self._backend: SessionBackend = MemoryBackend() if backend is None else backend
        self._turns = Turns()
        self._count_lock = threading.Lock()  # LOCK: protects _expired_total; nothing is called under it
        self._expired_total = 0
        self._swept_at = -math.inf  # INVARIANT: used inside write transactions only

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        default_ttl_s: float = 3600.0,
        max_sessions: int | None = 10_000,
        clock: Callable[[], float] = time.time,
        durable: bool = False,
    ) -> SessionStore:
        """Return a store in a SQLite file, made if it does not exist; see ``SQLiteBackend`` for the rest."""
        backend = SQLiteBackend(path, durable=durable)
        try:
            return cls(backend, default_ttl_s=default_ttl_s, max_sessions=max_sessions, clock=clock)
        except BaseException:
            backend.close()
            raise

    def create(
        self, session_id: str, *, ttl_s: float | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Session:
        """Make a session; of several that race for one id, one wins.

        Args:
            session_id: Not empty.
            ttl_s: Seconds it may be idle, > 0; None for the store's default, ``math.inf`` for never.
            metadata: ``{key: value}`` to keep with it.

        Raises:
            SessionExists: There is one that has not expired; raised here.
            SessionQuotaExceeded: ``max_sessions`` of them have not expired; raised here.
            TypeError, ValueError: A bad ttl, or metadata that cannot be stored; raised here.
        """
        session_id = check_id("session_id", session_id)
        ttl_s = self._default_ttl_s if ttl_s is None else check_ttl("ttl_s", ttl_s)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(f"metadata must be a mapping or None, not {metadata!r}")
        value = self._backend.encode({"metadata": dict(metadata or {}), "data": {}}, "")

        def make(table: Table, now: float) -> tuple[Row, int, bool]:
            old = table.get(session_id, SESSION)
            if old is not None and not old.expired(now):
                raise SessionExists(f"session {session_id!r} exists already")
            if old is not None:
                table.delete(session_id, SESSION)
            swept, room = self._make_room(table, now, sessions=True)
            row = Row(value, now, now, ttl_s, new_version())
            if room:
                table.put(session_id, SESSION, row)
            return row, swept + (old is not None), room

        row, expired, room = self._write(make)
        self._count_expired(expired)
        if not room:
            raise SessionQuotaExceeded(f"no room for session {session_id!r}: {self._max_sessions} exist")
        return self._session(session_id, {SESSION: row}, row.created_at)

    def get(self, session_id: str) -> Session:
        """Return a snapshot of a session, which starts its idle time anew.

        Raises:
            SessionNotFound: Missing or expired; raised here.
        """
        session_id = check_id("session_id", session_id)
        return self._session(session_id, *self._write(_tx.get_session, session_id, durable=False))

    def update(self, session_id: str, fn: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Session:
        """Change a session's data by a callback: all of it, or nothing where the callback raises.

        Updates of one session (its programs included) run one at a time; nobody else waits for the
        callback, and readers of the session see its old data meanwhile.  The callback may use the store,
        except to update the same session.  It is called again where another process, or a ``create``
        after a ``delete``, changed the data meanwhile.

        Args:
            fn: Receives a copy of the data; returns the new data, or None to keep the changed copy.

        Returns:
            The session afterwards.

        Raises:
            SessionNotFound: Missing or expired, before or after the callback; raised here.
            SessionError: The callback updates a session in a way that would wait for itself, or other
                processes changed the data each time; raised here.
            TypeError, ValueError: A bad callback, or data that cannot be stored; raised here.
        """
        session_id = check_id("session_id", session_id)
        check_callable("fn", fn)

        def change(value: dict[str, Any]) -> dict[str, Any]:
            data = fn(value["data"])
            if data is None:
                data = value["data"]
            elif not isinstance(data, dict):
                raise TypeError(f"the update of {session_id!r} must return a dict or None, not {data!r:.80}")
            return {"metadata": value["metadata"], "data": data}

        return self._session(session_id, *self._change(session_id, SESSION, "", change))

    def delete(self, session_id: str) -> bool:
        """Remove a session with its programs; return whether there was one that had not expired."""
        return self._delete(check_id("session_id", session_id), SESSION)

    def exists(self, session_id: str) -> bool:
        """Say whether there is such a session that has not expired; its idle time goes on."""
        session_id = check_id("session_id", session_id)
        return self._read(_tx.exists, session_id)

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all sessions that have not expired, oldest first."""
        return self._read(_tx.ids)

    def __len__(self) -> int:
        return len(self.ids())

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids())

    def __contains__(self, session_id: object) -> bool:
        try:
            return self.exists(session_id)  # type: ignore[arg-type]  # whoever asks for another type is answered
        except (TypeError, ValueError):
            return False

    def stats(self) -> SessionStats:
        """Return the numbers of this moment."""
        live, size_bytes = self._read(_tx.count)
        return SessionStats(*live, self._expired_total, self._max_sessions, self._backend.name, size_bytes)

    def cleanup_expired(self) -> int:
        """Remove the expired sessions and global programs; return how many there were."""
        swept = self._write(_tx.sweep)
        self._count_expired(swept)
        return swept

    def store_program(self, session_id: str, program_id: str, program: Any) -> None:
        """Keep a program with a session, in place of one of the same id.

        Raises:
            SessionNotFound: No such session; raised here.
            TypeError, ValueError: A program that cannot be stored; raised here.
        """
        session_id, program_id = check_id("session_id", session_id), check_id("program_id", program_id)
        value = self._backend.encode(program, f"/programs/{program_id}")
        self._write(_tx.store_program, session_id, program_id, value)

    def get_program(self, session_id: str, program_id: str) -> Any:
        """Return a program of a session, which starts the session's idle time anew.

        Raises:
            SessionNotFound: No such session, or no such program in it; raised here.
        """
        session_id, program_id = check_id("session_id", session_id), check_id("program_id", program_id)
        return self._backend.decode(self._write(_tx.get_program, session_id, program_id, durable=False).value)

    def update_program(self, session_id: str, program_id: str, fn: Callable[[Any], Any]) -> Any:
        """Change a program by a callback, under the rules of ``update``.

        Args:
            fn: Receives a copy of the program; returns the new one, or None to keep the changed copy
                (``store_program`` stores a None).

        Returns:
            The program afterwards.

        Raises:
            SessionNotFound: No such session or program; raised here.
            SessionError: As in ``update``; raised here.
            TypeError, ValueError: A bad callback, or a program that cannot be stored; raised here.
        """
        session_id, program_id = check_id("session_id", session_id), check_id("program_id", program_id)
        check_callable("fn", fn)

        def change(program: Any) -> Any:
            result = fn(program)
            return program if result is None else result

        rows, _ = self._change(session_id, program_id, f"/programs/{program_id}", change)
        return self._backend.decode(rows[program_id].value)

    def delete_program(self, session_id: str, program_id: str) -> bool:
        """Remove a program of a session; return whether there was one."""
        session_id, program_id = check_id("session_id", session_id), check_id("program_id", program_id)
        return self._write(_tx.delete_program, session_id, program_id)

    def store_global_program(self, program_id: str, program: Any, *, ttl_s: float | None = None) -> None:
        """Keep a program apart from sessions, in place of one of the same id.

        Args:
            program_id: Not empty.
            program: Its record.
            ttl_s: Seconds it may go unread, > 0; None for the store's default, ``math.inf`` for never.

        Raises:
            SessionQuotaExceeded: ``max_sessions`` global programs have not expired; raised here.
            TypeError, ValueError: A bad ttl, or a program that cannot be stored; raised here.
        """
        program_id = check_id("program_id", program_id)
        ttl_s = self._default_ttl_s if ttl_s is None else check_ttl("ttl_s", ttl_s)
        value = self._backend.encode(program, f"/global_programs/{program_id}")

        def put(table: Table, now: float) -> tuple[int, bool]:
            swept, room = 0, True
            if table.get(GLOBAL, program_id) is None:
                swept, room = self._make_room(table, now, sessions=False)
            if room:
                table.put(GLOBAL, program_id, Row(value, now, now, ttl_s, new_version()))
            return swept, room

        swept, room = self._write(put)
        self._count_expired(swept)
        if not room:
            raise SessionQuotaExceeded(f"no room for program {program_id!r}: {self._max_sessions} exist")

    def get_global_program(self, program_id: str) -> Any:
        """Return a global program, which starts its idle time anew.

        Raises:
            SessionNotFound: Missing or expired; raised here.
        """
        program_id = check_id("program_id", program_id)
        return self._backend.decode(self._write(_tx.get_global_program, program_id, durable=False).value)

    def delete_global_program(self, program_id: str) -> bool:
        """Remove a global program; return whether there was one that had not expired."""
        return self._delete(GLOBAL, check_id("program_id", program_id))

    def close(self) -> None:
        """Close the backend; again is harmless."""
        self._backend.close()

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self, step: Callable[..., T], *args: Any) -> T:
        return self._backend.transact(lambda table: step(table, self._clock(), *args), write=False)

    def _write(self, step: Callable[..., T], *args: Any, durable: bool = True) -> T:
        return self._backend.transact(
            lambda table: step(table, self._clock(), *args), write=True, durable=durable
        )

    def _change(
        self, session_id: str, key: str, path: str, change: Callable[[Any], Any]
    ) -> tuple[dict[str, Row], float]:
        """Run an update callback outside of any transaction; store its result if nothing came between.

        Returns:
            The session's rows, and when that was.
        """

        def attempts() -> tuple[dict[str, Row], float]:
            for _ in range(_UPDATE_ATTEMPTS):
                row = self._read(_tx.find, session_id, key)
                value = self._backend.encode(change(self._backend.decode(row.value)), path)
                done = self._write(_tx.replace, session_id, key, row, value)
                if done is not None:
                    return done
            raise SessionError(f"session {session_id!r} was changed by others during {_UPDATE_ATTEMPTS} updates")

        return self._turns.run(session_id, attempts)

    def _delete(self, owner: str, key: str) -> bool:
        there, expired = self._write(_tx.delete, owner, key)
        self._count_expired(int(expired))
        return there and not expired

    def _make_room(self, table: Table, now: float, *, sessions: bool) -> tuple[int, bool]:
        """Sweep where it is time to or the quota is reached; return the number swept, and whether one more fits."""
        kind = 0 if sessions else 1
        recent = self._swept_at <= now < self._swept_at + _SWEEP_S  # also after a clock was set back
        if recent and (self._max_sessions is None or table.sizes()[kind] < self._max_sessions):
            return 0, True
        swept, self._swept_at = table.sweep(now), now
        return swept, self._max_sessions is None or table.sizes()[kind] < self._max_sessions

    def _count_expired(self, number: int) -> None:
        if number:
            with self._count_lock:
                self._expired_total += number

    def _session(self, session_id: str, rows: dict[str, Row], accessed_at: float) -> Session:
        head, decode = rows.pop(SESSION), self._backend.decode
        value = decode(head.value)
        programs = {key: decode(row.value) for key, row in rows.items()}
        return Session(
            session_id, head.created_at, accessed_at, head.ttl_s, value["metadata"], value["data"], programs
        )

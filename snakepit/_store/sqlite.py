"""The session store's rows in a SQLite file, which survives a restart and may be shared by processes.

Runs on the threads of the store's callers; owns the connection.  A row is addressed as
``_store/backends`` says.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._threads import is_owned
from ..errors import SessionError
from .backends import Table
from .locks import INSIDE, Lock, watch_forks
from .records import Row

if TYPE_CHECKING:  # imported where a file is opened, as json is: most programs never need them
    import sqlite3

__all__ = ("MAX_DEPTH", "SCHEMA_VERSION", "SQLiteBackend")

T = TypeVar("T")

MAX_DEPTH: Final = 256
"""Levels of nesting that a file accepts.  Arbitrary; the same as on the way to a worker."""

SCHEMA_VERSION: Final = 1

_BUSY_TIMEOUT_S: Final = 30.0  # wait for other processes' transactions; arbitrary, theirs take milliseconds


class SQLiteBackend:
    """Rows in a SQLite file: they survive the process, and several processes may share them.

    A write that has returned survives the end of the process, whatever ends it.  A power failure or a crash of the
    system may undo the writes of the last moments, all of them from some point on, and never damages the file
    (write-ahead log, ``synchronous=NORMAL``).  With ``durable`` a write that has returned survives these too: it
    waits for the disk (``synchronous=FULL``), which takes 20 times as long or more; only the time of the last access
    never waits.

    Values are JSON: None, bool, int, finite float, str, list, dict with str keys; a tuple comes back as a list;
    everything else is refused before anything is written.  A new file gets mode 0600.

    Args:
        path: The file; made if it does not exist.  Symbolic links and files that are no session files
            are refused.
        durable: Whether a write waits until the disk has it.

    Raises:
        SessionError: Not a regular file, not a session file, damaged, or of a newer version; raised here.
        OSError: The file cannot be made, e.g. no such directory; raised here.
        TypeError, ValueError: ``path`` is no str or path, or empty, or ``durable`` is no bool; raised here.
    """

    name = "sqlite"

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = False) -> None:
        import json

        if not isinstance(durable, bool):
            raise TypeError(f"durable must be True or False, not {durable!r}")
        plain: object = os.fspath(path)
        if not isinstance(plain, str):
            raise TypeError(f"path must be a str or os.PathLike of str, not {path!r}")
        if not plain:
            raise ValueError("path must not be empty")
        self._path = os.path.abspath(plain)  # a later chdir changes nothing, and ":memory:" is a file name
        self._dumps = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
        self._loads = json.loads
        # LOCK: protects the connection; held while calling out to nothing but the store's clock.
        self.lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._durable = durable
        self._synchronous = ""
        self._closed = False
        _make_private_file(self._path)
        self._translated(self._open)
        watch_forks(self)

    def encode(self, value: Any, path: str) -> str:
        """Return a value as JSON text.

        Raises:
            ValueError: JSON would lose or change something; raised here.
        """
        _check_json(value, path, 0)
        return self._dumps(value)

    def decode(self, stored: str) -> Any:
        """Parse JSON text.

        Raises:
            SessionError: It is damaged; raised here.
        """
        try:
            return self._loads(stored)
        except (ValueError, TypeError) as error:
            raise SessionError(f"{self._path}: a stored value is damaged: {error}") from error

    def transact(self, body: Callable[[Table], T], *, write: bool, durable: bool = True) -> T:
        """Run ``body`` as one transaction, rolled back if it raises.

        Raises:
            SessionError: Closed, damaged, full, locked for 30 s, or called from inside a transaction; raised here.
        """
        if is_owned(self.lock):
            raise SessionError(INSIDE)
        with self.lock:
            return self._translated(lambda: self._transact(body, write, durable))

    def _transact(self, body: Callable[[Table], T], write: bool, durable: bool) -> T:
        connection = self._connection or self._reopen()
        if connection.in_transaction:  # a KeyboardInterrupt between two lines of an earlier one
            connection.execute("ROLLBACK")
        level = "FULL" if durable and self._durable else "NORMAL"
        if write and level != self._synchronous:
            connection.execute(f"PRAGMA synchronous={level}")
            self._synchronous = level
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            result = body(_SQLiteTable(connection))
            connection.execute("COMMIT")
            return result
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; the write-ahead log is merged into it if nobody else has it open."""
        if is_owned(self.lock):
            raise SessionError(INSIDE)
        with self.lock:
            self._closed = True
            self._disconnect()

    def _stop(self) -> None:
        """Close the file; parent and child open it again, each for itself."""
        # An open connection must not reach the child, not even unused: SQLite keeps one table of locks a
        # process, and the child's copy would claim locks on the file that only the parent has.
        # Source: SQLite, How To Corrupt An SQLite Database File, section 2.6.
        self._disconnect()

    def _go_on(self, *, child: bool) -> None:
        """Let the threads in again, which the lock does."""

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reopen(self) -> sqlite3.Connection:
        if self._closed:
            raise SessionError(f"{self._path}: the session store is closed")
        if not os.path.lexists(self._path):
            raise SessionError(f"{self._path}: the file is gone")
        return self._open()

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        _refuse_odd_file(self._path)
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare_schema(connection, self._path)
            connection.execute("PRAGMA fullfsync=ON")  # macOS: an fsync alone stops at the drive's cache
        except BaseException:
            connection.close()
            raise
        self._synchronous = ""
        self._connection = connection
        return connection

    def _translated(self, act: Callable[[], T]) -> T:
        import sqlite3

        try:
            return act()
        except sqlite3.Error as error:
            raise SessionError(f"{self._path}: {error}") from error


def _make_private_file(path: str) -> None:
    with suppress(FileExistsError):  # O_EXCL never follows a link
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _refuse_odd_file(path: str) -> None:
    # Looked at but not opened: closing a second descriptor of the file would drop the locks that another
    # connection of this process has on it.
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
        raise SessionError(f"{path}: refused as a session file, because it is {kind}")


def _prepare_schema(connection: sqlite3.Connection, path: str) -> None:
    def tables() -> set[str]:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}

    # Looked at before anything is written, so that another program's database stays as it is.
    found = tables()
    if found and "snakepit_schema" not in found:
        raise SessionError(f"{path}: a SQLite file of something else (tables: {', '.join(sorted(found))})")
    if not found:
        _enter_wal_mode(connection)
        connection.execute("BEGIN IMMEDIATE")
        if not tables():
            connection.execute("CREATE TABLE snakepit_schema (version INTEGER NOT NULL)")
            connection.execute("INSERT INTO snakepit_schema VALUES (?)", (SCHEMA_VERSION,))
            connection.execute(
                "CREATE TABLE records (place INTEGER PRIMARY KEY, owner TEXT NOT NULL, key TEXT NOT NULL,"
                " value TEXT NOT NULL, created_at REAL NOT NULL, last_accessed_at REAL NOT NULL,"
                " ttl_s REAL NOT NULL, version INTEGER NOT NULL, UNIQUE (owner, key))"
            )
            connection.execute("CREATE INDEX sessions ON records (owner) WHERE key = ''")
        connection.execute("COMMIT")
    versions = [version for (version,) in connection.execute("SELECT version FROM snakepit_schema")]
    if versions != [SCHEMA_VERSION]:
        raise SessionError(f"{path}: schema version {versions}; this snakepit reads {SCHEMA_VERSION}")


def _enter_wal_mode(connection: sqlite3.Connection) -> None:
    import sqlite3

    # Here SQLite does not wait for other processes that open the same new file, so this does.
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.005)


_GET: Final = (
    "SELECT value, created_at, last_accessed_at, ttl_s, version FROM records WHERE owner = ? AND key = ?"
)
_OWNED: Final = (
    "SELECT key, value, created_at, last_accessed_at, ttl_s, version FROM records"
    " WHERE owner = ? ORDER BY place"
)
_PUT: Final = (
    "INSERT INTO records (owner, key, value, created_at, last_accessed_at, ttl_s, version)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner, key) DO UPDATE SET value = excluded.value,"
    " created_at = excluded.created_at, last_accessed_at = excluded.last_accessed_at,"
    " ttl_s = excluded.ttl_s, version = excluded.version"
)
_TOUCH: Final = "UPDATE records SET last_accessed_at = ? WHERE owner = ? AND key = ?"
_DELETE: Final = "DELETE FROM records WHERE owner = ? AND key = ?"
_DELETE_ALL: Final = "DELETE FROM records WHERE owner = ?"
_EXPIRED_SESSIONS: Final = "SELECT owner FROM records WHERE key = '' AND last_accessed_at + ttl_s <= ?"
_DELETE_EXPIRED_GLOBALS: Final = "DELETE FROM records WHERE owner = '' AND last_accessed_at + ttl_s <= ?"
_LIVE_SESSIONS: Final = (
    "SELECT owner FROM records WHERE key = '' AND last_accessed_at + ttl_s > ? ORDER BY place"
)
_COUNT_ALL: Final = (
    "SELECT (SELECT count(*) FROM records WHERE key = ''), (SELECT count(*) FROM records WHERE owner = '')"
)
_COUNT_LIVE: Final = (
    "WITH live AS (SELECT owner FROM records WHERE key = '' AND last_accessed_at + ttl_s > ?1) SELECT"
    " (SELECT count(*) FROM live),"
    " (SELECT count(*) FROM records WHERE key <> '' AND owner IN live),"
    " (SELECT count(*) FROM records WHERE owner = '' AND last_accessed_at + ttl_s > ?1)"
)


class _SQLiteTable:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def get(self, owner: str, key: str) -> Row | None:
        found = self._execute(_GET, (owner, key)).fetchone()
        return None if found is None else Row(*found)

    def owned(self, owner: str) -> dict[str, Row]:
        return {key: Row(*rest) for key, *rest in self._execute(_OWNED, (owner,))}

    def put(self, owner: str, key: str, row: Row) -> None:
        times = row.created_at, row.last_accessed_at, row.ttl_s
        self._execute(_PUT, (owner, key, row.value, *times, row.version))

    def touch(self, owner: str, key: str, now: float) -> None:
        self._execute(_TOUCH, (now, owner, key))

    def delete(self, owner: str, key: str) -> None:
        if key:
            self._execute(_DELETE, (owner, key))
        else:
            self._execute(_DELETE_ALL, (owner,))

    def sweep(self, now: float) -> int:
        sessions = self._execute(_EXPIRED_SESSIONS, (now,)).fetchall()
        for owner in sessions:
            self._execute(_DELETE_ALL, owner)
        return len(sessions) + self._execute(_DELETE_EXPIRED_GLOBALS, (now,)).rowcount

    def ids(self, now: float) -> tuple[str, ...]:
        return tuple(owner for (owner,) in self._execute(_LIVE_SESSIONS, (now,)))

    def sizes(self) -> tuple[int, int]:
        sessions, global_programs = self._execute(_COUNT_ALL).fetchone()
        return sessions, global_programs

    def counts(self, now: float) -> tuple[int, int, int]:
        sessions, programs, global_programs = self._execute(_COUNT_LIVE, (now,)).fetchone()
        return sessions, programs, global_programs

    def size_bytes(self) -> int | None:
        (pages,) = self._execute("PRAGMA page_count").fetchone()
        (page_bytes,) = self._execute("PRAGMA page_size").fetchone()
        return int(pages) * int(page_bytes)


def _check_json(value: Any, path: str, depth: int) -> None:
    """Admit what comes back from JSON as it was, lists for tuples excepted."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:80]}: nested deeper than {MAX_DEPTH} levels, or a cycle")
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(f"{path}: key {key!r:.80} is {type(key).__name__}; JSON keys are str")
            _check_json(item, f"{path}/{key.replace('~', '~0').replace('/', '~1')}", depth + 1)
    elif kind is list or kind is tuple:
        for index, item in enumerate(value):
            _check_json(item, f"{path}/{index}", depth + 1)
    elif kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{path}: {value!r} is not JSON")
    elif kind is int:
        with suppress(ValueError):
            if value.bit_length() < 1024 or repr(value):
                return
        raise ValueError(f"{path}: an int of {value.bit_length()} bits has too many digits")
    else:
        raise ValueError(f"{path}: {kind.__module__}.{kind.__qualname__} is not a JSON type; convert it")

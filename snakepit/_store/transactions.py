"""What the single steps of a session store do to the rows, each inside one transaction of the caller's.

Runs on the threads of the store's callers and owns no state.
"""

from __future__ import annotations

import math
from typing import Final

from ..errors import SessionNotFound
from .backends import Table
from .records import Row, new_version

__all__ = (
    "GLOBAL",
    "SESSION",
    "count",
    "delete",
    "delete_program",
    "exists",
    "find",
    "get_global_program",
    "get_program",
    "get_session",
    "ids",
    "replace",
    "store_program",
    "sweep",
)

SESSION: Final = ""
"""The key of a session's own row; program ids are never empty."""

GLOBAL: Final = ""
"""The owner of the global programs; session ids are never empty."""


def _check_live(row: Row | None, session_id: str, now: float) -> Row:
    if row is None or row.expired(now):
        raise SessionNotFound(f"no session {session_id!r}")
    return row


def exists(table: Table, now: float, session_id: str) -> bool:
    """Say whether there is such a session that has not expired."""
    row = table.get(session_id, SESSION)
    return row is not None and not row.expired(now)


def ids(table: Table, now: float) -> tuple[str, ...]:
    """Return the ids of the sessions that have not expired, oldest first."""
    return table.ids(now)


def count(table: Table, now: float) -> tuple[tuple[int, int, int], int | None]:
    """Return the numbers of what has not expired, and the bytes in use."""
    return table.counts(now), table.size_bytes()


def sweep(table: Table, now: float) -> int:
    """Remove what has expired; return how much that was."""
    return table.sweep(now)


def find(table: Table, now: float, session_id: str, key: str) -> Row:
    """Return the row of a session or of a program of a live one, or raise SessionNotFound."""
    session = _check_live(table.get(session_id, SESSION), session_id, now)
    row = session if key == SESSION else table.get(session_id, key)
    if row is None:
        raise SessionNotFound(f"no program {key!r} in session {session_id!r}")
    return row


def get_session(table: Table, now: float, session_id: str) -> tuple[dict[str, Row], float]:
    """Return the rows of a session, touched, and when that was; or raise SessionNotFound."""
    rows = table.owned(session_id)
    _check_live(rows.get(SESSION), session_id, now)
    table.touch(session_id, SESSION, now)
    return rows, now


def get_program(table: Table, now: float, session_id: str, program_id: str) -> Row:
    """Return the row of a session's program and touch the session, or raise SessionNotFound."""
    row = find(table, now, session_id, program_id)
    table.touch(session_id, SESSION, now)
    return row


def store_program(table: Table, now: float, session_id: str, program_id: str, value: object) -> None:
    """Put a program of a live session and touch the session, or raise SessionNotFound."""
    find(table, now, session_id, SESSION)
    table.touch(session_id, SESSION, now)
    table.put(session_id, program_id, Row(value, now, now, math.inf, new_version()))


def delete_program(table: Table, now: float, session_id: str, program_id: str) -> bool:
    """Remove a program of a live session and touch the session; return whether there was one."""
    if not exists(table, now, session_id) or table.get(session_id, program_id) is None:
        return False
    table.touch(session_id, SESSION, now)
    table.delete(session_id, program_id)
    return True


def get_global_program(table: Table, now: float, program_id: str) -> Row:
    """Return the row of a global program, touched, or raise SessionNotFound."""
    row = table.get(GLOBAL, program_id)
    if row is None or row.expired(now):
        raise SessionNotFound(f"no global program {program_id!r}")
    table.touch(GLOBAL, program_id, now)
    return row


def delete(table: Table, now: float, owner: str, key: str) -> tuple[bool, bool]:
    """Remove a row; return whether it was there, and whether it had expired."""
    row = table.get(owner, key)
    if row is None:
        return False, False
    table.delete(owner, key)
    return True, row.expired(now)


def replace(
    table: Table, now: float, session_id: str, key: str, old: Row, value: object
) -> tuple[dict[str, Row], float] | None:
    """Put a changed value in the place of ``old``; return the session's rows and when that was.

    Returns None, and changes nothing, where another row has taken that place; raises SessionNotFound where none has.
    """
    # RACE: 1. the callback of an update runs; 2. another process, or store_program here, changes the row;
    # 3. storing the result would undo that.  The version tells, and the update starts again
    # (tests/unit/test_sessions.py::test_an_update_starts_again_when_the_row_changed_meanwhile).
    if find(table, now, session_id, key).version != old.version:
        return None
    table.put(session_id, key, Row(value, old.created_at, now, old.ttl_s, new_version()))
    if key != SESSION:
        table.touch(session_id, SESSION, now)
    return table.owned(session_id), now

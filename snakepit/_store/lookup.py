"""Finds the row of a live session or program in a table, inside the caller's transaction.

Runs on the threads of the store's callers and owns no state.
"""

from __future__ import annotations

from typing import Final

from ..errors import SessionNotFound
from .backends import Table
from .records import Row

__all__ = ("SESSION", "check_live", "find", "find_session")

SESSION: Final = ""
"""The key of a session's own row; program ids are never empty."""


def check_live(row: Row | None, session_id: str, now: float) -> Row:
    """Return a session's row, or raise SessionNotFound when it is missing or expired."""
    if row is None or row.expired(now):
        raise SessionNotFound(f"no session {session_id!r}")
    return row


def find_session(table: Table, session_id: str, now: float) -> Row:
    """Return the row of a session, or raise SessionNotFound."""
    return check_live(table.get(session_id, SESSION), session_id, now)


def find(table: Table, session_id: str, key: str, now: float) -> Row:
    """Return the row of a session or of a program of a live one, or raise SessionNotFound."""
    session = find_session(table, session_id, now)
    row = session if key == SESSION else table.get(session_id, key)
    if row is None:
        raise SessionNotFound(f"no program {key!r} in session {session_id!r}")
    return row

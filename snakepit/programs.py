"""Programs in a session: create one in a worker, keep its record in the store, run it later.

Runs on the caller's thread and owns no state.  It knows executors by their two members that it uses,
so it must not import ``executor``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from .errors import InvalidArguments, ResultError, SessionExists, SessionNotFound
from .sessions import SessionStore

__all__ = ("ProgramExecutor", "execute_program_command")


class ProgramExecutor(Protocol):
    """What this module needs of an executor."""

    @property
    def sessions(self) -> SessionStore:
        """The store that keeps the records."""

    def execute(self, command: str, args: Any, /, *, session: str, **options: Any) -> Any:
        """Run a command in a session's worker and return its result."""


def execute_program_command(
    executor: ProgramExecutor, session_id: str, command: str, args: Mapping[str, Any], **options: Any
) -> Any:
    """Run a command in a session, with the session's programs at hand.

    ``create_program``
        runs in the worker; then the record ``{"program_id": str, "args": {...}, "result": {...},
        "created_at": wall-clock seconds}`` is stored in the session, which is made if there is none.
        The id is the result's ``"program_id"``, else that of the args, else a new one.  Returns the
        result with the id; a result that is no object is returned as ``{"result": ..., "program_id": ...}``.
    ``execute_program``
        looks ``args["program_id"]`` up in the session, then among the global programs, and runs in the
        worker with the record added as ``args["program"]``.  Returns the worker's result.
    ``delete_program``
        removes ``args["program_id"]`` from the session; no worker is asked.  Returns
        ``{"program_id": str, "deleted": True}``.
    any other command
        runs in the worker with its args as they are.

    Args:
        executor: E.g. a ``SnakepitExecutor``.
        session_id: The session, not empty.
        command: The command.
        args: ``{name: value}`` for the first three; for any other, what it takes.
        **options: Passed on to ``executor.execute``, e.g. ``timeout``.

    Raises:
        InvalidArguments: The args are no mapping, or have no ``"program_id"`` where one is needed;
            raised here, nothing is sent.
        SessionNotFound: No such program in the session (nor, to run it, a global one); raised here,
            nothing is sent.
        ResultError: The worker's ``"program_id"`` is no text; raised here.
        SessionQuotaExceeded: The session had to be made and there is no room; raised here, after the
            worker has made the program.
        ValueError: The record cannot be stored, e.g. bytes in a SQLite file; raised here, after the
            worker has made the program.
        SnakepitError: Whatever ``executor.execute`` raises; then nothing is stored.
    """
    if command == "create_program":
        return _create(executor, session_id, _as_dict(command, args), options)
    if command == "execute_program":
        known = _as_dict(command, args)
        record = _look_up(executor.sessions, session_id, _program_id(command, known))
        return executor.execute(command, {**known, "program": record}, session=session_id, **options)
    if command == "delete_program":
        program_id = _program_id(command, _as_dict(command, args))
        if not executor.sessions.delete_program(session_id, program_id):
            raise SessionNotFound(f"no program {program_id!r} in session {session_id!r}")
        return {"program_id": program_id, "deleted": True}
    return executor.execute(command, args, session=session_id, **options)


def _create(
    executor: ProgramExecutor, session_id: str, args: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    result = executor.execute("create_program", args, session=session_id, **options)
    answer = dict(result) if isinstance(result, Mapping) else {"result": result}
    wished = args.get("program_id")
    fallback = wished if isinstance(wished, str) and wished else uuid.uuid4().hex
    program_id = answer.get("program_id") or fallback
    if not isinstance(program_id, str):
        raise ResultError(f"create_program gave the program_id {program_id!r}; it must be text")
    answer["program_id"] = program_id
    record = {"program_id": program_id, "args": args, "result": answer, "created_at": time.time()}
    try:
        executor.sessions.store_program(session_id, program_id, record)
    except SessionNotFound:
        with suppress(SessionExists):  # another call of this session was faster
            executor.sessions.create(session_id)
        executor.sessions.store_program(session_id, program_id, record)
    return answer


def _look_up(sessions: SessionStore, session_id: str, program_id: str) -> Any:
    try:
        return sessions.get_program(session_id, program_id)
    except SessionNotFound:
        with suppress(SessionNotFound):
            return sessions.get_global_program(program_id)
    raise SessionNotFound(f"no program {program_id!r} in session {session_id!r}, and no global one")


def _as_dict(command: str, args: object) -> dict[str, Any]:
    if not isinstance(args, Mapping):
        raise InvalidArguments(f"{command} takes an object of arguments, not {args!r:.80}")
    return dict(args)


def _program_id(command: str, args: dict[str, Any]) -> str:
    program_id = args.get("program_id")
    if not isinstance(program_id, str) or not program_id:
        raise InvalidArguments(f"{command} needs a program_id, text and not empty; got {program_id!r:.80}")
    return program_id

"""Programs in a session, with an executor that is a list of expected calls."""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import Any

import pytest

from snakepit.errors import InvalidArguments, ResultError, SessionNotFound, SessionQuotaExceeded, WorkerDied
from snakepit.programs import execute_program_command
from snakepit.sessions import SessionStore


class FakeExecutor:
    """Answers each call with the next of its answers, and keeps what it was called with."""

    def __init__(self, *answers: Any, max_sessions: int = 10) -> None:
        self.sessions = SessionStore(max_sessions=max_sessions)
        self.answers = list(answers)
        self.calls: list[tuple[str, Any, str, dict[str, Any]]] = []

    def execute(self, command: str, args: Any, /, *, session: str, **options: Any) -> Any:
        self.calls.append((command, args, session, options))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


ARGS = {"signature": "question -> answer", "temperature": 0.7}


def test_create_program_stores_its_record() -> None:
    """The worker's program_id names the record, which holds args, result and time; the session is made."""
    executor = FakeExecutor({"program_id": "prog-1", "status": "ok"})
    before = time.time()

    result = execute_program_command(executor, "ml", "create_program", ARGS)

    record = executor.sessions.get_program("ml", "prog-1")
    assert {"program_id": "prog-1", "status": "ok"} == result
    assert [("create_program", ARGS, "ml", {})] == executor.calls
    assert before <= record.pop("created_at") <= time.time()
    assert {"program_id": "prog-1", "args": ARGS, "result": result} == record


def test_create_program_in_an_existing_session() -> None:
    """An existing session keeps what it has."""
    executor = FakeExecutor({"program_id": "p"}, {"program_id": "q"}, {"program_id": "p", "again": True})
    executor.sessions.create("ml", metadata={"user": "Ada"})

    for _ in range(3):
        execute_program_command(executor, "ml", "create_program", {})

    session = executor.sessions.get("ml")
    assert {"user": "Ada"} == session.metadata
    assert ["p", "q"] == list(session.programs)
    assert session.programs["p"]["result"]["again"]


def test_create_program_when_the_session_appears_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls that both find no session share the one that is made first."""
    executor = FakeExecutor({"program_id": "p"})
    create = executor.sessions.create

    def create_late(session_id: str) -> None:
        create(session_id, metadata={"by": "other"})
        create(session_id)

    monkeypatch.setattr(executor.sessions, "create", create_late)

    execute_program_command(executor, "ml", "create_program", {})

    session = executor.sessions.get("ml")
    assert ({"by": "other"}, ["p"]) == (session.metadata, list(session.programs))


@pytest.mark.parametrize("answer", [{"status": "ok"}, {"status": "ok", "program_id": None}])
def test_a_worker_that_gives_no_id(answer: dict[str, Any]) -> None:
    """Without an id from the worker the caller's holds, and without that a new one is made."""
    executor = FakeExecutor(answer, answer, answer)

    named = execute_program_command(executor, "ml", "create_program", {"program_id": "mine"})
    made = [execute_program_command(executor, "ml", "create_program", {}) for _ in range(2)]

    ids = [named["program_id"], *(result["program_id"] for result in made)]
    assert "mine" == ids[0]
    assert 3 == len(set(ids))
    assert ids == list(executor.sessions.get("ml").programs)


def test_a_result_that_is_no_object() -> None:
    """A bare result is returned beside the id that was made for it."""
    executor = FakeExecutor("created")

    result = execute_program_command(executor, "ml", "create_program", {})

    assert "created" == result["result"]
    assert [result["program_id"]] == list(executor.sessions.get("ml").programs)


def test_a_worker_whose_id_is_no_text() -> None:
    """An id that cannot name anything is the worker's fault, and nothing is stored."""
    executor = FakeExecutor({"program_id": 7})

    with pytest.raises(ResultError, match="7"):
        execute_program_command(executor, "ml", "create_program", {})

    assert () == executor.sessions.ids()


def test_a_failed_create_leaves_nothing() -> None:
    """The executor's error reaches the caller, and neither session nor program is made."""
    error = WorkerDied("gone")
    executor = FakeExecutor(error)

    with pytest.raises(WorkerDied) as caught:
        execute_program_command(executor, "ml", "create_program", {})

    assert error is caught.value
    assert () == executor.sessions.ids()


def test_create_program_without_room() -> None:
    """A session that cannot be made is the store's own error."""
    executor = FakeExecutor({"program_id": "p"}, max_sessions=1)
    executor.sessions.create("other")

    with pytest.raises(SessionQuotaExceeded):
        execute_program_command(executor, "ml", "create_program", {})


def test_execute_program_sends_the_record_along() -> None:
    """The worker gets the args with the record as ``program``; the caller's args stay as they are."""
    executor = FakeExecutor({"program_id": "p"}, {"answer": "Paris"})
    execute_program_command(executor, "ml", "create_program", ARGS)
    args = MappingProxyType({"program_id": "p", "input": {"question": "capital of France?"}})

    result = execute_program_command(executor, "ml", "execute_program", args, timeout=5)

    command, sent, session, options = executor.calls[1]
    assert {"answer": "Paris"} == result
    assert ("execute_program", "ml", {"timeout": 5}) == (command, session, options)
    assert {**args, "program": executor.sessions.get_program("ml", "p")} == sent
    assert ARGS == sent["program"]["args"]
    assert {"program_id", "input"} == set(args)


def test_execute_program_falls_back_on_global_programs() -> None:
    """A global program serves every session, its None included; the session's own comes first."""
    executor = FakeExecutor(1, 2, 3)
    executor.sessions.store_global_program("shared", {"type": "qa"})
    executor.sessions.store_global_program("null", None)
    executor.sessions.create("own")
    executor.sessions.store_program("own", "shared", "mine")

    for session, program_id in (("own", "shared"), ("other", "shared"), ("other", "null")):
        execute_program_command(executor, session, "execute_program", {"program_id": program_id})

    assert ["mine", {"type": "qa"}, None] == [args["program"] for _, args, _, _ in executor.calls]


@pytest.mark.parametrize("command", ["execute_program", "delete_program"])
def test_an_unknown_program(command: str) -> None:
    """A program that is in no store is SessionNotFound, and no worker is asked."""
    executor = FakeExecutor()
    executor.sessions.create("ml")

    with pytest.raises(SessionNotFound, match=r"'p'.*'ml'"):
        execute_program_command(executor, "ml", command, {"program_id": "p"})

    assert [] == executor.calls


@pytest.mark.parametrize("command", ["execute_program", "delete_program"])
@pytest.mark.parametrize("args", [{}, {"program_id": None}, {"program_id": ""}, {"program_id": 7}])
def test_a_missing_program_id(command: str, args: dict[str, Any]) -> None:
    """Without a usable program_id the arguments are invalid, and no worker is asked."""
    executor = FakeExecutor()

    with pytest.raises(InvalidArguments, match=f"{command} needs a program_id"):
        execute_program_command(executor, "ml", command, args)

    assert [] == executor.calls


@pytest.mark.parametrize("command", ["create_program", "execute_program", "delete_program"])
def test_arguments_that_are_no_object(command: str) -> None:
    """The three commands take an object."""
    executor = FakeExecutor()

    with pytest.raises(InvalidArguments, match=command):
        execute_program_command(executor, "ml", command, ["p"])  # type: ignore[arg-type]

    assert [] == executor.calls


def test_delete_program() -> None:
    """A deleted program is gone from the session; no worker is asked, and global programs stay."""
    executor = FakeExecutor()
    executor.sessions.create("ml")
    executor.sessions.store_program("ml", "p", 1)
    executor.sessions.store_global_program("p", 2)

    result = execute_program_command(executor, "ml", "delete_program", {"program_id": "p"})

    assert {"program_id": "p", "deleted": True} == result
    assert {} == executor.sessions.get("ml").programs
    assert 2 == executor.sessions.get_global_program("p")
    assert [] == executor.calls


@pytest.mark.parametrize("args", [{"program_id": "p"}, ["any"], None])
def test_other_commands_pass_through(args: Any) -> None:
    """Any other command reaches the worker with its args and options unchanged."""
    executor = FakeExecutor("answer")

    result = execute_program_command(executor, "ml", "summarize", args, timeout=3)

    ((command, sent, session, options),) = executor.calls
    assert "answer" == result
    assert ("summarize", "ml", {"timeout": 3}) == (command, session, options)
    assert args is sent
    assert () == executor.sessions.ids()

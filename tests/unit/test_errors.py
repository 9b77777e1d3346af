"""The exceptions: what they are, what they carry, and that they survive pickling."""

from __future__ import annotations

import pickle
import queue
from concurrent.futures.process import BrokenProcessPool

import pytest

from snakepit import errors
from snakepit._core.model import describe_exit
from snakepit._pool.exits import refused_start
from snakepit.errors import CommandError, SnakepitError, WorkerDied, WorkerStartError

BASES = {
    "UnknownCommand": (CommandError, LookupError),
    "InvalidArguments": (CommandError, ValueError),
    "EncodeError": (ValueError,),
    "ResultError": (ValueError,),
    "QueueFull": (queue.Full,),
    "QueueTimeout": (TimeoutError,),
    "CommandTimeout": (TimeoutError,),
    "WorkerDied": (BrokenProcessPool,),
    "PoolBroken": (BrokenProcessPool,),
    "SessionNotFound": (errors.SessionError, KeyError),
    "SessionExists": (errors.SessionError,),
    "SessionBusy": (errors.SessionError,),
    "SessionLost": (errors.SessionError,),
    "SessionQuotaExceeded": (errors.SessionError,),
}


@pytest.mark.parametrize("name", errors.__all__)
def test_public_errors(name: str) -> None:
    """Every public error is a SnakepitError, documented, and what users of the standard pools expect."""
    cls = getattr(errors, name)

    assert issubclass(cls, SnakepitError) or name == "RemoteTraceback"
    assert cls.__doc__
    for base in BASES.get(name, ()):
        assert issubclass(cls, base)


@pytest.mark.parametrize("name", errors.__all__)
def test_round_trip_through_pickle(name: str) -> None:
    """Each error survives pickling with its message, so that it can leave the process."""
    error = getattr(errors, name)("what happened")

    again = pickle.loads(pickle.dumps(error))

    assert type(error) is type(again)
    assert str(error) == str(again)


def test_command_error() -> None:
    """A CommandError carries what the worker said, and its traceback as the cause."""
    error = CommandError(
        "division by zero",
        code="handler_error",
        type="ZeroDivisionError",
        remote_traceback="Traceback ...",
        data={"n": 1},
    )

    again = pickle.loads(pickle.dumps(error))

    for one in (error, again):
        assert "ZeroDivisionError: division by zero" == str(one)
        assert ("handler_error", "ZeroDivisionError", "division by zero", "Traceback ...", {"n": 1}) == (
            one.code, one.type, one.message, one.remote_traceback, one.data,
        )  # fmt: skip
        assert '\n"""\nTraceback ..."""' == str(one.__cause__)


def test_an_exception_may_be_the_message() -> None:
    """``raise InvalidArguments(error) from error`` reads like the error, and survives a pickle."""
    error = errors.InvalidArguments(ValueError("no number: 'q'"))  # type: ignore[arg-type]

    copy = pickle.loads(pickle.dumps(error))

    assert ("no number: 'q'", "no number: 'q'") == (str(error), error.message)
    assert str(error) == str(copy)


def test_codes_of_the_subclasses() -> None:
    """The subclasses have their protocol codes; without a type the message stands alone."""
    assert "unknown_command" == errors.UnknownCommand("x").code
    assert "bad_args" == errors.InvalidArguments("x").code
    assert "internal" == CommandError("x", code="internal", type="T").code
    assert "x" == str(CommandError("x", code="internal", type="T"))
    assert CommandError("x").__cause__ is None


def test_worker_died() -> None:
    """WorkerDied tells how, and keeps it through pickling."""
    error = WorkerDied("gone", pid=7, exit_code=None, signal=9, stderr_tail="oops")

    again = pickle.loads(pickle.dumps(error))

    assert (7, None, 9, "oops") == (again.pid, again.exit_code, again.signal, again.stderr_tail)


def test_worker_start_error() -> None:
    """WorkerStartError tells the command line and how it ended, also after pickling."""
    error = WorkerStartError("no", argv=("node", "x.js"), exit_code=1, signal=None, stderr_tail="tail")

    again = pickle.loads(pickle.dumps(error))

    assert ("node", "x.js") == again.argv
    assert (1, None, "tail") == (again.exit_code, again.signal, again.stderr_tail)


def test_long_words_of_a_command_line_are_shown_in_part() -> None:
    """The message of a start that was refused is for reading; ``argv`` has all of it."""
    argv = ("program", "-c", "x" * 100_000)

    error = refused_start(argv, OSError("Argument list too long"))

    assert f"program -c {'x' * 200}... (100000 characters): Argument list too long" == str(error)
    assert argv == error.argv


def test_session_not_found_reads_like_a_message() -> None:
    """Unlike other KeyErrors it shows its message as it is."""
    assert "no session 'x'" == str(errors.SessionNotFound("no session 'x'"))


@pytest.mark.parametrize(
    ("exit_code", "signal", "words"),
    [
        (0, None, "exit code 0"),
        (3, None, "exit code 3"),
        (None, 11, "signal 11 (SIGSEGV)"),
        (None, 250, "signal 250"),
        (None, None, "an unknown exit status"),
    ],
)
def test_describe_exit(exit_code: int | None, signal: int | None, words: str) -> None:
    """An exit status in words."""
    assert words == describe_exit(exit_code, signal)

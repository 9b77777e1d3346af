"""The second bridge of docs/bridges.md: Tcl passes the kit, serves a pool, and is what the page shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import IMPATIENT_S, REPLY_TIMEOUT_S, Worker
from conformance.example_bridge import PAGE, adapter_of, begin, blocks_of_page, check_applicable, check_shown

from snakepit import (
    CommandError,
    InvalidArguments,
    ResultError,
    ScriptAdapter,
    SnakepitExecutor,
    UnknownCommand,
    WorkerStartError,
)
from snakepit._conformance.case import Case
from snakepit._conformance.runner import Suite, select_cases
from snakepit._conformance.survey import Target

FOLDER = PAGE.parent / "examples" / "tcl"
BRIDGE, HANDLERS = FOLDER / "snakepit_bridge.tcl", FOLDER / "handlers.tcl"
ARGV = ("tclsh", str(BRIDGE), "--handlers", str(HANDLERS))
SUITE = Suite(Target(ARGV, REPLY_TIMEOUT_S, Worker))
CANNOT = {
    "child-of-a-handler-inherits-no-frame-descriptor",
    "level0-child-of-a-handler-inherits-no-frame-descriptor",
    "end-of-requests-ends-a-waiting-worker",
    "frames-over-sockets",
    "sigint-is-ignored",
    "level0-sigint-is-ignored",
}
MORE_HANDLERS = r"""
proc on_start {json} { global greeting; set greeting [field $json greeting] }
command greet { text "$::greeting, [field $json name]" }
command fail { throw Failure [field $json message] }
command repeat { text [string repeat [field $json text] [field $json times]] }
command say { puts [field $json line]; text said }
command number { number [field $json text] }
command half { list object [list "a/b" [list array [list [list text \ud800]]]] }
command nothing { return {} }
"""


@pytest.fixture(autouse=True)
def tclsh(require_runtime: Callable[[str], str]) -> str:
    """Return the path of Tcl; without it no test of the module runs."""
    return require_runtime("tclsh")


@pytest.fixture
def adapter_class() -> type[ScriptAdapter]:
    """Return the adapter of the example."""
    return adapter_of(FOLDER, "TclAdapter")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """A worker with handlers that go wrong, not yet started."""
    (tmp_path / "more.tcl").write_text(MORE_HANDLERS)
    with Worker(["tclsh", str(BRIDGE), "--handlers", str(tmp_path / "more.tcl")], 1) as process:
        yield process


@pytest.mark.parametrize("case", select_cases(1), ids=str)
def test_conformance(case: Case) -> None:
    """What applies passes; what does not is a command or capability that the bridge does not have, or a known limit."""
    check_applicable(SUITE, case, CANNOT)


def test_a_known_limit_is_one() -> None:
    """What Tcl is said not to be able to do really fails, where the bridge has what it takes to try."""
    impatient = Suite(Target(ARGV, IMPATIENT_S, Worker))
    cases = select_cases(1, ["*sigint*", "frames-over-sockets"])

    found = {case.name for case in cases if impatient.try_out(case).finding}

    assert {"sigint-is-ignored", "level0-sigint-is-ignored", "frames-over-sockets"} == found


def test_errors_have_type_message_and_traceback(worker: Worker) -> None:
    """Tcl's own errors, thrown ones with their first word as type, and results that cannot be sent."""
    begin(worker, {"greeting": "Good evening"})

    def error(name: str, args: Any) -> Any:
        return worker.call(1, name, args)["error"]

    assert "Good evening, Ada" == worker.call(1, "greet", {"name": "Ada"})["result"]
    failure = error("fail", {"message": "broken: é \U0001f600"})
    assert ("handler_error", "Failure") == (failure["code"], failure["type"])
    assert "broken: é \U0001f600" == failure["message"]
    assert "throw Failure" in failure["traceback"]
    assert "Failure" == error("fail", {"message": ""})["message"]
    assert ("bad_args", "missing field 'name'") == (error("greet", [])["code"], error("greet", [])["message"])
    assert "TclError" == error("repeat", {"text": "x", "times": "many"})["type"]
    assert 65536 >= len(error("fail", {"message": "é" * 60_000})["message"].encode()) > 65_000
    for text, words in (("NaN", "NaN"), ("Inf", "Infinity"), ("0x10", "0x10"), ("1e400", "1e400")):
        refused = error("number", {"text": text})
        assert ("encode_error", f"result: {words} is not JSON") == (refused["code"], refused["message"])
    assert "result/a~1b/0: text with a lone surrogate is not UTF-8" == error("half", {})["message"]
    assert "result: not a pair {kind value}" == error("nothing", {})["message"]


def test_a_low_limit_refuses_the_result_and_still_tells_errors(worker: Worker) -> None:
    """Too large a result is named with both numbers, and too large an error keeps its code and some of its message."""
    begin(worker, {"greeting": "Hi"}, max_frame=2000)

    large = worker.call(1, "repeat", {"text": "x", "times": 3000})["error"]
    error = worker.call(2, "fail", {"message": "x" * 1900})["error"]

    assert "too_large" == large["code"]
    assert re.fullmatch(r"the encoded reply has 30\d\d bytes; the limit is 2000 \(max_frame\)", large["message"])
    assert ("handler_error", "x" * 200, None) == (error["code"], error["message"], error["traceback"])


def test_messages_without_a_reply_do_no_harm(worker: Worker) -> None:
    """The end of a session that was not, or without its name, and a message of a later version."""
    begin(worker, {"greeting": "Hi"})
    for message in ({"type": "session_end", "session": "x"}, {"type": "session_end"}, {"type": 5}):
        worker.send(message)

    assert "Hi, Ada" == worker.call(1, "greet", {"name": "Ada"})["result"]
    assert "" == worker.stderr()


def test_what_handlers_print_is_ordinary_output(worker: Worker) -> None:
    """In UTF-8, line by line, beside the frames."""
    begin(worker, {"greeting": "Hi"})

    assert "said" == worker.call(1, "say", {"line": "é漢"})["result"]
    assert "é漢\n" == worker.stdout()


@pytest.mark.parametrize(
    ("handlers", "start_args", "code", "words"),
    [
        ("command {", None, "handler_error", "missing close-brace"),
        ("", {"a": 1}, "bad_args", "start_args: the handlers have no on_start"),
        (MORE_HANDLERS, {}, "bad_args", "missing field 'greeting'"),
    ],
)
def test_a_start_that_fails(tmp_path: Path, handlers: str, start_args: Any, code: str, words: str) -> None:
    """The first ping says why, and the worker ends with status 1."""
    (tmp_path / "own.tcl").write_text(handlers)
    with Worker(["tclsh", str(BRIDGE), "--handlers", str(tmp_path / "own.tcl")], 1) as process:
        error = begin(process, start_args)["error"]

        assert code == error["code"]
        assert words in error["message"]
        assert 1 == process.wait()


def test_a_pool_of_tcl_workers(adapter_class: type[ScriptAdapter]) -> None:
    """Calls, sessions, and each kind of error as the exception of every language."""
    with SnakepitExecutor(adapter_class(HANDLERS), max_workers=2, timeout=30) as pool:
        assert ["ÉA", "B"] == list(pool.map("shout", [{"text": "éa"}, {"text": "b"}]))
        assert 0.75 == pool.execute("divide", {"a": 3, "b": 4})
        with pool.session("user-7") as session, pool.session() as other:
            assert [1, 3] == [session.execute("count", {"by": 1}), session.execute("count", {"by": 2})]
            assert 1 == other.execute("count", {"by": 1})
        with pytest.raises(CommandError, match="TclError: expected floating-point number"):
            pool.execute("divide", {"a": 1, "b": "x"})
        with pytest.raises(ResultError, match="result: Infinity is not JSON"):
            pool.execute("divide", {"a": 1, "b": 0})
        with pytest.raises(InvalidArguments, match="missing field 'text'"):
            pool.execute("shout")
        with pytest.raises(UnknownCommand, match="Available: count, divide, echo, ping, shout"):
            pool.execute("whisper")


def test_a_tcl_that_is_too_old_is_told(adapter_class: type[ScriptAdapter], tmp_path: Path) -> None:
    """The version comes out of a script, since tclsh has no option for it."""
    old = tmp_path / "tclsh"
    old.write_text("#!/bin/sh\necho 8.5.19\n")
    old.chmod(0o755)

    with pytest.raises(WorkerStartError, match=r"is Tcl 8\.5\.19, which is too old; 8\.6 or newer"):
        adapter_class(HANDLERS, program=old).argv()


def test_the_page_shows_what_lies_in_the_folder() -> None:
    """Each block of Tcl on the page is in the files word for word, and shown once."""
    shown = blocks_of_page("tcl")

    assert len(shown) >= 4
    check_shown(shown, FOLDER)


def test_the_bridge_has_as_many_lines_as_the_page_says() -> None:
    """Blank lines and comments do not count."""
    source = BRIDGE.read_text("utf-8")
    json = source[source.index("# --- values") : source.index("# --- frames")]

    whole, part = (
        sum(line.strip() != "" and not line.startswith("#") for line in text.splitlines()) for text in (source, json)
    )

    assert f"Of its {whole} lines of code {part} read and write JSON" in PAGE.read_text("utf-8")

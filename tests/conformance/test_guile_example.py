"""The bridge that docs/bridges.md builds: Guile passes the kit, serves a pool, and is what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import REPLY_TIMEOUT_S, Worker
from conformance.example_bridge import PAGE, adapter_of, begin, blocks_of_page, check_applicable, check_shown
from missing import give_up

from snakepit import (
    CommandError,
    ResultError,
    ScriptAdapter,
    SnakepitExecutor,
    UnknownCommand,
    WorkerDied,
    WorkerStartError,
)
from snakepit._conformance.case import Case
from snakepit._conformance.runner import Suite, select_cases
from snakepit._conformance.survey import Target

FOLDER = PAGE.parent / "examples" / "guile"
BRIDGE, HANDLERS = FOLDER / "snakepit_bridge.scm", FOLDER / "handlers.scm"
GUILE = ("guile", "--no-auto-compile", str(BRIDGE))
SUITE = Suite(Target((*GUILE, "--handlers", str(HANDLERS)), REPLY_TIMEOUT_S, Worker))
LINES = {"bridge": 100, "JSON": 35}  # of code, at most, each of at most 110 characters; the page says so
MORE_HANDLERS = r"""
(define (answer . rest) "the bridge has a procedure of this name")
(define (crash args state) (kill (getpid) SIGKILL))
(define (fail args state) (error (assoc-ref args "message") 'twice 2))
(define (leave args state) (exit 3))
(define (say args state) (display (assoc-ref args "line")) (newline) "said")
(define (text args state) (make-string (assoc-ref args "size") #\x))
(define (value args state)
  (list-ref `(+nan.0 1/3 #(1 (("a" . #(#\b)))) ,car (1 2) (("a" . 1) ("a" . 2)) "q\"\\\n\0é漢😀")
            (assoc-ref args "number")))
`(("crash" . ,crash) ("echo" . ,answer) ("fail" . ,fail) ("leave" . ,leave) ("say" . ,say) ("text" . ,text)
  ("value" . ,value))
"""


@pytest.fixture(scope="module", autouse=True)
def guile(require_runtime: Callable[[str], str]) -> str:
    """Return the path of Guile; without it, or its JSON, no test of the module runs."""
    path = require_runtime("guile")
    probe = [path, "--no-auto-compile", "-c", "(use-modules (json))"]
    if subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode:
        give_up("guile has no guile-json")
    return path


@pytest.fixture
def adapter_class() -> type[ScriptAdapter]:
    """Return the adapter of the example."""
    return adapter_of(FOLDER, "GuileAdapter")


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Handlers that go wrong."""
    path = tmp_path / "more.scm"
    path.write_text(MORE_HANDLERS, "utf-8")
    return path


@pytest.fixture
def worker(more: Path) -> Iterator[Worker]:
    """A worker with them, not yet started."""
    with Worker([*GUILE, "--handlers", str(more)], 1) as process:
        yield process


@pytest.mark.parametrize("case", select_cases(1), ids=str)
def test_conformance(case: Case) -> None:
    """What applies passes, without a known limit; what does not is a command or capability that it does not have."""
    check_applicable(SUITE, case)


def test_errors_have_type_message_and_traceback(worker: Worker) -> None:
    """Guile's own errors, what usually ends a program, and results that cannot be sent."""
    begin(worker)

    def error(name: str, **args: Any) -> Any:
        return worker.call(1, name, args)["error"]

    failure = error("fail", message="broken: é \U0001f600")
    assert ("handler_error", "misc-error") == (failure["code"], failure["type"])
    assert "broken: é \U0001f600 twice 2" == failure["message"]
    assert "raise-exception" in failure["traceback"]
    assert "quit" == error("leave")["type"]
    assert ("wrong-type-arg", "Wrong type (expecting exact integer): #f") == tuple(
        map(error("text").get, ("type", "message"))
    )
    assert 65536 >= len(error("fail", message="\U0001f600" * 60_000)["message"].encode()) > 60_000
    for number, words in enumerate(
        ("result: +nan.0", "result: 1/3", "result/1/a/0: #\\b", "result: #<pro", "result: (1")
    ):
        refused = error("value", number=number)
        assert "encode_error" == refused["code"]
        assert refused["message"].startswith(words)
    assert {"a": 1} == worker.call(1, "value", {"number": 5})["result"]
    assert 'q"\\\n\0é漢\U0001f600' == worker.call(1, "value", {"number": 6})["result"]


def test_a_low_limit_refuses_the_result_and_still_tells_errors(worker: Worker) -> None:
    """Too large a result is named with both numbers, and too large an error keeps its code and some of its message."""
    begin(worker, max_frame=2000)

    large = worker.call(1, "text", {"size": 3000})["error"]
    error = worker.call(2, "fail", {"message": "x" * 1900})["error"]

    assert "too_large" == large["code"]
    assert re.fullmatch(r"the encoded reply has 30\d\d bytes; the limit is 2000 \(max_frame\)", large["message"])
    assert ("handler_error", "x" * 200, None) == (error["code"], error["message"], error["traceback"])


def test_json_is_stricter_than_the_library(worker: Worker) -> None:
    """A missing comma and a byte order mark make a bad frame; text that looks like it is text."""
    begin(worker)

    worker.send_frame(b'{"id":7,"command":"text","args":{"size":1 "b":2}}')
    assert "bad frame: missing-comma" == worker.receive()["error"]["message"]
    worker.send_frame(b'\xef\xbb\xbf{"id":7,"command":"ping"}')
    assert "bad frame: no-object" == worker.receive()["error"]["message"]
    assert "x" == worker.call(8, "text", {"size": 1, 'a":1 "b"\\': ["\\", '1 "', "", {"": ""}]})["result"]


def test_handlers_print_and_define_what_they_like(worker: Worker) -> None:
    """Print is ordinary output, line by line, and the bridge's own procedures cannot be overwritten."""
    begin(worker)

    assert "said" == worker.call(1, "say", {"line": "é漢"})["result"]
    assert "é漢\n" == worker.stdout()
    assert "the bridge has a procedure of this name" == worker.call(2, "echo")["result"]
    assert "" == worker.stderr()


@pytest.mark.parametrize(
    ("handlers", "start_args", "code", "words"),
    [
        ("(define", None, "handler_error", "unexpected end of input"),
        ("'()", False, "bad_args", "start_args: the handlers have no start function"),
    ],
)
def test_a_start_that_fails(tmp_path: Path, handlers: str, start_args: Any, code: str, words: str) -> None:
    """The first ping says why, and the worker ends with status 1."""
    (tmp_path / "own.scm").write_text(handlers)
    with Worker([*GUILE, "--handlers", str(tmp_path / "own.scm")], 1) as process:
        error = begin(process, start_args)["error"]

        assert code == error["code"]
        assert words in error["message"]
        assert 1 == process.wait()


def test_a_pool_of_guile_workers(adapter_class: type[ScriptAdapter], more: Path) -> None:
    """Calls, sessions, each kind of error as the exception of every language, and a crash."""
    with SnakepitExecutor(adapter_class(HANDLERS), max_workers=2, timeout=30) as pool:
        assert ["ÉA", "B"] == list(pool.map("shout", [{"text": "éa"}, {"text": "b"}]))
        assert 7**99 == pool.execute("power", {"base": 7, "exponent": 99})
        with pool.session("user-7") as session, pool.session() as other:
            assert [1, 3] == [session.execute("count", {"by": 1}), session.execute("count", {"by": 2})]
            assert 1 == other.execute("count", {"by": 1})
        with pytest.raises(CommandError, match="wrong-type-arg: In procedure string-upcase"):
            pool.execute("shout")
        with pytest.raises(ResultError, match="result: 1/2 is not JSON"):
            pool.execute("power", {"base": 2, "exponent": -1})
        with pytest.raises(UnknownCommand, match="Available: count, echo, ping, power, shout"):
            pool.execute("whisper")
    with SnakepitExecutor(adapter_class(more), max_workers=1, timeout=30) as pool:
        with pytest.raises(WorkerDied):
            pool.execute("crash")
        assert "xx" == pool.execute("text", {"size": 2})


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("guile (GNU Guile) 2.2.7", r"is Guile 2\.2\.7, which is too old; 3\.0 or newer"),
        ("Python 3.11.2", "is not Guile"),
    ],
)
def test_another_program_is_told(adapter_class: type[ScriptAdapter], tmp_path: Path, told: str, words: str) -> None:
    """A Guile that is too old, and what is no Guile."""
    program = tmp_path / "guile"
    program.write_text(f"#!/bin/sh\necho '{told}'\n")
    program.chmod(0o755)

    with pytest.raises(WorkerStartError, match=words):
        adapter_class(HANDLERS, program=program).argv()


def test_the_bridge_has_as_many_lines_as_the_page_says() -> None:
    """Blank lines and comments do not count, and no line is longer than a hundred and ten characters."""
    page = PAGE.read_text("utf-8")
    source = BRIDGE.read_text("utf-8")
    json = source[source.index(";;; --- JSON") : source.index(";;; --- start")]

    def count(text: str) -> int:
        return sum(line.strip() != "" and not line.lstrip().startswith(";") for line in text.splitlines())

    assert {"bridge": count(source) - count(json), "JSON": count(json)} == LINES
    assert 110 >= max(map(len, source.splitlines()))
    assert f"in {LINES['bridge']} lines" in page
    assert f"{LINES['JSON']} lines more make its JSON strict" in page


def test_the_page_shows_what_lies_in_the_folder() -> None:
    """Each block of Scheme on the page, and the adapter, are in the files word for word; each is shown once."""
    shown = [*blocks_of_page("scheme"), *(block for block in blocks_of_page("python") if "class GuileAdapter" in block)]

    assert len(shown) > 10
    check_shown(shown, FOLDER)


def test_the_calls_of_the_page_run() -> None:
    """What the page tells users to write works in the folder of the example."""
    (calls,) = (block for block in blocks_of_page("python") if "import GuileAdapter" in block)
    env = {**os.environ, "PYTHONPATH": str(PAGE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}

    done = subprocess.run(
        [sys.executable, "-c", calls], cwd=FOLDER, env=env, capture_output=True, text=True, timeout=60, check=False
    )

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)

"""One process a request: the command line that args fill, the result, time-outs, bad input."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config

from snakepit import CommandError, CommandTimeout, InvalidArguments, OneShotAdapter, SnakepitExecutor, WorkerStartError

from gates import DIRECTORY, Gate
from leaks import is_gone

ECHO = "import sys, json; print(json.dumps(sys.argv[1:]))"
HOLD = f"import os, sys; sys.path.append({DIRECTORY!r}); from gates import pass_gate; pass_gate(sys.argv[1])"


def one_shot(*words: str, **options: Any) -> SnakepitExecutor:
    """Return a pool that runs Python code a call."""
    adapter = OneShotAdapter([sys.executable, "-I", "-S", "-c", *words], **options)
    return SnakepitExecutor(adapter, 2, config=config())


def test_args_fill_the_command_line() -> None:
    """Words, parts of words, numbers and lists of words; nothing is a shell's business."""
    with one_shot(ECHO, "{text}", "--size={size}", "{{text}}", "{files}") as ex:
        args = {"text": "a b; $(c) *", "size": 1.5, "files": ["x", 2, ""]}
        result = ex.execute("run", args)
        none = ex.execute("run", {**args, "files": []})

    assert '["a b; $(c) *", "--size=1.5", "{text}", "x", "2", ""]\n' == result["stdout"]
    assert '["a b; $(c) *", "--size=1.5", "{text}"]\n' == none["stdout"]
    assert (0, "") == (result["exit_code"], result["stderr"])


@pytest.mark.parametrize("data", ["é\n", "é\n".encode(), bytearray(b"\xc3\xa9\n")], ids=repr)
def test_input_is_the_programs_stdin(data: Any) -> None:
    """Text and bytes arrive; without an input stdin is empty."""
    with one_shot("import sys; print(ascii(sys.stdin.buffer.read()))") as ex:
        assert ascii("é\n".encode()) + "\n" == ex.execute("run", {"input": data})["stdout"]
        assert "b''\n" == ex.execute("run", {})["stdout"]


def test_bytes_in_and_out() -> None:
    """encoding=None gives bytes, also those that are no text, and a lot of them."""
    data = bytes(range(256)) * 40_000
    with one_shot("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())", encoding=None) as ex:
        assert {"exit_code": 0, "stdout": data, "stderr": b""} == ex.execute("run", {"input": data})


def test_output_that_is_no_text_is_refused() -> None:
    """Nothing is replaced silently: the error says how to get bytes; stderr is for people and may be odd."""
    code = "import sys; stream = getattr(sys, sys.argv[1]).buffer; stream.write(bytes([137, 80, 255]))"
    with one_shot(code, "{name}") as ex:
        error = ex.submit("run", {"name": "stdout"}).exception(LIMIT_S)
        assert isinstance(error, CommandError)
        assert ("NoText", True) == (error.type, "encoding=None" in str(error))
        assert {"exit_code": 0, "stdout": "", "stderr": "\ufffdP\ufffd"} == ex.execute("run", {"name": "stderr"})


def test_a_failure_is_a_result_or_with_check_an_error() -> None:
    """The exit status is told, a signal as a negative number; check=True makes it a CommandError."""
    fail = "import sys; print('out'); sys.exit('no such page')"
    with one_shot(fail) as ex, one_shot(fail, check=True) as checked:
        assert {"exit_code": 1, "stdout": "out\n", "stderr": "no such page\n"} == ex.execute("run", {})
        error = checked.submit("run", {}).exception(LIMIT_S)
        assert isinstance(error, CommandError)
        assert ("Failed", {"exit_code": 1}) == (error.type, error.data)
        assert "exit status 1: no such page" in str(error)
    with one_shot("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") as ex:
        assert -signal.SIGKILL == ex.execute("run", {})["exit_code"]


def test_the_pool_is_the_limit_of_processes(make_gate: Any) -> None:
    """With two workers the third program starts when one of the first two has ended."""
    gates: list[Gate] = [make_gate() for _ in range(3)]
    with one_shot(HOLD, "{gate}") as ex:
        futures = [ex.submit("run", {"gate": gate.path}) for gate in gates]
        gates[0].wait_started()
        gates[1].wait_started()
        assert (2, 1) == (ex.stats().running, ex.stats().queued)
        gates[0].open()
        gates[2].wait_started()
        gates[1].open()
        gates[2].open()

        assert [0, 0, 0] == [future.result(LIMIT_S)["exit_code"] for future in futures]


def test_a_timeout_ends_the_program_and_its_children(gate: Gate) -> None:
    """The whole group goes, and the next call works."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}, sys.argv[1]])"
    with one_shot(code, "{gate}") as ex:
        future = ex.submit("run", {"gate": gate.path}, timeout=5)
        pid = gate.wait_started()[0].pid
        assert isinstance(ex.submit("run", {"gate": gate.path}, timeout=0.3).exception(LIMIT_S), CommandTimeout)
        assert future.cancel(running=True)
    assert is_gone(pid)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "missing argument 'path'"),
        ({"path": "a", "pathh": "b"}, "unknown argument 'pathh'"),
        ([], "must be an object"),
        ("a", "must be an object"),
        ({"path": None}, "'path' must be text"),
        ({"path": True}, "'path' must be text"),
        ({"path": "a\0b"}, "NUL"),
        ({"path": ["a", {}]}, "'path' must be text"),
        ({"path": "a", "input": 7}, "input must be text or bytes"),
    ],
)
def test_args_that_do_not_fit_are_refused_at_once(args: Any, words: str) -> None:
    """submit raises; nothing runs."""
    with one_shot(ECHO, "{path}") as ex:
        with pytest.raises(InvalidArguments, match=words):
            ex.submit("run", args)
        assert 0 == ex.stats().requests


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["x", "{0}"], "not a plain name"),
        (["x", "{a.b}"], "not a plain name"),
        (["x", "{a!r}"], "not a plain name"),
        (["x", "{a:>5}"], "not a plain name"),
        (["x", "{"], "a brace"),
        (["{x}"], "the program is fixed"),
        ("pdftotext {x}", "sequence of words"),
    ],
)
def test_bad_templates_are_refused(argv: Any, words: str) -> None:
    """Only plain names stand in braces."""
    with pytest.raises((TypeError, ValueError), match=words):
        OneShotAdapter(argv)


@pytest.mark.parametrize("encoding", ["hex", "zip", "no-such", 8])
def test_an_encoding_that_is_none_is_refused(encoding: Any) -> None:
    """The constructor says so, not the first call."""
    with pytest.raises((TypeError, ValueError), match=f"encoding.*{encoding!r}"):
        OneShotAdapter(["cat"], encoding=encoding)


def test_a_program_that_is_not_there() -> None:
    """The executor's constructor says so."""
    with pytest.raises(WorkerStartError, match="no program 'no-such-tool' in PATH"):
        SnakepitExecutor(OneShotAdapter(["no-such-tool", "{x}"]))


def test_a_program_that_vanishes(tmp_path: Path) -> None:
    """A program that is gone later fails the call with its name; the worker goes on."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho here\n")
    tool.chmod(0o755)
    with SnakepitExecutor(OneShotAdapter([str(tool)]), 1, config=config()) as ex:
        assert "here\n" == ex.execute("run", {})["stdout"]
        tool.unlink()
        error = ex.submit("run", {}).exception(LIMIT_S)
        assert isinstance(error, CommandError)
        assert ("FileNotFoundError", True) == (error.type, str(tool) in str(error))

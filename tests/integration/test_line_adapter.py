"""A filter that never heard of the protocol is a worker: its lines, its mistakes, its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config

from snakepit import (
    CommandError,
    CommandTimeout,
    InvalidArguments,
    LineAdapter,
    SnakepitExecutor,
    UnknownCommand,
    WorkerDied,
    WorkerStartError,
)

from gates import DIRECTORY, Gate
from leaks import is_gone

FILTER = f"""
import os, sys
sys.path.append({DIRECTORY!r})
from gates import pass_gate
count = 0
for line in sys.stdin:
    word, _, rest = line.rstrip("\\n").partition(" ")
    count += 1
    if word == "count":
        print(count, flush=True)
    elif word == "pid":
        print(os.getpid(), flush=True)
    elif word == "twice":
        sys.stdout.write("one\\ntwo\\n"); sys.stdout.flush()
    elif word == "exit":
        print("last words", file=sys.stderr, flush=True)
        os._exit(int(rest))
    elif word == "kill":
        os.kill(os.getpid(), int(rest))
    elif word == "answer_and_exit":
        print("bye", flush=True)
        pass_gate(rest)
        os._exit(5)
    elif word == "hold":
        pass_gate(rest)
        print("held", flush=True)
    elif word == "part":
        sys.stdout.write("no end"); sys.stdout.flush()
    elif word == "endless":
        while True:
            os.write(1, b"x" * (1 << 20))
    elif word == "bytes":
        sys.stdout.buffer.write(bytes.fromhex(rest) + b"\\n"); sys.stdout.flush()
    else:
        print(rest, flush=True)
"""


HASTY = f"""
import array, fcntl, os, sys, termios, time
sys.path.append({DIRECTORY!r})
from gates import HELD_AT_MOST_S
while True:
    read = os.read(0, 10)
    if not read:
        break
    os.write(1, b"answer to " + read[:1] + b"\\n")
    if read.startswith(b"exit"):
        os._exit(5)
    # Only after the worker has seen the answer is more of the line read.
    waiting, until = array.array("i", [1]), time.monotonic() + HELD_AT_MOST_S
    while waiting[0] and time.monotonic() < until:
        fcntl.ioctl(1, termios.FIONREAD, waiting)
        os.sched_yield()
    while read and not read.endswith(b"\\n"):
        read = os.read(0, 65536)
"""
"""Answers after the first bytes of a line."""

UPPER = """
import sys
for stream in (sys.stdin, sys.stdout):
    stream.reconfigure(encoding=sys.argv[1])
for line in sys.stdin:
    print(line.strip().upper(), flush=True)
"""


@pytest.fixture
def pool(tmp_path: Path) -> Callable[..., SnakepitExecutor]:
    """Return a function that makes a pool of filters."""
    script = tmp_path / "filter.py"
    script.write_text(FILTER)

    def make(max_workers: int = 1, **options: Any) -> SnakepitExecutor:
        adapter = LineAdapter([sys.executable, "-I", "-S", str(script)], **options)
        return SnakepitExecutor(adapter, max_workers, config=config())

    return make


def test_a_line_is_answered_by_a_line(pool: Callable[..., SnakepitExecutor]) -> None:
    """Text of any kind goes there and back, the process stays the same, and map keeps the order."""
    with pool() as ex:
        texts = ["a", "", "é𝄞", "x" * 300_000, "tab\tand\rreturn"]
        answers = [ex.execute("line", f"echo {text}") for text in texts[:-1]]
        many = list(ex.map("line", (f"echo {n}" for n in range(500))))
        count = ex.execute("line", "count")

    assert texts[:-1] == answers
    assert [str(n) for n in range(500)] == many
    assert str(len(answers) + 501) == count


def test_jq(require_runtime: Callable[[str], str]) -> None:
    """A real filter: jq, its answers as JSON values."""
    adapter = LineAdapter([require_runtime("jq"), "-c", "--unbuffered", ".name"], reply="json")
    with SnakepitExecutor(adapter, 2, config=config()) as ex:
        assert [{"a": None}, 2, "é"] == list(ex.map("line", ['{"name":{"a":null}}', '{"name":2}', '{"name":"é"}']))
        error = ex.submit("line", "no json").exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert "parse error" in error.stderr_tail
        assert 1 == ex.execute("line", '{"name":1}')


def test_a_reply_may_be_shaped_and_the_delimiter_be_another(tmp_path: Path) -> None:
    """reply= takes a callable; delimiter= holds for both directions."""
    script = "import sys\nfor part in iter(lambda: sys.stdin.read(3), ''): print(part[:2], end=';', flush=True)"
    adapter = LineAdapter([sys.executable, "-c", script], delimiter=";", reply=int)
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        assert [17, 42] == list(ex.map("line", ["17", "42"]))
        assert isinstance(ex.submit("line", "no").exception(LIMIT_S), ValueError)
        with pytest.raises(InvalidArguments, match="delimiter ';'"):
            ex.submit("line", "1;2")


def test_a_program_with_a_prompt(tmp_path: Path) -> None:
    """With prompt= a worker is ready at the first prompt, and an answer is all lines up to the next."""
    script = "while True:\n  try: print(*input('ready> ').split(), sep='\\n')\n  except EOFError: break"
    adapter = LineAdapter([sys.executable, "-u", "-c", script], prompt="ready> ")
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        assert ["1\n2\n", "3\n"] == [ex.execute("line", "1 2"), ex.execute("line", "3")]


@pytest.mark.parametrize("args", [{}, {"line": "a"}, ["a"], 7, None, b"a"], ids=repr)
def test_what_is_no_line_is_refused_at_once(pool: Callable[..., SnakepitExecutor], args: Any) -> None:
    """Only text is a line; another command does not exist."""
    with pool() as ex:
        with pytest.raises(InvalidArguments, match="must be one line of text"):
            ex.submit("line", args)
        with pytest.raises(InvalidArguments, match="in it"):
            ex.submit("line", "a\nb")
        with pytest.raises(UnknownCommand):
            ex.submit("echo", "a")
        assert "a" == ex.execute("line", "echo a")


def test_an_encoding_that_lacks_a_character(pool: Callable[..., SnakepitExecutor]) -> None:
    """Text that the encoding cannot write is refused; an answer that it cannot read fails that call alone."""
    with pool(encoding="ascii") as ex:
        with pytest.raises(InvalidArguments, match="ascii"):
            ex.submit("line", "echo é")
        pid = ex.execute("line", "pid")
        error = ex.submit("line", "bytes ff").exception(LIMIT_S)
        assert isinstance(error, CommandError)
        assert "0xff" in str(error)
        assert pid == ex.execute("line", "pid")
    with pytest.raises(InvalidArguments, match="idna"):  # its complaint is of another class
        LineAdapter(["cat"], encoding="idna").validate_command("line", "x" * 64)


def test_a_program_that_buffers_is_diagnosed() -> None:
    """The first line of a process has a limit, and the error says what to do; the next process is asked again."""
    adapter = LineAdapter(["sed", "s/a/b/"], first_line_s=0.3)
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        for _ in range(2):
            error = ex.submit("line", "a").exception(LIMIT_S)
            assert isinstance(error, WorkerDied)
            assert "no line from sed within 0.3 s" in str(error)
            assert "stdbuf -oL" in str(error)


def test_the_advice_comes_before_a_shorter_time_out() -> None:
    """A call whose time-out is below ``first_line_s`` fails with the advice too, not with a bare time-out."""
    adapter = LineAdapter(["sed", "s/a/b/"], first_line_s=60)
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        error = ex.submit("line", "a", timeout=2).exception(LIMIT_S)

    assert isinstance(error, WorkerDied)
    assert "no line from sed within 1." in str(error)


def test_without_a_limit_only_the_time_out_counts(pool: Callable[..., SnakepitExecutor], gate: Gate) -> None:
    """With ``first_line_s=None`` nothing is said of buffers."""
    with pool(first_line_s=None) as ex:
        ex.wait_ready(timeout=LIMIT_S)
        future = ex.submit("line", f"hold {gate.path}", timeout=0.3)
        assert isinstance(future.exception(LIMIT_S), CommandTimeout)


def test_a_program_with_half_a_line_is_diagnosed(pool: Callable[..., SnakepitExecutor]) -> None:
    """What it wrote without an end of line is shown."""
    with pool(first_line_s=0.5) as ex:
        error = ex.submit("line", "part").exception(LIMIT_S)

    assert "(it wrote b'no end')" in str(error)


def test_a_slow_answer_after_the_first_is_no_buffer(pool: Callable[..., SnakepitExecutor], gate: Gate) -> None:
    """Once a process has answered, only the call's time-out counts."""
    with pool(first_line_s=5) as ex:
        ex.execute("line", "count")
        future = ex.submit("line", f"hold {gate.path}")
        gate.wait_started()
        gate.open()
        assert "held" == future.result(LIMIT_S)


def test_more_than_one_line_is_noticed(pool: Callable[..., SnakepitExecutor]) -> None:
    """A surplus line that has arrived is never the answer to the next call."""
    with pool() as ex:
        assert "one" == ex.execute("line", "twice")
        error = ex.submit("line", "echo x").exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert "'two\\n', which no line had asked for" in str(error)
        assert "x" == ex.submit("line", "echo x").result(LIMIT_S)


def test_a_prompt_that_never_comes() -> None:
    """The worker does not start, and the error says what was awaited."""
    adapter = LineAdapter(["cat"], prompt="ready> ", first_line_s=0.3)
    with (
        SnakepitExecutor(adapter, 1, config=config(restart_budget=1)) as ex,
        pytest.raises(WorkerStartError, match=r"no prompt 'ready> ' from cat within 0\.3 s"),
    ):
        ex.wait_ready(timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("line", "exit_code", "number"),
    [("exit 7", 7, None), ("exit 0", 0, None), ("kill 9", None, signal.SIGKILL), ("kill 11", None, signal.SIGSEGV)],
)
def test_the_worker_ends_as_its_program_ends(
    pool: Callable[..., SnakepitExecutor], line: str, exit_code: int | None, number: int | None
) -> None:
    """Exit status, signal and stderr of the program are in WorkerDied; the next call finds a fresh one."""
    with pool() as ex:
        error = ex.submit("line", line).exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        if number is None:
            assert exit_code == error.exit_code
            assert "last words" in error.stderr_tail
        else:
            assert number == error.signal
        assert "1" == ex.execute("line", "count")


def test_a_program_that_ends_after_its_answer(pool: Callable[..., SnakepitExecutor], gate: Gate) -> None:
    """The answer arrives; the idle worker's end is seen, and no later call is lost to it."""
    with pool() as ex:
        assert "bye" == ex.execute("line", f"answer_and_exit {gate.path}")
        (worker,) = ex.workers()
        gate.wait_started()
        gate.open()
        while any(info.worker_id == worker.worker_id for info in ex.workers()):
            os.sched_yield()
        assert "1" == ex.execute("line", "count")


def test_a_timeout_ends_worker_and_program(pool: Callable[..., SnakepitExecutor], gate: Gate) -> None:
    """A call that runs too long costs both processes."""
    with pool() as ex:
        pid = int(ex.execute("line", "pid"))
        (worker,) = ex.workers()
        error = ex.submit("line", f"hold {gate.path}", timeout=0.2).exception(LIMIT_S)
        assert isinstance(error, CommandTimeout)
        assert "1" == ex.execute("line", "count")
    assert is_gone(pid)
    assert is_gone(worker.pid or 0)


def test_an_answer_before_the_line_has_been_read() -> None:
    """It is the answer of that line, which is written to its end nevertheless, and the next call has its own."""
    adapter = LineAdapter([sys.executable, "-I", "-S", "-c", HASTY], first_line_s=5)
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        lines = [letter * 1_000_000 for letter in "ab"]
        assert ["answer to a", "answer to b"] == [ex.submit("line", line, timeout=LIMIT_S).result() for line in lines]
        assert 0 == ex.stats().restarts


def test_a_program_that_ends_after_its_answer_within_a_line() -> None:
    """The answer counts, though the rest of the line could not be written."""
    adapter = LineAdapter([sys.executable, "-I", "-S", "-c", HASTY], first_line_s=5)
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        assert "answer to e" == ex.submit("line", "exit" * 250_000, timeout=LIMIT_S).result()


def test_an_answer_without_end_has_a_limit(pool: Callable[..., SnakepitExecutor]) -> None:
    """The program is ended, the error names the limit and what came, and the next call finds a fresh one."""
    with pool() as ex:
        assert "1" == ex.execute("line", "count")
        error = ex.submit("line", "endless", timeout=LIMIT_S).exception()
        assert isinstance(error, WorkerDied)
        assert f"wrote more than {1 << 27} bytes, the limit of an answer" in str(error)
        assert "b'xxxx" in str(error)
        assert "1" == ex.execute("line", "count")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "cp037"])
def test_a_delimiter_is_a_whole_character(encoding: str) -> None:
    """Bytes of two characters that together look like an end of line are none."""
    adapter = LineAdapter([sys.executable, "-I", "-S", "-c", UPPER, encoding], encoding=encoding)
    lines = ["abc", "def"] if encoding == "cp037" else ["abc", "\u0a05\u0100", "\u0100\u0a05", "\u010a\u0a00", "def"]
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        assert [line.upper() for line in lines] == [ex.submit("line", line, timeout=LIMIT_S).result() for line in lines]


def test_long_patience_is_a_number_like_any_other(pool: Callable[..., SnakepitExecutor]) -> None:
    """Weeks, and more than any clock counts."""
    for first_line_s in (3e6, sys.float_info.max):
        with pool(first_line_s=first_line_s) as ex:
            assert "1" == ex.submit("line", "count").result(LIMIT_S)


def test_sessions_live_in_one_program(pool: Callable[..., SnakepitExecutor]) -> None:
    """The state of the process is the session's."""
    with pool(2) as ex:
        ex.wait_ready(workers=2)
        pids = [[ex.execute("line", "pid", session=name) for _ in range(3)] for name in ("a", "b")]

    assert [1, 1] == [len(set(seen)) for seen in pids]
    assert pids[0][0] != pids[1][0]


def test_a_program_that_is_not_there() -> None:
    """The executor's constructor says so; nothing has started."""
    with pytest.raises(WorkerStartError, match="no program 'no-such-filter' in PATH"):
        SnakepitExecutor(LineAdapter(["no-such-filter"]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"argv": "cat"}, "sequence of words"),
        ({"argv": []}, "sequence of words"),
        ({"argv": [""]}, "must not be empty"),
        ({"argv": ["cat", "a\0"]}, "NUL"),
        ({"delimiter": ""}, "delimiter"),
        ({"delimiter": b"x"}, "delimiter"),
        ({"prompt": ""}, "prompt"),
        ({"encoding": "no-such"}, "no-such"),
        ({"encoding": 8}, "encoding"),
        ({"encoding": "a\0"}, "no text encoding"),
        ({"encoding": "hex"}, "'hex' is no text encoding"),
        ({"encoding": "rot13"}, "'rot13' is no text encoding"),
        ({"encoding": "undefined"}, "'undefined' is no text encoding"),
        ({"encoding": "utf-16"}, "byte order mark"),
        ({"encoding": "utf-8-sig"}, "byte order mark"),
        ({"encoding": "ascii", "delimiter": "§"}, "delimiter: '§' cannot be written in 'ascii'"),
        ({"encoding": "ascii", "prompt": "» "}, "prompt: '» ' cannot be written in 'ascii'"),
        ({"reply": "xml"}, "'line', 'json' or a callable"),
        ({"first_line_s": 0}, "> 0"),
        ({"first_line_s": float("nan")}, "> 0"),
        ({"first_line_s": float("inf")}, "finite"),
        ({"first_line_s": 10**400}, "finite"),
        ({"first_line_s": True}, "number of seconds"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], words: str) -> None:
    """Each is a TypeError or ValueError with the value."""
    with pytest.raises((TypeError, ValueError), match=words):
        LineAdapter(**{"argv": ["cat"], **options})

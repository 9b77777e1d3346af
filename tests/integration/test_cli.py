"""The ``snakepit`` command as its users run it: in a process of its own, by its output and exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snakepit._bridges import bridge_path

from gates import DIRECTORY, Gate

LIMIT_S = 60
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
SUBCOMMANDS = ["bench", "commands", "conformance", "demo", "doctor", "new", "run"]
# A shell that runs the tests in the background has made SIGINT ignored, and children inherit that.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from snakepit.cli import main
sys.exit(main())
"""
HANDLERS = f"""
import signal, sys
sys.path.append({DIRECTORY!r})
from gates import pass_gate
from snakepit_bridge import command, context

@command
def count():
    state = context().state
    state["count"] = state.get("count", 0) + 1
    return state["count"]

@command
def stay(gate):
    pass_gate(gate)

@command
def fail():
    raise LookupError("no such thing")

@command
def die():
    print("last words", file=sys.stderr, flush=True)
    signal.raise_signal(signal.SIGKILL)

@command
def blob():
    return {{"data": b"\\x00\\xff"}}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs ``python -m snakepit`` with these words in an empty directory."""

    def run_snakepit(*words: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "snakepit", *words],
            cwd=tmp_path,
            env={**os.environ, **environment},
            input=text,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    return run_snakepit


@pytest.fixture
def handlers(tmp_path: Path) -> str:
    """Return the path of a handlers file."""
    path = tmp_path / "handlers.py"
    path.write_text(HANDLERS)
    return str(path)


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """Return (exit status, stdout, stderr), to be compared at once."""
    return done.returncode, done.stdout, done.stderr


# The command itself ----------------------------------------------------------------------------------


def test_both_entry_points_are_the_same(run: Run, tmp_path: Path) -> None:
    """``snakepit --help`` and ``python -m snakepit --help`` name all subcommands."""
    script = Path(sys.executable).with_name("snakepit")

    by_module = run("--help")
    by_script = subprocess.run(
        [script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )

    assert (0, by_module.stdout, "") == outcome(by_script)
    assert SUBCOMMANDS == re.findall(r"^  (\w+)  +", by_module.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_help_has_examples(run: Run, command: str) -> None:
    """Each subcommand's help ends with examples that call it."""
    done = run(command, "--help")

    _, _, examples = done.stdout.partition("Examples:\n")
    assert 0 == done.returncode
    assert {f"snakepit {command}"} == {" ".join(line.split()[:2]) for line in examples.splitlines() if line}


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, missing: str) -> None:
    """Without click or rich the command fails with the name of the extra and without a traceback."""
    code = f"import sys; sys.modules[{missing!r}] = None; from snakepit.cli import main; sys.exit(main())"

    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert (1, "") == (done.returncode, done.stdout)
    assert 'pip install "snakepit-pool[cli]"' in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_interrupt_ends_it_cleanly(handlers: str, gate: Gate, tmp_path: Path) -> None:
    """Ctrl-C while a command runs ends the worker and the process with status 130, without a traceback."""
    words = ["run", "python", "stay", json.dumps({"gate": gate.path}), "--handlers", handlers]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        gate.wait_started(timeout_s=LIMIT_S)

        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LIMIT_S)

    assert (130, "") == (process.returncode, stdout)
    assert "snakepit: interrupted" == stderr.strip()


@pytest.mark.parametrize(
    "words", [["doctor"], ["doctor", "--json"], ["run", "python", "ping"]], ids=["doctor", "json", "run"]
)
def test_reader_that_has_gone_is_no_error(words: list[str], tmp_path: Path) -> None:
    """Output into a pipe that nobody reads any more ends with status 141 and without a word."""
    reader, writer = os.pipe()
    os.close(reader)

    try:
        done = subprocess.run(
            [sys.executable, "-m", "snakepit", *words],
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    finally:
        os.close(writer)

    assert (141, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    "words", [["doctor"], ["commands", "python"], ["run", "python", "ping"], ["--version"]], ids=" ".join
)
@FULL
def test_output_that_cannot_be_written(words: list[str], tmp_path: Path) -> None:
    """A full disk is status 1 and the reason, without a traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "snakepit", *words],
            cwd=tmp_path,
            env={**os.environ, "PATH": str(tmp_path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    expected = "snakepit: the output cannot be written: No space left on device\n"
    assert (1, expected) == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("closed", "status", "out", "err"),
    [
        (">&-", 1, "", "snakepit: stdout is closed; for no output: >/dev/null\n"),
        ("2>&-", 1, "", ""),
        (">&- 2>&-", 1, "", ""),
        pytest.param("2>/dev/full", 1, "", "", marks=FULL),
        pytest.param(">/dev/full 2>/dev/full", 1, "", "", marks=FULL),
    ],
)
def test_closed_streams(tmp_path: Path, closed: str, status: int, out: str, err: str) -> None:
    """Without stdout nothing is begun; without stderr what belongs there is not told on stdout."""
    command = shlex.join([sys.executable, "-m", "snakepit", "run", "python", "nope"])

    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert (status, out, err) == outcome(done)


# run -------------------------------------------------------------------------------------------------


def test_run_prints_the_result(run: Run) -> None:
    """The result is one line of JSON on stdout, and nothing is on stderr."""
    done = run("run", "python", "compute", '{"operation": "add", "a": 1, "b": 2}')

    assert (0, "") == (done.returncode, done.stderr)
    assert 3 == json.loads(done.stdout)["result"]
    assert 1 == len(done.stdout.splitlines())


@pytest.mark.parametrize("alias", ["javascript", "node"])
def test_run_javascript(run: Run, node: str, alias: str) -> None:
    """Both names of the JavaScript adapter start Node."""
    done = run("run", alias, "echo", '["\\u00fc"]')

    assert (0, "") == (done.returncode, done.stderr)
    assert ["\u00fc"] == json.loads(done.stdout)["echoed"]


@pytest.mark.parametrize("level", [[], ["--level", "0"], ["--level", "1"]], ids=["default", "0", "1"])
def test_run_a_command_line(run: Run, level: list[str]) -> None:
    """An adapter that is no alias is a command line, at the level that was asked for."""
    words = shlex.join([sys.executable, str(bridge_path("python/snakepit_bridge.py"))])

    done = run("run", words, "echo", "7", *level)

    assert (0, "") == (done.returncode, done.stderr)
    assert 7 == json.loads(done.stdout)["echoed"]


def test_run_reads_json_from_stdin(run: Run) -> None:
    """The args "-" are read from stdin."""
    done = run("run", "python", "echo", "-", text='{"from": "stdin"}')

    assert {"from": "stdin"} == json.loads(done.stdout)["echoed"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n', "line 2, column 1"),
        ("", "line 1, column 1"),
        ("\n \n", "line 3, column 1"),
        # Only a line feed ends a line of JSON; the pointer stays below the place.
        ('{"a": "\x0b"}', "Invalid control character .* line 1, column 8 .*\n" + r'  \{"a": " "\}' + "\n {9}\\^"),
        ('{"\x85\u2028": x}', "line 1, column 8 .*\n" + r'  \{"  ": x\}' + "\n {9}\\^"),
    ],
)
def test_run_refuses_what_stdin_has(run: Run, text: str, said: str) -> None:
    """A text that is no JSON is status 2 with the place, wherever it ends."""
    done = run("run", "python", "echo", "-", text=text, PYTHONUTF8="1")

    assert (2, "") == (done.returncode, done.stdout)
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("end", "said"), [("<&-", "stdin is closed"), ("<full", "stdin cannot be read: .*utf-8")])
def test_run_refuses_a_stdin_that_cannot_be_read(tmp_path: Path, end: str, said: str) -> None:
    """A closed stdin, and one whose bytes are no text, are status 2 with the reason."""
    (tmp_path / "full").write_bytes(b'"\xff"')
    command = shlex.join([sys.executable, "-m", "snakepit", "run", "python", "echo", "-"])

    done = subprocess.run(
        ["sh", "-c", f"{command} {end}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert (2, "") == (done.returncode, done.stdout)
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_run_indents_on_a_terminal(tmp_path: Path, handlers: str) -> None:
    """On a terminal the result is indented; a handler's bytes are shown in base64."""
    host, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "snakepit", "run", "python", "blob", "--handlers", handlers],
            cwd=tmp_path,
            stdout=terminal,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        shown = os.read(host, 4096).decode().replace("\r\n", "\n")
    finally:
        os.close(host)
        os.close(terminal)

    assert (0, "") == (done.returncode, done.stderr)
    assert json.dumps({"data": {"base64": "AP8="}}, indent=2) + "\n" == shown


def test_run_repeats_in_one_session(run: Run, handlers: str) -> None:
    """``--repeat`` prints one line a call, and a session's calls share its state."""
    done = run("run", "python", "count", "--handlers", handlers, "--session", "s", "--repeat", "3")

    assert (0, "1\n2\n3\n") == (done.returncode, done.stdout)
    assert re.fullmatch(r"3 calls: median \d+\.\d+ ms, p99 \d+\.\d+ ms, [\d,]+ per second\n", done.stderr)


def test_run_keeps_the_order_of_parallel_calls(run: Run) -> None:
    """With several workers the results still come in the order of the calls, all of them."""
    done = run("run", "python", "echo", "1", "--repeat", "20", "--workers", "2")

    assert [1] * 20 == [json.loads(line)["echoed"] for line in done.stdout.splitlines()]
    assert done.stderr.startswith("20 calls:")


def test_run_tells_of_a_failed_command(run: Run, handlers: str) -> None:
    """A command that fails is status 1, its class and message on stderr; ``-v`` adds the remote traceback."""
    done = run("run", "python", "fail", "--handlers", handlers)
    verbose = run("run", "python", "fail", "--handlers", handlers, "-v")

    assert (1, "", "snakepit: CommandError: LookupError: no such thing\n") == outcome(done)
    assert 1 == verbose.returncode
    assert 'raise LookupError("no such thing")' in verbose.stderr


def test_run_stops_repeating_at_a_failure(run: Run, handlers: str) -> None:
    """The first failure ends the repetition."""
    done = run("run", "python", "fail", "--handlers", handlers, "--repeat", "5")

    assert (1, "") == (done.returncode, done.stdout)
    assert 1 == done.stderr.count("CommandError")


def test_run_tells_of_an_unknown_command(run: Run) -> None:
    """An unknown command is status 1, and the message names those that there are."""
    done = run("run", "python", "nope")

    expected = "snakepit: UnknownCommand: Unknown command: 'nope'. Available: compute, echo, info, ping\n"
    assert (1, "", expected) == outcome(done)


def test_run_tells_of_a_dead_worker(run: Run, handlers: str) -> None:
    """A worker that dies is status 1, with the signal and the end of its stderr."""
    done = run("run", "python", "die", "--handlers", handlers)

    assert (1, "") == (done.returncode, done.stdout)
    assert "snakepit: WorkerDied: " in done.stderr
    assert "SIGKILL" in done.stderr
    assert "last words" in done.stderr


def test_run_times_out(run: Run, handlers: str, gate: Gate) -> None:
    """A command that runs longer than ``--timeout`` is status 124."""
    args = json.dumps({"gate": gate.path})

    done = run("run", "python", "stay", args, "--handlers", handlers, "--timeout", "0.2")

    assert (124, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("snakepit: CommandTimeout: ")


@pytest.mark.parametrize(
    ("adapter", "said"), [("false", "exit code 1"), ("/nowhere/at/all x", "no program at '/nowhere/at/all'")]
)
def test_run_tells_of_a_worker_that_does_not_start(run: Run, adapter: str, said: str) -> None:
    """A worker that cannot start is status 3, with the reason."""
    done = run("run", adapter, "ping")

    assert (3, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("snakepit: WorkerStartError: ")
    assert said in done.stderr


def test_run_tells_of_handlers_that_do_not_load(run: Run, tmp_path: Path) -> None:
    """A handlers file that raises is status 3 with its message; ``-v`` shows where."""
    (tmp_path / "bad.py").write_text('raise RuntimeError("bad file")\n')

    done = run("run", "python", "ping", "--handlers", "bad.py", "-v")

    assert 3 == done.returncode
    assert "RuntimeError: bad file" in done.stderr
    assert 'bad.py", line 1' in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["python", "echo", '{"a": 1,}'], r"line 1, column 9 .*\n  \{\"a\": 1,\}\n          \^"),
        (["python", "echo", "{\n  x}"], r"line 2, column 3"),
        (["python", "echo", ""], r"line 1, column 1"),
        (["python", "echo", "[NaN]"], r"NaN is not JSON"),
        (["python", "echo", "[" * 300 + "]" * 300], r"JSON: .*"),
        (["python", "echo", "[" * 100_000], r"JSON: .*"),
        (["pyhton", "ping"], r"unknown adapter 'pyhton'.*python, javascript, node, .*or a command line"),
        (["", "ping"], r"unknown adapter ''"),
        (["go", "ping"], r"Go has no adapter: build the program"),
        (["python", "ping", "--start-args", "{"], r"JSON: .* at line 1, column 2"),
        (["'unclosed", "ping"], r"No closing quotation"),
        (["python", "ping", "--handlers", "none.py"], r"no file 'none.py'"),
        (["python", "ping", "--handlers", "sub/x.txt"], r"no file 'sub/x.txt'"),
        (["javascript", "ping", "--handlers", "module"], r"must be a \.js or \.cjs or \.mjs file"),
        (["true", "ping", "--handlers", sys.executable], r"--handlers is for python"),
        (["python", "ping", "--level", "1"], r"--level is for a command line"),
        (["python", "ping", "--timeout", "0"], r"timeout must be seconds > 0"),
        (["python", "ping", "--timeout", "nan"], r"timeout"),
        (["python", "ping", "--repeat", "0"], r"--repeat"),
        (["python", "ping", "--workers", "0"], r"--workers"),
        (["python"], r"Missing argument 'COMMAND'"),
        (["python", ""], r"COMMAND must not be empty"),
        (["python", "ping", "--session", ""], r"session must be a non-empty str"),
    ],
)
def test_run_refuses_bad_usage(run: Run, words: list[str], said: str) -> None:
    """Bad usage is status 2 and says what is wrong and where, without a traceback."""
    done = run("run", *words)

    assert (2, "") == (done.returncode, done.stdout)
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


# doctor and bench ------------------------------------------------------------------------------------


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what ``doctor --json`` has printed."""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_doctor_finds_this_python_well(run: Run, tmp_path: Path) -> None:
    """With an empty PATH, this Python's workers still work, and the exit status says so."""
    done = run("doctor", "--json", PATH=str(tmp_path))

    report = report_of(done)
    this = report["runtimes"][0]
    assert (0, "") == (done.returncode, done.stderr)
    assert report["ok"] is True
    assert ("this Python", "works", sys.executable) == (this["name"], this["status"], this["path"])
    assert this["handshake_ms"] > 0 and this["ping_ms"] > 0
    assert report["system"]["guardian"] is True
    assert None not in report["dependencies"].values()


def test_doctor_prints_plainly_into_a_pipe(run: Run, tmp_path: Path) -> None:
    """Without a terminal there are no escape sequences, and the verdict is the last line."""
    done = run("doctor", PATH=str(tmp_path))

    assert (0, "") == (done.returncode, done.stderr)
    assert "\x1b" not in done.stdout
    assert "workers of this Python work" == done.stdout.splitlines()[-1]
    assert "- for JavaScriptAdapter: install Node 16 or newer and put it on PATH" in done.stdout


def test_bench_names_every_pool(run: Run) -> None:
    """``bench`` prints two lines for each pool, with ratios to the standard library's, round by round."""
    done = run("bench", "--rounds", "1", "--workers", "1")

    assert (0, "") == (done.returncode, done.stderr)
    names = ("snakepit, command", "snakepit, callable", "ThreadPoolExecutor", "ProcessPoolExecutor", "loky ")
    lines = done.stdout.splitlines()
    for name in names:
        found = [line.split()[-3:] for line in lines if line.startswith(name)]
        assert 2 == len(found), name
        assert all(float(least) <= float(middle) <= float(most) for middle, least, most in found), name
    references = [line for line in lines if line.startswith("ProcessPoolExecutor")]
    assert [["1.00"] * 3] * 2 == [line.split()[-3:] for line in references]

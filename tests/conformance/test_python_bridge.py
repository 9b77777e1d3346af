"""The Python bridge itself, driven frame by frame over pipes: every interpreter found, both modes."""

from __future__ import annotations

import glob
import importlib
import json
import math
import multiprocessing
import os
import pickle
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from snakepit._wire import callables as _callables
from snakepit._wire.outgoing import encode_pickle
from snakepit._wire.pickled import Pickled
from snakepit.errors import CommandError, ResultError

BRIDGE = Path(__file__).resolve().parents[2] / "bridges" / "python" / "snakepit_bridge.py"
CAPABILITIES = ["errors", "pipeline", "session", "deadline", "attachments", "batch", "log", "claim", "pickle"]
MAX_FRAME = 64 * 1024 * 1024
BOUND_S = 20.0


def _interpreters() -> list[str]:
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    found = {}
    for minor in range(8, 15):
        candidates = [*glob.glob(f"{root}/versions/3.{minor}.*/bin/python"), shutil.which(f"python3.{minor}")]
        for candidate in filter(None, candidates):
            probe = subprocess.run(
                [candidate, "-c", "pass"], capture_output=True, timeout=BOUND_S, check=False
            )
            if probe.returncode == 0:
                found.setdefault(minor, candidate)
    found[sys.version_info[1]] = sys.executable
    return [found[minor] for minor in sorted(found)]


INTERPRETERS = _interpreters()


CHATTY = """
import threading
from snakepit_bridge import command, context

@command
def chatter(size):
    here = context()
    begun = threading.Event()
    def talk():
        for number in range(300):
            here.log("line %d" % number)
            begun.set()
    thread = threading.Thread(target=talk)
    thread.start()
    begun.wait()
    return [b"a" * size, b"b" * size, thread.name]
"""


class BridgeProcess:
    """One worker process and the host's ends of its pipes; every read has a bound."""

    def __init__(
        self,
        *options: str,
        python: str = sys.executable,
        flags: tuple[str, ...] = (),
        level: int = 1,
        claim: bool = False,
        pass_fds: tuple[int, ...] = (),
        cwd: str | None = None,
        max_frame: int = MAX_FRAME,
        max_message: int | None = None,
    ) -> None:
        request_r, self.requests = os.pipe()
        self.replies, reply_w = os.pipe()
        inherited = [*pass_fds]
        env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
        self.claims: int | None = None
        claim_r: int | None = None
        if claim:
            claim_r, self.claims = os.pipe()
            os.set_blocking(claim_r, False)
            env["SNAKEPIT_CLAIM_FD"] = str(claim_r)
            inherited.append(claim_r)
        self.level = level
        self.max_frame = max_frame
        self.max_message = max_frame if max_message is None else max_message
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        stdin: int = subprocess.DEVNULL
        stdout: Any = self._output
        if level == 0:
            stdin, stdout = request_r, reply_w
        else:
            env["SNAKEPIT_FDS"] = f"{request_r},{reply_w}"
            inherited += [request_r, reply_w]
        self.process = subprocess.Popen(
            [python, *flags, str(BRIDGE), *options],
            stdin=stdin, stdout=stdout, stderr=self._errors, env=env, cwd=cwd, pass_fds=inherited,
        )  # fmt: skip
        os.close(request_r)
        os.close(reply_w)
        if claim_r is not None:
            self.claim_r = claim_r

    def __enter__(self) -> BridgeProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait(BOUND_S)
        for fd in (
            self.requests,
            self.replies,
            self.claims,
            self.claim_r if self.claims is not None else None,
        ):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._errors.close()
        self._output.close()

    @property
    def stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode()

    @property
    def stdout(self) -> str:
        self._output.seek(0)
        return self._output.read().decode()

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.requests, data) :]

    def send(self, message: object) -> None:
        self.write(frame(message))

    def close_requests(self) -> None:
        os.close(self.requests)
        self.requests = -1

    def _read(self, size: int) -> bytes:
        data = b""
        until = time.monotonic() + BOUND_S
        while len(data) < size:
            ready, _, _ = select.select([self.replies], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"no reply within {BOUND_S} s; stderr: {self.stderr}"
            part = os.read(self.replies, size - len(data))
            if not part:
                raise EOFError(self.stderr)
            data += part
        return data

    def receive_bytes(self) -> bytes:
        (size,) = struct.unpack(">I", self._read(4))
        return self._read(size)

    def receive(self) -> Any:
        return json.loads(self.receive_bytes())

    def ask(self, command: str, args: Any = None, **more: Any) -> Any:
        self.send({"id": 7, "command": command, "args": args, **more})
        return self.receive()

    def start(self, capabilities: list[str] = CAPABILITIES, **args: Any) -> Any:
        protocol = {"versions": [1], "max_frame": self.max_frame, "capabilities": capabilities}
        ping: dict[str, Any] = {"worker_id": "w-1", "initialization": True}
        if self.level:
            ping.update(protocol=protocol, start_args=None)
        self.send({"id": 0, "command": "ping", "args": {**ping, **args}})
        return self.receive()

    def exit_status(self) -> int:
        return self.process.wait(BOUND_S)

    # Callables

    def _finish_start(self, payload: bytes) -> Any:
        limits = {"max_frame": self.max_frame, "max_message": self.max_message}
        protocol = {"versions": [1], "capabilities": CAPABILITIES, **limits}
        ping = {"worker_id": "w-1", "initialization": True, "protocol": protocol, "prepare": True}
        self.write(frame({"id": 0, "command": "ping", "args": ping}) + frame(payload))
        return self.receive()

    def post(self, body: bytes | Pickled, kind: str = "call", **header: Any) -> None:
        values = {"request_id": 5, "session": None, "deadline_ms": None, "claim": False, **header}
        head = _callables.request_header(kind=kind, **values)
        pickled = Pickled([body], []) if isinstance(body, bytes) else body
        self.write(b"".join(encode_pickle((head, *pickled.parts), self.max_frame, pickled.buffers)))

    def receive_parts(self) -> list[bytes]:
        """Receive the parts of one pickle, whether it is in one frame or not."""
        payload, parts = self.receive_bytes(), []
        if payload[0] == 0x80:
            return [payload]
        while True:
            assert payload[0] in (0x81, 0x82) and len(payload) == 9, payload[:80]
            rest, part = int.from_bytes(payload[1:], "big"), b""
            while rest > len(part):
                raw = self.receive_bytes()
                assert len(raw) == min(self.max_frame, rest - len(part))
                part += raw
            parts.append(part)
            if payload[0] == 0x82:
                return parts
            payload = self.receive_bytes()

    def settle(self) -> tuple[str, Any, BaseException | None]:
        pickles, *buffers = self.receive_parts()
        request_id, kind, body = _callables.decode_reply(pickles)
        assert 5 == request_id
        return (kind, *_callables.load_reply(kind, body, buffers))

    def call(self, fn: Any, *args: Any, **header: Any) -> tuple[str, Any, BaseException | None]:
        self.post(_callables.encode_call(fn, args, {}), **header)
        return self.settle()


def frame(message: object) -> bytes:
    """Return the bytes of one frame; bytes are taken as the payload."""
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">I", len(payload)) + payload


def callable_worker(
    preparation: _callables.Preparation | None = None, **options: Any
) -> tuple[BridgeProcess, Any]:
    """Start a callable worker as the host does; return it with the reply to its first ping."""
    preparation = preparation or _callables.Preparation()
    with preparation.inherit() as (payload, fds):
        worker = BridgeProcess("--callables", pass_fds=fds, **options)
    return worker, worker._finish_start(payload)


HANDLERS = '''
import os, signal, subprocess, sys, time
from snakepit_bridge import command, context, on_start

import_context = context().session_id

@on_start
def begin(mode="plain", *, limit=0):
    """First."""
    context().worker_state["start"] = [mode, limit, context().session_id, context().worker_id]
    if mode == "fail":
        raise RuntimeError("no model")

@command
def started(): return context().worker_state.get("start")

@command
def add(a, b=10, *, scale=1):
    """Add two numbers.

    Carefully.
    """
    return (a + b) * scale

@command("renamed")
def something(*values, **options): return {"values": values, "options": options}

@command(name="only_positional")
def only_positional(a, /, b): return [a, b]

@command
async def later(x):
    import asyncio
    context().worker_state.setdefault("loops", set()).add(id(asyncio.get_running_loop()))
    await asyncio.sleep(0)
    return [x, len(context().worker_state["loops"]), context().session_id]

@command
def none(value=None): return value

class Odd(ValueError):
    data = {"why": [1, None]}

@command
def fail(kind):
    if kind == "value": raise Odd("boom")
    if kind == "chained":
        try: {}["x"]
        except KeyError as error: raise RuntimeError("outer") from error
    if kind == "type": return len(5)
    if kind == "exit": raise SystemExit(3)
    if kind == "interrupt": raise KeyboardInterrupt
    if kind == "cruel":
        class Cruel(Exception):
            def __str__(self): raise RuntimeError("no")
        raise Cruel
    if kind == "long": raise ValueError("x" * 200_000)
    if kind == "surrogate": raise ValueError("a\\udc80b")
    if kind == "deep":
        def down(): return down()
        down()

@command
def make(kind):
    cycle = []; cycle.append(cycle)
    deep = []
    for _ in range(100_000): deep = [deep]
    return {"nan": {"a": [float("nan")]}, "inf": [float("inf")], "minus": float("-inf"), "set": {"x": {1}},
            "key": {"a": {1: 2}}, "surrogate": ["\\ud800"], "surrogate_key": {"\\ud800": 1}, "cycle": cycle,
            "deep": deep, "generator": (i for i in "ab"), "bytes": {"a/b": b"x"}, "object": [object()],
            "huge": 10 ** 5000, "tuple": (1, (2,)), "big": "y" * 3_000_000}[kind]

@command
def blob(data):
    return {"size": len(data["img"]), "back": [data["img"], bytearray(b"2"), memoryview(b""), b""]}

@command
def remember(key=None, value=None):
    state = context().state
    if key is not None: state[key] = value
    return dict(state, again=context().state is state)

@command
def left(): return context().deadline_s

@command
def say(text, level="info"):
    context().log(text, level, number=1, odd={1})
    return True

@command
def noise():
    print("to stdout")
    os.write(1, b"raw stdout\\n")
    os.system("echo from a child")
    return sys.stdin.read()

@command
def environment():
    out = subprocess.run([sys.executable, "-c", "import os; print(sorted(os.listdir('/dev/fd')))"],
                         stdout=subprocess.PIPE, close_fds=False).stdout.decode()
    names = [name for name in os.environ if name in ("SNAKEPIT_FDS", "SNAKEPIT_CLAIM_FD")]
    return [names, eval(out)]

@command
def fork():
    pid = os.fork()
    if pid == 0:
        raise SystemExit(5)
    return os.waitpid(pid, 0)[1] >> 8

@command
def busy(path):
    open(path, "w").close()
    while True: pass

@command
def modules(): return sorted(sys.modules)

def child(): sys.exit(9)

@command
def spawn():
    import multiprocessing
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    return process.exitcode
'''


@pytest.fixture(scope="session")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A handler file with one command for each behaviour."""
    path = tmp_path_factory.mktemp("handlers") / "my_handlers.py"
    path.write_text(HANDLERS)
    return str(path)


@pytest.fixture
def worker(handlers: str) -> Any:
    """A started level-1 worker with the handler file and all capabilities but claim."""
    with BridgeProcess("--handlers", handlers) as process:
        assert process.start()["success"]
        yield process


def _error(reply: Any) -> tuple[str, str, str]:
    assert reply["success"] is False
    return reply["error"]["code"], reply["error"]["type"], reply["error"]["message"]


# ------------------------------------------------------------------------------------------------ start


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: Path(path).resolve().name)
def test_each_python_version_serves(python: str, handlers: str) -> None:
    """Handshake, binding, errors, async and strict results work the same on each Python from 3.8 on."""
    with BridgeProcess("--handlers", handlers, "--mode", "pool-worker", python=python) as process:
        reply = process.start(start_args={"mode": "m", "limit": 2})
        probe = [python, "-c", "import platform; print(platform.python_version())"]
        runtime = subprocess.check_output(probe, text=True, timeout=BOUND_S).strip()

        answers = [
            process.ask("add", {"a": 1, "scale": 3})["result"],
            process.ask("later", 5)["result"],
            process.ask("later", 6)["result"],
            process.ask("started")["result"],
            _error(process.ask("add", {"b": 1, "c": 2})),
            _error(process.ask("make", "nan"))[2],
            _error(process.ask("make", "cycle"))[0],
            _error(process.ask("make", "deep"))[0],
            _error(process.ask("fail", "value"))[:2],
            process.ask("echo", {"t": "h\u00e9\U0001f600", "n": 2**70})["result"]["echoed"],
            process.ask("only_positional", [1, 2])["result"],
            _error(process.ask("only_positional", {"a": 1, "b": 2}))[1],
            process.ask("spawn")["result"],
        ]
        process.close_requests()

        assert reply["result"]["protocol"]["runtime"] == runtime
        message = "add: missing 'a'; unexpected 'c'; signature: add(a, b=10, *, scale=1)"
        assert answers == [
            33, [5, 1, None], [6, 1, None], ["m", 2, None, "w-1"],
            ("bad_args", "InvalidArguments", message), "result/a/0: NaN is not JSON", "encode_error",
            "encode_error", ("handler_error", "Odd"), {"t": "h\u00e9\U0001f600", "n": 2**70}, [1, 2],
            "InvalidArguments", 9,
        ]  # fmt: skip
        assert (0, "") == (process.exit_status(), process.stderr)


def test_handshake_tells_protocol_and_commands(handlers: str) -> None:
    """The first reply has the seed's fields and the agreed protocol, with each command's parameters."""
    with BridgeProcess("--handlers", handlers) as process:
        result = process.start(capabilities=["errors", "claim", "pickle", "batch", "unheard-of"])["result"]

        protocol = result["protocol"]
        commands = protocol.pop("commands")
        assert {
            "version": 1, "max_frame": MAX_FRAME, "capabilities": ["errors", "batch"], "language": "python",
            "runtime": "{}.{}.{}".format(*sys.version_info[:3]), "bridge": "1.0", "pid": process.process.pid,
        } == protocol  # fmt: skip
        assert {
        "params": ["a", "b", "scale"],
        "doc": "Add two numbers.\n\n    Carefully.",
        "schema": {
            "type": "object",
            "properties": {"a": {}, "b": {}, "scale": {}},
            "required": ["a"],
            "additionalProperties": False,
        },
    } == commands["add"]
        assert {"echo", "compute", "ping", "info", "renamed", "add"} <= set(commands)
        seed_fields = {"status", "bridge_type", "uptime", "requests_handled", "timestamp", "python_version"}
        assert seed_fields | {"worker_id", "echo", "protocol"} == set(result)
        assert ("ok", "w-1") == (result["status"], result["worker_id"])


@pytest.mark.parametrize(
    ("start_args", "expected"),
    [(None, ["plain", 0]), ("text", ["text", 0]), (["list"], ["list", 0]), ({"limit": 4}, ["plain", 4])],
)
def test_start_args_reach_on_start(handlers: str, start_args: Any, expected: list[Any]) -> None:
    """An object gives keywords, an array positionals, null nothing, a scalar one positional."""
    with BridgeProcess("--handlers", handlers) as process:
        process.start(start_args=start_args)

        assert [*expected, None, "w-1"] == process.ask("started")["result"]


def test_failed_on_start_is_a_reply_and_exit_1(handlers: str) -> None:
    """A raising on_start answers the first ping with its traceback, and ends the worker with status 1."""
    with BridgeProcess("--handlers", handlers) as process:
        reply = process.start(start_args="fail")

        assert ("handler_error", "RuntimeError", "no model") == _error(reply)
        assert "my_handlers.py" in reply["error"]["traceback"]
        assert 1 == process.exit_status()


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("def broken(:", "SyntaxError", None),
        ("import sys\nsys.exit(0)", "SystemExit", "0"),
        ("from snakepit_bridge import command\n@command\ndef ping(): pass", "ValueError", None),
        ("from snakepit_bridge import command\ncommand('x')(len); command('x')(abs)", "ValueError", None),
        (None, "FileNotFoundError", None),
        ("", "InvalidArguments", "start_args were given, but the handlers define no @on_start function"),
    ],
)
@pytest.mark.parametrize("level", [0, 1])
def test_bad_handler_file_is_a_failed_start(
    tmp_path: Path, source: str | None, kind: str, message: str | None, level: int
) -> None:
    """What goes wrong in loading the handlers is an error reply to the first ping, and exit status 1."""
    path = tmp_path / "bad_handlers.py"
    if source is not None:
        path.write_text(source)
    with BridgeProcess("--handlers", str(path), level=level) as process:
        reply = process.start(start_args=1)

        if level:
            assert kind == _error(reply)[1]
            assert message in (None, reply["error"]["message"])
        else:
            assert isinstance(reply["error"], str) and reply["error"]
            assert "timestamp" in reply
        assert 1 == process.exit_status()


@pytest.mark.parametrize("name", ["os", "json", "re"])
def test_handler_file_that_would_shadow_a_module_is_refused(tmp_path: Path, name: str) -> None:
    """A file whose name is that of a module in use, now or later, is named, not imported in its place."""
    (tmp_path / f"{name}.py").write_text("")
    with BridgeProcess("--handlers", str(tmp_path / f"{name}.py")) as process:
        kind, message = _error(process.start())[1:]

        assert "ImportError" == kind and "rename the file" in message


def test_a_neighbour_with_the_name_of_a_module_costs_the_traceback_only(tmp_path: Path) -> None:
    """What a traceback is made with is imported late, and may find a file of the user's in its place."""
    (tmp_path / "token.py").write_text("SECRET = 1")
    (tmp_path / "handlers_here.py").write_text(
        "from snakepit_bridge import command\n@command\ndef bad(): raise ValueError('my own words')\n"
    )
    with BridgeProcess("--handlers", str(tmp_path / "handlers_here.py")) as process:
        process.start()
        for _ in range(2):
            error = process.ask("bad", {})["error"]

            assert ("ValueError", "my own words") == (error["type"], error["message"])
            assert "its traceback cannot be shown: cannot import name" in error["traceback"]


def test_handlers_may_be_a_module_and_import_siblings(tmp_path: Path) -> None:
    """A module is found from the working folder, a file's siblings from its own; built-ins yield."""
    (tmp_path / "sibling.py").write_text("VALUE = 42")
    (tmp_path / "handlers_here.py").write_text(
        "from snakepit_bridge import command\nimport sibling\n@command\ndef info(): return sibling.VALUE\n"
    )
    for name in ("handlers_here", "handlers_here.py"):
        with BridgeProcess("--handlers", name, cwd=str(tmp_path)) as process:
            process.start()

            assert 42 == process.ask("info")["result"]


def test_start_imports_little(handlers: str) -> None:
    """A worker that has not needed them has not imported the slow parts of the standard library."""
    with BridgeProcess("--handlers", handlers, flags=("-I", "-S")) as process:
        process.start()
        loaded = set(process.ask("modules")["result"])

        slow = {
            "asyncio",
            "traceback",
            "inspect",
            "platform",
            "pickle",
            "multiprocessing",
            "logging",
            "typing",
        }
        assert set() == slow - {"subprocess"} & loaded


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: Path(path).resolve().name)
def test_the_bridge_needs_hardly_more_than_the_interpreter(python: str, tmp_path: Path) -> None:
    """The start, a handler file included, and plain requests import no module of Python but what is there anyway."""
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom snakepit_bridge import command\n@command\ndef modules(): return sorted(sys.modules)\n"
    )
    bare = [python, "-I", "-S", "-c", "import os, sys; print(*sys.modules)"]
    there = set(subprocess.check_output(bare, text=True, timeout=BOUND_S).split())
    with BridgeProcess("--handlers", str(tmp_path / "mine.py"), flags=("-I", "-S"), python=python) as process:
        process.start()
        process.ask("echo", {"a": [1.5, None, "x"]})

        more = set(process.ask("modules")["result"]) - there

    assert {"snakepit_bridge", "mine", "_json", "select"} >= more


@pytest.mark.parametrize("options", [["--nonsense"], ["--handlers"], ["file.py"], ["--callables=1"]])
def test_unknown_option_is_exit_2(options: list[str]) -> None:
    """An option that does not exist or lacks its value is named on stderr."""
    with BridgeProcess(*options) as process:
        assert 2 == process.exit_status()
        assert "usage:" in process.stderr


def test_bad_descriptor_variable_is_exit_2() -> None:
    """SNAKEPIT_FDS that is not two open descriptors is named on stderr."""
    for value in ("x,y", "1", "900,901"):
        env = dict(os.environ, SNAKEPIT_FDS=value)
        done = subprocess.run(
            [sys.executable, BRIDGE], env=env, capture_output=True, timeout=BOUND_S, check=False
        )

        assert (2, b"") == (done.returncode, done.stdout)
        assert b"usage:" in done.stderr


# ---------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ("add", {"a": 1}, 11),
        ("add", {"a": 1, "b": 2, "scale": 3}, 9),
        ("add", [1, 2], 3),
        ("add", 1, 11),
        ("add", "x", None),
        ("none", None, None),
        ("none", {}, None),
        ("none", [], None),
        ("none", 0, 0),
        ("none", False, False),
        ("none", "", ""),
        ("none", [[]], []),
        ("none", [None], None),
        ("none", {"value": {}}, {}),
        ("renamed", [1, 2, 3], {"values": [1, 2, 3], "options": {}}),
        ("renamed", {"a-b": 1}, {"values": [], "options": {"a-b": 1}}),
        ("make", "tuple", [1, [2]]),
    ],
)
def test_args_bind(worker: BridgeProcess, command: str, args: Any, expected: Any) -> None:
    """Arguments arrive as sent: objects as keywords, arrays as positionals, falsy values untouched."""
    reply = worker.ask(command, args)

    if expected is None and args == "x":
        assert ("handler_error", "TypeError") == _error(reply)[:2]
    else:
        assert {"id": 7, "success": True, "result": expected} == reply


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        ("add", None, "add: missing 'a'; signature: add(a, b=10, *, scale=1)"),
        ("add", {"b": 1}, "add: missing 'a'; signature: add(a, b=10, *, scale=1)"),
        ("add", {"a": 1, "z": 1}, "add: unexpected 'z'; signature: add(a, b=10, *, scale=1)"),
        (
            "add",
            [1, 2, 3],
            "add: takes at most 2 positional arguments, got 3; signature: add(a, b=10, *, scale=1)",
        ),
        ("only_positional", [1], "only_positional: missing 'b'; signature: only_positional(a, /, b)"),
    ],
)
def test_args_that_do_not_fit_are_bad_args(
    worker: BridgeProcess, command: str, args: Any, message: str
) -> None:
    """A mismatch names the handler, what is missing or unexpected, and the signature."""
    assert ("bad_args", "InvalidArguments", message) == _error(worker.ask(command, args))


def test_type_error_inside_a_handler_is_the_handlers(worker: BridgeProcess) -> None:
    """A TypeError from the body is no argument mismatch; its traceback begins in the handler file."""
    error = worker.ask("fail", "type")["error"]

    assert ("handler_error", "TypeError", "python") == (error["code"], error["type"], error["language"])
    lines = error["traceback"].splitlines()
    assert "my_handlers.py" in lines[1]
    assert str(BRIDGE) not in error["traceback"]


def test_error_reports_data_and_cause(worker: BridgeProcess) -> None:
    """An exception's data and its cause travel; without them the fields are absent."""
    plain = worker.ask("fail", "value")["error"]
    chained = worker.ask("fail", "chained")["error"]

    assert ({"why": [1, None]}, False) == (plain["data"], "cause" in plain)
    assert {"type": "KeyError", "message": "'x'"} == chained["cause"]
    assert "data" not in chained


@pytest.mark.parametrize(
    ("kind", "name"),
    [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("cruel", "Cruel"), ("long", "ValueError"),
     ("surrogate", "ValueError"), ("deep", "RecursionError")],
)  # fmt: skip
def test_whatever_a_handler_raises_is_a_reply(worker: BridgeProcess, kind: str, name: str) -> None:
    """No exception ends the worker, not even one that cannot describe itself; texts are capped."""
    error = worker.ask("fail", kind)["error"]

    assert ("handler_error", name) == (error["code"], error["type"])
    assert max(len(error["message"].encode()), len(error["traceback"].encode())) <= 64 * 1024
    assert 1 == worker.ask("none", 1)["result"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "result/a/0: NaN is not JSON"),
        ("inf", "result/0: Infinity is not JSON"),
        ("minus", "result: -Infinity is not JSON"),
        ("set", "result/x: set is not a JSON type"),
        ("key", "result/a: key 1 is int; JSON keys are str"),
        ("surrogate", "result/0: text with a lone surrogate at index 0 is not UTF-8"),
        ("surrogate_key", "result: text with a lone surrogate at index 0 is not UTF-8"),
        ("cycle", "result/0: a cycle: the value contains itself"),
        ("generator", "result: generator is not a JSON type; return a list"),
        ("object", "result/0: object is not a JSON type"),
    ],
)
def test_result_that_is_no_json_is_an_encode_error(worker: BridgeProcess, kind: str, message: str) -> None:
    """The reply names the path of what cannot be sent, and the worker lives on."""
    assert ("encode_error", "EncodeError", message) == _error(worker.ask("make", kind))
    assert 1 == worker.ask("none", 1)["result"]


def test_deep_and_huge_results_are_encode_errors(worker: BridgeProcess) -> None:
    """Nesting beyond the limit, and an integer the runtime will not print, are refused with a path."""
    deep = _error(worker.ask("make", "deep"))
    huge = _error(worker.ask("make", "huge"))

    assert "encode_error" == deep[0] and "nested deeper than 256 levels" in deep[2]
    assert "encode_error" == huge[0] and huge[2].startswith("result: ")


def test_result_above_the_limit_is_too_large(handlers: str) -> None:
    """A reply above max_frame is replaced by an error that names size and limit."""
    with BridgeProcess("--handlers", handlers, max_frame=100_000) as process:
        process.start()
        code, _, message = _error(process.ask("make", "big"))

        assert "too_large" == code
        assert "3000035" in message and "100000" in message
        assert 1 == process.ask("none", 1)["result"]


def test_unknown_command_lists_what_there_is() -> None:
    """The message is the same in every language: the name, then the commands in order."""
    with BridgeProcess() as process:
        process.start()
        message = "Unknown command: 'nope'. Available: compute, echo, info, ping"

        assert ("unknown_command", "UnknownCommand", message) == _error(process.ask("nope"))


@pytest.mark.parametrize(
    ("args", "outcome"),
    [
        ({"operation": "add", "a": 1, "b": 2}, 3),
        ({"operation": "subtract", "a": 0, "b": 2.5}, -2.5),
        ({"operation": "multiply", "a": 3, "b": -2}, -6),
        ({"operation": "divide", "a": 1, "b": 4}, 0.25),
        ({"operation": "divide", "a": 1, "b": 0}, "compute: division by zero"),
        ({"operation": "divide", "a": 1, "b": 0.0}, "compute: division by zero"),
        (
            {"operation": "mod", "a": 1, "b": 0},
            "compute: unknown operation 'mod'; one of add, divide, multiply, subtract",
        ),
        ({"operation": "add", "b": 0}, "compute: missing field 'a'"),
        ({"operation": "add", "a": True, "b": 0}, "compute: field 'a' must be a number"),
        ({"operation": "add", "a": 1, "b": "2"}, "compute: field 'b' must be a number"),
        ({"operation": "multiply", "a": 1e308, "b": 10}, "compute: result is not a finite number"),
        ({"operation": "multiply", "a": 10**300, "b": 10**300}, "compute: result is not a finite number"),
        (None, "compute: args must be an object"),
    ],
)
def test_compute(args: Any, outcome: Any) -> None:
    """Right operations give the seed's fields, wrong ones bad_args."""
    with BridgeProcess() as process:
        process.start()
        reply = process.ask("compute", args)

        if isinstance(outcome, str):
            assert ("bad_args", "InvalidArguments", outcome) == _error(reply)
        else:
            assert {"status", "operation", "inputs", "result", "timestamp"} == set(reply["result"])
            assert outcome == reply["result"]["result"]
            assert {"a": args["a"], "b": args["b"]} == reply["result"]["inputs"]


def test_sessions_keep_state_until_their_end(worker: BridgeProcess) -> None:
    """State lives as long as its session, else as long as the request; unknown messages are ignored."""
    first = worker.ask("remember", ["k", 1], session="s")
    second = worker.ask("remember", None, session="s")
    other = worker.ask("remember", None, session="t")
    bare = worker.ask("remember", ["k", 2])
    bare_again = worker.ask("remember")
    worker.send({"type": "session_end", "session": "s"})
    worker.send({"type": "from_the_future", "session": "t"})
    ended = worker.ask("remember", None, session="s")

    results = [reply["result"] for reply in (first, second, other, bare, bare_again, ended)]
    kept, empty = {"k": 1, "again": True}, {"again": True}
    assert [kept, kept, empty, {"k": 2, "again": True}, empty, empty] == results


def test_deadline_is_remaining_time(worker: BridgeProcess) -> None:
    """deadline_s counts down from the request's budget, stops at zero, and is None without one."""
    remaining = worker.ask("left", None, deadline_ms=60_000)["result"]
    over = worker.ask("left", None, deadline_ms=-5)["result"]
    without = worker.ask("left")["result"]

    assert 50 < remaining <= 60
    assert (0.0, None) == (over, without)


def test_log_is_a_message_and_needs_the_capability(handlers: str) -> None:
    """Log lines travel as messages with the request's id where agreed, else to stderr."""
    with BridgeProcess("--handlers", handlers) as process:
        process.start()
        process.send({"id": 3, "command": "say", "args": ["hello", "warning"]})
        line, reply = process.receive(), process.receive()

        fields = {"number": "1", "odd": "{1}"}
        assert {"type": "log", "id": 3, "level": "warning", "message": "hello", "fields": fields} == line
        assert reply["result"] is True
    with BridgeProcess("--handlers", handlers) as process:
        process.start(capabilities=["errors"])

        assert process.ask("say", ["hello\n"])["result"] is True
        assert "[info] hello" in process.stderr


def test_prints_do_not_touch_the_stream(handlers: str) -> None:
    """Prints, raw writes and children go to stdout at once; stdin is empty, at both levels."""
    for level in (0, 1):
        with BridgeProcess("--handlers", handlers, level=level) as process:
            process.start()
            reply = process.ask("noise")

            seen = process.stdout if level else process.stderr
            assert (True, "") == (reply["success"], reply["result"])
            assert ["to stdout", "raw stdout", "from a child"] == seen.splitlines()


def test_children_see_neither_descriptors_nor_variables(handlers: str) -> None:
    """A program that a handler starts inherits no frame descriptor, no claim pipe, and no variable."""
    with BridgeProcess("--handlers", handlers, claim=True) as process:
        process.start()
        names, fds = process.ask("environment")["result"]

        assert ([], ["0", "1", "2", "3"]) == (names, fds)


def test_forked_child_does_not_answer(handlers: str) -> None:
    """A fork in a handler that falls out of it ends with its own status, and the stream stays whole."""
    with BridgeProcess("--handlers", handlers) as process:
        process.start()

        assert 5 == process.ask("fork")["result"]
        assert 1 == process.ask("none", 1)["result"]


# ------------------------------------------------------------------------------------------------ frames


def test_frames_may_be_split_anywhere(worker: BridgeProcess) -> None:
    """One byte at a time, several frames at once, and a large frame in odd pieces decode the same."""
    request = frame({"id": 1, "command": "none", "args": ["x"]})
    for i in range(len(request)):
        worker.write(request[i : i + 1])
    slow = worker.receive()["result"]
    many = b"".join(frame({"id": n, "command": "none", "args": [n]}) for n in range(500))
    worker.write(many)
    several = [worker.receive()["result"] for _ in range(500)]
    text = "z" * 1_000_003
    large = many[:33] and frame({"id": 2, "command": "none", "args": [text]})
    sizes = (1, 3, 65_536, 65_537, 7, 131_072, len(large))
    for size in sizes:
        worker.write(large[:size])
        large = large[size:]

    assert "x" == slow
    assert list(range(500)) == several
    assert text == worker.receive()["result"]


def test_each_reply_leaves_before_the_next_request_runs(worker: BridgeProcess, tmp_path: Path) -> None:
    """With several requests in the pipe the first reply arrives although the second never ends."""
    gate = str(tmp_path / "started")
    worker.write(
        frame({"id": 1, "command": "none", "args": [1]}) + frame({"id": 2, "command": "busy", "args": [gate]})
    )

    assert 1 == worker.receive()["result"]


@pytest.mark.parametrize(
    ("payload", "request_id", "reason"),
    [
        (b"not json", None, "JSONDecodeError"),
        (b"\xff\xfe{}", None, "UnicodeDecodeError"),
        (b"[1]", None, "not an object"),
        (b'{"command":"echo"}', None, "no integer id"),
        (b'{"id":"7","command":"echo"}', None, "no integer id"),
        (b'{"id":true,"command":"echo"}', None, "no integer id"),
        (b'{"id":7,"command":"echo","args":NaN}', 7, "NaN is not JSON"),
        (b'{"id":7,"command":"echo","args":[-Infinity]}', 7, "-Infinity is not JSON"),
        (b'{"id":7,"command":"echo","args":1e999}', 7, "out of range"),
        (b'{"id":7,"command":"echo","args":"\\ud800"}', 7, "surrogates not allowed"),
        (b'{"id":7,"command":"echo","args":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 7, "RecursionError"),
        (b'{"id":7,"command":"echo","args":1} x', 7, "Extra data"),
        (b"\x80\x05\x95junk", None, "UnicodeDecodeError"),
    ],
)
def test_bad_frame_is_answered_and_told(
    worker: BridgeProcess, payload: bytes, request_id: int | None, reason: str
) -> None:
    """What is no request gets a reply with its id if one can be seen, a line on stderr, and work goes on."""
    worker.send(payload)
    reply = worker.receive()

    assert (request_id, "internal") == (reply["id"], reply["error"]["code"])
    assert reason in reply["error"]["message"]
    assert 1 == len(worker.stderr.splitlines())
    assert 1 == worker.ask("none", 1)["result"]


@pytest.mark.parametrize("head", [b"\0\0\0\0", b"prin", b"\x7f\xff\xff\xff", b"\t\t\t\t"])
def test_bad_length_is_answered_and_exit_2(worker: BridgeProcess, head: bytes) -> None:
    """A length of 0 or above the limit cannot be followed: reply, stderr, exit status 2."""
    worker.write(head + b"garbage")
    reply = worker.receive()

    assert (None, "internal") == (reply["id"], reply["error"]["code"])
    assert 2 == worker.exit_status()
    assert "length" in worker.stderr


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"id": 7}, "request 7: 'command' must be a string"),
        ({"id": 7, "command": 5, "args": 1}, "request 7: 'command' must be a string"),
        ({"id": 7, "command": "none", "session": 5}, "request 7: 'session' must be a string"),
        ({"id": 7, "command": "none", "batch": 5, "args": 1}, "request 7: 'batch' must be an array"),
        ({"id": 7, "command": "none", "batch": []}, "request 7: 'batch' must not be empty"),
        (
            {"id": 7, "command": "none", "args": 1, "deadline_ms": "x"},
            "request 7: 'deadline_ms' must be a number",
        ),
    ],
)
def test_malformed_request_is_bad_args(worker: BridgeProcess, message: Any, text: str) -> None:
    """A request that is JSON but not well formed is answered under its id."""
    if len(message) == 3 and "args" not in message:
        message = {**message, "args": None}
    worker.send(message)

    assert ("bad_args", "InvalidArguments", text) == _error(worker.receive())


# ------------------------------------------------------------------- attachments, batches, claims


def _attach(worker: BridgeProcess, message: Any, data: bytes, size: int) -> None:
    worker.send(message)
    for start in range(0, len(data), size):
        worker.send(data[start : start + size])


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 10_000])
def test_bytes_travel_as_attachments(handlers: str, size: int) -> None:
    """Bytes go both ways in frames of at most max_frame, empty ones in none."""
    data = bytes(range(256)) * 40
    data = data[:size]
    with BridgeProcess("--handlers", handlers, max_frame=4096) as process:
        process.start(capabilities=["attachments", "errors"])
        entry = {"path": "/args/data/img", "kind": "bytes", "len": size}
        message = {"id": 1, "command": "blob", "args": {"data": {"img": None}}, "attachments": [entry]}
        _attach(process, message, data, 4096)
        reply = process.receive()
        frames = [process.receive_bytes() for _ in range(math.ceil(size / 4096) + 1)]

        assert {"size": size, "back": [None] * 4} == reply["result"]
        kinds = [(e["path"], e["kind"], e["len"]) for e in reply["attachments"]]
        sizes = (size, 1, 0, 0)
        assert [(f"/result/back/{i}", "bytes", n) for i, n in enumerate(sizes)] == kinds
        assert data + b"2" == b"".join(frames)
        assert 1 == process.ask("none", 1)["result"]


def test_attachments_in_a_batch_and_with_odd_names(worker: BridgeProcess) -> None:
    """Pointers count from the message and escape ~ and / in names."""
    entries = [
        {"path": "/batch/0", "kind": "bytes", "len": 2},
        {"path": "/batch/1/a~1b~0", "kind": "bytes", "len": 1},
    ]
    message = {"id": 1, "command": "renamed", "batch": [None, {"a/b~": None}], "attachments": entries}
    worker.write(frame(message) + frame(b"hi") + frame(b"!"))
    first, second = (worker.receive(), worker.receive_bytes()), (worker.receive(), worker.receive_bytes())

    assert (0, "/result/values/0", b"hi") == (first[0]["index"], first[0]["attachments"][0]["path"], first[1])
    assert (1, "/result/options/a~1b~0") == (second[0]["index"], second[0]["attachments"][0]["path"])
    assert b"!" == second[1]


@pytest.mark.parametrize(
    "entry",
    [{"path": "/args/nope", "kind": "bytes", "len": 1}, {"path": "args", "kind": "bytes", "len": 1},
     {"path": "/args/x", "kind": "ndarray", "len": 1}, {"kind": "bytes", "len": 1}],
)  # fmt: skip
def test_attachment_without_a_place_is_bad_args(worker: BridgeProcess, entry: Any) -> None:
    """A pointer that leads nowhere fails the request, its frames are consumed, and work goes on."""
    worker.write(
        frame({"id": 1, "command": "none", "args": {"x": None}, "attachments": [entry]}) + frame(b"1")
    )

    assert "bad_args" == _error(worker.receive())[0]
    assert 1 == worker.ask("none", 1)["result"]


def test_attachment_frames_of_another_size_end_the_worker(worker: BridgeProcess) -> None:
    """Frames that do not fit their announcement cannot be followed: exit status 2."""
    entry = {"path": "/args", "kind": "bytes", "len": 3}
    worker.write(frame({"id": 1, "command": "none", "args": None, "attachments": [entry]}) + frame(b"12345"))

    assert "internal" == _error(worker.receive())[0]
    assert 2 == worker.exit_status()


def test_bytes_without_the_capability_are_refused(handlers: str) -> None:
    """A result with bytes is an encode error, with the pointer's escapes, when the host takes none."""
    with BridgeProcess("--handlers", handlers) as process:
        process.start(capabilities=["errors"])
        message = "result/a~1b: bytes cannot travel: the host takes no attachments"

        assert ("encode_error", "EncodeError", message) == _error(process.ask("make", "bytes"))


def test_batch_items_are_answered_one_by_one(worker: BridgeProcess) -> None:
    """Each item has its own frame with its index; one bad item costs that item only."""
    worker.send({"id": 9, "command": "add", "batch": [1, {"nope": 1}, [5, 6]]})
    replies = [worker.receive() for _ in range(3)]

    assert [(9, 0), (9, 1), (9, 2)] == [(reply["id"], reply["index"]) for reply in replies]
    assert [11, 11] == [replies[0]["result"], replies[2]["result"]]
    assert "bad_args" == _error(replies[1])[0]


def test_claimed_requests_run_only_with_their_byte(handlers: str) -> None:
    """One byte is taken for each request or batch item that was sent ahead; none left means recalled."""
    with BridgeProcess("--handlers", handlers, claim=True) as process:
        assert "claim" in process.start()["result"]["protocol"]["capabilities"]
        assert process.claims is not None
        os.write(process.claims, b"..")
        run = process.ask("none", 1, claim=True)
        unclaimed = process.ask("none", 2)
        unknown = process.ask("nope", 3, claim=True)
        recalled = process.ask("none", 4, claim=True)
        os.write(process.claims, b".")
        process.send({"id": 8, "command": "none", "batch": [[5], [6]], "claim": True})
        batch = [process.receive(), process.receive()]

        assert [1, 2] == [run["result"], unclaimed["result"]]
        assert "unknown_command" == _error(unknown)[0]
        assert {"id": 7, "type": "recalled"} == recalled
        assert {"id": 8, "index": 0, "success": True, "result": 5} == batch[0]
        assert {"id": 8, "type": "recalled", "index": 1} == batch[1]


# ------------------------------------------------------------------------------------------ ends, level 0


def test_end_of_requests_ends_an_idle_worker(worker: BridgeProcess) -> None:
    """EOF: exit status 0, nothing on stderr."""
    worker.close_requests()

    assert (0, "") == (worker.exit_status(), worker.stderr)


@pytest.mark.parametrize("both", [True, False])
def test_end_of_requests_ends_a_busy_worker(worker: BridgeProcess, tmp_path: Path, both: bool) -> None:
    """A handler in an endless loop does not outlive the request pipe, whoever still reads replies."""
    gate = tmp_path / "started"
    worker.send({"id": 1, "command": "busy", "args": [str(gate)]})
    until = time.monotonic() + BOUND_S
    while not gate.exists() and time.monotonic() < until:
        select.select([], [], [], 0.005)

    worker.close_requests()
    if both:
        os.close(worker.replies)
        worker.replies = -1

    assert gate.exists()
    assert 0 == worker.exit_status()


def test_piped_requests_are_answered_before_the_end(worker: BridgeProcess) -> None:
    """Requests that were written before the pipe was closed get their replies."""
    worker.write(b"".join(frame({"id": n, "command": "none", "args": n}) for n in range(20)))
    worker.close_requests()

    assert list(range(20)) == [worker.receive()["result"] for _ in range(20)]
    assert 0 == worker.exit_status()


def test_signals(worker: BridgeProcess, tmp_path: Path) -> None:
    """SIGINT is ignored; SIGTERM keeps its default action, also in the middle of a handler."""
    worker.process.send_signal(signal.SIGINT)
    alive = worker.ask("none", 1)["result"]
    worker.send({"id": 1, "command": "busy", "args": [str(tmp_path / "started")]})
    worker.process.send_signal(signal.SIGTERM)

    assert 1 == alive
    assert -signal.SIGTERM == worker.exit_status()


def test_level_0_host(handlers: str) -> None:
    """A host of the seed's protocol gets its reply shapes: string errors and a timestamp each."""
    with BridgeProcess("--handlers", handlers, level=0) as process:
        ping = process.start()
        echo = process.ask("echo", {"a": False, "b": 0})
        unknown = process.ask("nope")
        failed = process.ask("fail", "value")
        plain = process.ask("none", 1, claim=True, batch=[2, 3], session="s", timestamp="now")
        process.send(b"rubbish")
        bad = process.receive()
        process.close_requests()

        assert {"id", "success", "result", "timestamp"} == set(ping) == set(echo)
        assert 1 == plain["result"]
        assert ("ok", True) == (ping["result"]["status"], "protocol" not in ping["result"])
        assert {"a": False, "b": 0} == echo["result"]["echoed"]
        assert {"id", "success", "error", "timestamp"} == set(unknown) == set(failed) == set(bad)
        assert unknown["error"].startswith("Unknown command: 'nope'. Available: add, ")
        assert ("boom", None) == (failed["error"], bad["id"])
        assert 0 == process.exit_status()


def test_level_0_host_that_does_not_ping_first(handlers: str) -> None:
    """The handlers are loaded for whatever request comes first."""
    with BridgeProcess("--handlers", handlers, level=0) as process:
        assert 3 == process.ask("add", [1, 2])["result"]


# --------------------------------------------------------------------------------------------- callables


CALLABLES = """
import multiprocessing, os, sys

class Fussy(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first}-{second}")

class Kept(Exception):
    def __init__(self, code, *, note=""):
        super().__init__(code)
        self.code = code
        self.note = note

class Hostile:
    def __init__(self, error): self.error = error
    def __reduce__(self): return rebuild, (self.error,)

class Unpicklable:
    def __reduce__(self): raise OSError("not me")

def rebuild(error): raise error("while unpickling")

def fail(kind):
    if kind == "fussy": raise Fussy(1, 2)
    if kind == "kept": raise Kept(3, note="n")
    if kind == "exit": sys.exit(4)
    if kind == "hostile":
        error = ValueError("outer"); error.extra = Hostile(SystemExit); raise error
    if kind == "holds":
        error = ValueError("outer"); error.extra = Unpicklable(); raise error
    if kind == "local":
        class Local(ValueError): pass
        raise Local("of its own")
    raise ValueError(kind)

def unpicklable(): return Unpicklable()

def repeat(text, count): return text * count

def facts():
    return {"cwd": os.getcwd(), "path": sys.path, "argv": sys.argv, "modules": set(sys.modules)}

def identity():
    import multiprocessing
    current = multiprocessing.current_process()
    return bytes(current.authkey), current.name.split("-")[0]

def state(key=None):
    from snakepit_bridge import context
    here = context()
    here.state.setdefault("keys", []).append(key)
    return here.state["keys"], here.session_id, here.deadline_s, here.worker_id

def main_names(): return [name for name in vars(sys.modules["__main__"]) if not name.startswith("__")]

def append(values, value): values.append(value)

shared = None

def take(*values):
    global shared
    shared = values
    if values and values[0] == "raise": raise LookupError("no model")
    if values and values[0] == "exit": sys.exit(0)

def use():
    lock, queue = shared
    taken = lock.acquire(block=False)
    queue.put(("from the worker", taken))

def given(): return shared

class Array:
    def __init__(self, memory): self.memory = memory
    def __reduce_ex__(self, protocol):
        import pickle
        return Array, (pickle.PickleBuffer(self.memory),)

def inheritable():
    kept = []
    for name in os.listdir("/dev/fd"):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)): kept.append(name)
        except OSError: pass
    return kept
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that host and workers import by the same name."""
    (tmp_path / "bridge_functions.py").write_text(
        CALLABLES.replace("import multiprocessing, os", "import os")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module("bridge_functions")
    sys.modules.pop("bridge_functions", None)


@pytest.fixture
def caller(functions: Any) -> Any:
    """A started callable worker without an initializer."""
    process, reply = callable_worker()
    with process:
        assert reply["success"], reply
        yield process


def test_callables_run(caller: BridgeProcess) -> None:
    """Functions by name, lambdas, keyword arguments, chunks, and JSON requests share one worker."""
    by_name = caller.call(pow, 2, 5)
    closure = caller.call(lambda x: [x, "local"], 3)
    caller.post(_callables.encode_call(int, ("ff",), {"base": 16}))
    keyword = caller.settle()
    caller.post(_callables.encode_chunk(pow, [(2, 3), (3, 3)]), "chunk")
    chunk = caller.settle()
    ping = caller.ask("ping", {})

    assert ("result", 32, None) == by_name
    assert ("result", [3, "local"], None) == closure
    assert ("result", 255, None) == keyword
    assert ("result", [8, 27], None) == chunk
    assert "ok" == ping["result"]["status"]


def test_callable_worker_is_the_hosts_likeness(caller: BridgeProcess, functions: Any) -> None:
    """Path, arguments and folder are the host's; multiprocessing comes when needed, then with its key."""
    facts = caller.call(functions.facts)[1]
    identity = caller.call(functions.identity)[1]
    main = caller.call(functions.main_names)[1]

    assert (os.getcwd(), sys.argv) == (facts["cwd"], facts["argv"])
    assert [entry or os.getcwd() for entry in sys.path] == facts["path"]
    assert "multiprocessing" not in facts["modules"]
    assert [] == main
    assert (bytes(multiprocessing.current_process().authkey), "SnakepitWorker") == identity


def test_value_of_a_class_from_main_comes_back(caller: BridgeProcess) -> None:
    """An instance of a class that only this process has travels there and back as that very class."""

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    Point.__module__, Point.__qualname__ = "__main__", "Context"  # a name that the bridge uses itself
    value = caller.call(lambda point: point, Point(3))[1]

    assert (Point, 3) == (type(value), value.x)


@pytest.mark.parametrize(
    ("kind", "outcome", "name", "message"),
    [
        ("plain", "error", "ValueError", "plain"),
        ("kept", "error", "Kept", "3"),
        ("exit", "error", "SystemExit", "4"),
        ("local", "error", "Local", "of its own"),
        ("fussy", "opaque", "Fussy", "1-2"),
        ("hostile", "opaque", "ValueError", "outer"),
        ("holds", "opaque", "ValueError", "outer"),
    ],
)
def test_exceptions_of_callables(
    caller: BridgeProcess, functions: Any, kind: str, outcome: str, name: str, message: str
) -> None:
    """An exception keeps its class if it can be rebuilt, else it is described; the traceback travels."""
    got, value, error = caller.call(functions.fail, kind)

    assert (outcome, None) == (got, value)
    assert error is not None and error.__cause__ is not None
    assert "in fail" in str(error.__cause__) and str(BRIDGE) not in str(error.__cause__)
    if outcome == "error":
        assert (name, message) == (type(error).__name__, str(error))
    else:
        assert isinstance(error, CommandError)
        assert (name, message, "handler_error") == (error.type, error.message, error.code)
    assert ("result", 8, None) == caller.call(pow, 2, 3)


def test_first_exception_fails_its_chunk(caller: BridgeProcess, functions: Any) -> None:
    """A chunk is one request: it fails with the first exception."""
    caller.post(_callables.encode_chunk(functions.fail, [("first",), ("second",)]), "chunk")
    kind, _, error = caller.settle()

    assert ("error", "first") == (kind, str(error))


def test_what_cannot_be_pickled_fails_its_call_only(caller: BridgeProcess, functions: Any) -> None:
    """Hostile arguments, missing modules and unpicklable results are errors; the worker serves on."""
    missing = pickle.dumps(("x", (), {})).replace(b"x", b"x")
    outcomes = [
        caller.call(functions.given.__class__, functions.Hostile(KeyError)),
        caller.call(functions.repeat, functions.Hostile(SystemExit), 1),
        caller.call(functions.unpicklable),
        caller.call(lambda: (i for i in "ab")),
    ]
    caller.post(b"\x80\x05cno_such_module\nf\n.")
    outcomes.append(caller.settle())
    caller.post(missing)
    outcomes.append(caller.settle())
    caller.post(b"\x80\x05garbage")
    outcomes.append(caller.settle())

    names = [type(error).__name__ for _, _, error in outcomes]
    expected = ["KeyError", "SystemExit", "OSError", "TypeError", "ModuleNotFoundError", "TypeError"]
    assert [*expected, "UnpicklingError"] == names
    assert {"error"} == {kind for kind, _, _ in outcomes}
    assert all(error is not None and error.__cause__ is not None for _, _, error in outcomes)
    assert ("result", 8, None) == caller.call(pow, 2, 3)


def test_log_lines_stay_out_of_a_reply(tmp_path: Path) -> None:
    """A thread that logs all the time does so before and after a reply with its attachments, never within."""
    handlers = tmp_path / "chatty.py"
    handlers.write_text(CHATTY)
    with BridgeProcess("--handlers", str(handlers), max_frame=1000) as process:
        process.start()
        process.send({"id": 7, "command": "chatter", "args": {"size": 100_000}})
        message = process.receive()
        while "type" in message:
            message = process.receive()
        payloads = [process.receive_bytes() for _ in range(200)]
        process.close_requests()

        assert [entry["len"] for entry in message["attachments"]] == [100_000, 100_000]
        assert b"a" * 100_000 + b"b" * 100_000 == b"".join(payloads)


def test_large_callable_messages(functions: Any) -> None:
    """A large argument and result pass; a reply above max_frame says its size."""
    process, _ = callable_worker(max_frame=3_000_000)
    with process:
        passed = process.call(functions.repeat, "x" * 1_000_000, 2)
        kind, _, error = process.call(functions.repeat, "x" * 1_000_000, 3)

        assert ("result", "x" * 2_000_000) == passed[:2]
        assert "too_large" == kind
        assert isinstance(error, ResultError) and "3000000" in str(error)
        assert ("result", 8, None) == process.call(pow, 2, 3)


@pytest.mark.parametrize("max_frame", [100_000, 64 << 20])
@pytest.mark.parametrize("size", [65_536, 1_000_003, 3_000_001])
def test_buffers_travel_beside_the_pickle(functions: Any, max_frame: int, size: int) -> None:
    """Buffers arrive whole and writable, and are sent back as they then are; a protected one stays protected."""

    def change(array: Any, fixed: Any, text: str) -> Any:
        array.memory[0] = 1
        return [array, memoryview(fixed.memory).readonly, text, array]

    process, _ = callable_worker(max_frame=max_frame, max_message=1 << 26)
    data, text = bytes(range(256)) * (size // 256 + 1), "\u00e9" * size
    with process:
        kind, value, error = process.call(change, functions.Array(bytearray(data)), functions.Array(data), text)

        assert ("result", None) == (kind, error)
        assert b"\x01" + data[1:] == value[0].memory
        assert [True, text] == value[1:3]
        assert value[0] is value[3]
        assert ("result", 8, None) == process.call(pow, 2, 3)


def test_an_exception_with_a_buffer(caller: BridgeProcess, functions: Any) -> None:
    """What an exception holds may be large, too."""
    data = bytearray(b"x" * 200_000)

    def fail(array: Any) -> None:
        raise ValueError(array)

    kind, _, error = caller.call(fail, functions.Array(data))

    assert ("error", ValueError) == (kind, type(error))
    assert error is not None and data == error.args[0].memory


def test_while_a_call_runs_its_pickle_is_gone(caller: BridgeProcess) -> None:
    """The worker holds what the call was given, not also what it was loaded from."""
    size = 64 << 20

    def resident(data: bytes) -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = caller.call(resident, b"")[1]
    during = caller.call(resident, bytes(size))[1]

    assert during - before < 1.5 * size


@pytest.mark.parametrize(
    "second",
    [b"\x82" + (5).to_bytes(8, "big"), b"\x80\x05N.", b'{"type":"?"}', b"\x82", None],
    ids=["a short part", "a pickle", "JSON", "no length", "the end"],
)
def test_the_rest_of_a_pickle_is_due(functions: Any, second: bytes | None) -> None:
    """What breaks off within a pickle is a bad frame, and the end of the worker."""
    process, _ = callable_worker()
    with process:
        head = _callables.request_header(5, None, None, False, "call")
        process.write(frame(b"\x81" + len(head).to_bytes(8, "big")) + frame(head))
        if second is not None:
            process.write(frame(second) + (frame(b"abc") if len(second) == 9 else b""))
        process.close_requests()

        reply = process.receive()

        assert (None, "internal", "BadFrame") == (reply["id"], reply["error"]["code"], reply["error"]["type"])
        assert 2 == process.exit_status()


def test_callables_have_sessions_and_deadlines(caller: BridgeProcess, functions: Any) -> None:
    """context() works in callables; session_end drops the session's state."""
    caller.call(functions.state, 1, session="s")
    kept = caller.call(functions.state, 2, session="s", deadline_ms=60_000)[1]
    other = caller.call(functions.state, 3)[1]
    caller.send({"type": "session_end", "session": "s"})
    ended = caller.call(functions.state, 4, session="s")[1]

    assert ([1, 2], "s", "w-1") == (kept[0], kept[1], kept[3])
    assert 50 < kept[2] <= 60
    assert ([3], None, None, "w-1") == other
    assert [4] == ended[0]


def test_claimed_callables(functions: Any) -> None:
    """A callable sent ahead runs with its byte only."""
    process, _ = callable_worker(claim=True)
    with process:
        assert process.claims is not None
        os.write(process.claims, b".")
        run = process.call(pow, 2, 3, claim=True)
        process.post(_callables.encode_call(pow, (2, 4), {}), claim=True)
        recalled = _callables.decode_reply(process.receive_bytes())

        assert ("result", 8, None) == run
        assert (5, "recalled", b"") == (recalled[0], recalled[1], bytes(recalled[2]))


def test_bad_header_is_a_bad_frame(caller: BridgeProcess) -> None:
    """A pickle frame whose header is none is answered as JSON, told on stderr, and work goes on."""
    caller.write(frame(b"\x80\x05\x95nonsense"))
    reply = caller.receive()

    assert (None, "internal") == (reply["id"], reply["error"]["code"])
    assert "bytes seen" in caller.stderr
    assert ("result", 8, None) == caller.call(pow, 2, 3)


@pytest.mark.parametrize("method", ["loky", "spawn"])
def test_initializer_gets_locks_and_queues(functions: Any, method: str) -> None:
    """A lock and a queue of the pool's context reach the worker, which leaks them to no child of its own."""
    context = None if method == "loky" else multiprocessing.get_context(method)
    preparation = _callables.Preparation(functions.take, (), context)
    lock, queue = preparation.context.Lock(), preparation.context.Queue()
    preparation = _callables.Preparation(functions.take, (lock, queue), context)
    with lock:
        process, reply = callable_worker(preparation)
        with process:
            assert reply["success"], reply
            outcome = process.call(functions.use)
            leaked = process.call(functions.inheritable)[1]

            assert ("result", None, None) == outcome
            assert ("from the worker", False) == queue.get(timeout=BOUND_S)
            assert [] == leaked
    queue.close()
    queue.join_thread()


def test_manager_proxies_reach_initializer_and_calls(functions: Any) -> None:
    """A manager's proxy works among initargs and among a call's arguments: the worker has the host's key."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        values = manager.list()
        process, reply = callable_worker(_callables.Preparation(functions.append, (values, "from the start")))
        with process:
            assert reply["success"], reply
            kind = process.call(functions.append, values, "from a call")[0]

            assert ("result", ["from the start", "from a call"]) == (kind, list(values))


def test_initializer_may_be_a_local_function(functions: Any) -> None:
    """An initializer that only exists here travels by value, and runs before the worker is ready."""

    def initialize(value: Any) -> None:
        import bridge_functions  # type: ignore[import-not-found]

        bridge_functions.take(value, len("by value"))

    process, reply = callable_worker(_callables.Preparation(initialize, ("x",)))
    with process:
        assert reply["success"]
        assert ("x", 8) == process.call(functions.given)[1]


@pytest.mark.parametrize(("value", "name"), [("raise", "LookupError"), ("exit", "SystemExit")])
def test_failing_initializer_is_a_failed_start(functions: Any, value: str, name: str) -> None:
    """What the initializer raises answers the ping as initializer_error; exit status 1."""
    process, reply = callable_worker(_callables.Preparation(functions.take, (value,)))
    with process:
        code, kind, _ = _error(reply)

        assert ("initializer_error", name) == (code, kind)
        assert "in take" in reply["error"]["traceback"]
        assert 1 == process.exit_status()


def test_initializer_that_cannot_be_loaded_is_a_failed_start() -> None:
    """A preparation whose initializer cannot be unpickled in the worker is an initializer_error."""
    with _callables.Preparation().inherit() as (payload, fds):
        process = BridgeProcess("--callables", pass_fds=fds)
    data = pickle.loads(payload)
    data["initializer"] = b"\x80\x05cno_such_module\nf\n."
    with process:
        reply = process._finish_start(pickle.dumps(data, 5))

        assert ("initializer_error", "ModuleNotFoundError") == _error(reply)[:2]
        assert 1 == process.exit_status()


def test_pickle_frames_need_the_option() -> None:
    """Without --callables the capability is not announced and a pickle is a bad frame."""
    with BridgeProcess() as process:
        assert "pickle" not in process.start()["result"]["protocol"]["capabilities"]
        process.write(
            frame(_callables.request_header(1, None, None, False, "call") + pickle.dumps((len, ((),), {})))
        )

        assert "internal" == _error(process.receive())[0]

"""A host in miniature: starts one bridge as a real process, speaks raw frames with it, replays transcripts.

Runs on the test's thread; a ``Worker`` owns its process and its end of each pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

BRIDGES_DIR = Path(__file__).resolve().parents[2] / "bridges"
GOLDEN_DIR = BRIDGES_DIR / "golden"
TESTS_DIR = Path(__file__).resolve().parent
MAX_FRAME = 64 * 1024 * 1024
CAPABILITIES = ("errors", "pipeline", "session", "deadline", "attachments", "batch", "log", "claim")
BUILD_TIMEOUT_S = 300.0  # arbitrary: the first build compiles the standard library as well
REPLY_TIMEOUT_S = 20.0  # arbitrary bound: an interpreter starts in 0.05 s on an idle machine
# Numbers above the range that Node's own start-up marks close-on-exec, so the bridge has to do it.
FRAME_FD_FLOOR = 60

# language: (program, its options, suffix of bridge and handler file, rules it cannot keep)
SCRIPT_LANGUAGES: dict[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "ruby": ("ruby", (), ".rb", ()),
    #
    "r": ("Rscript", ("--vanilla",), ".R", ()),
    #
    "perl": ("perl", (), ".pl", ()),
    #
    "php": ("php", (), ".php", ()),
    #
    "lua": ("lua5.4", (), ".lua", ()),
}


@dataclass(frozen=True)
class Bridge:
    """One bridge in one runtime: what to start, and the handler file of its language.

    Attributes:
        runtime: Name of the program, as ``require_runtime`` knows it.
        cannot: Names of the rules that the language cannot keep, see PROTOCOL.md.
    """

    name: str
    language: str
    argv: tuple[str, ...]
    runtime: str
    handlers: str
    cannot: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name


def _candidate_pythons() -> list[str]:
    """Return the paths of everything on PATH and below pyenv that is named like a Python 3."""
    roots = [Path(name) for name in os.environ.get("PATH", "").split(os.pathsep) if name]
    pyenv_roots = {Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")), Path.home() / ".pyenv"}
    # A shim starts a shell to find what the version folders hold anyway.
    folders = [root for root in roots if root.name != "shims"]
    for pyenv_root in sorted(pyenv_roots):
        folders += sorted(pyenv_root.glob("versions/*/bin"))
    named = re.compile(r"python3\.\d+")
    found = [sys.executable]
    for folder in folders:
        if folder.is_dir():
            found += sorted(str(path) for path in folder.iterdir() if named.fullmatch(path.name))
    return found


@functools.cache
def find_pythons() -> tuple[tuple[str, str], ...]:
    """Return ``((version, path), ...)``, each version >= 3.8 once, oldest first."""
    code = "import sys; print(sys.implementation.name, *sys.version_info[:3])"
    started: dict[str, subprocess.Popen[str]] = {}
    for path in _candidate_pythons():
        real = os.path.realpath(path)
        if real not in started:
            with contextlib.suppress(OSError):
                argv = [path, "-I", "-S", "-c", code]
                started[real] = subprocess.Popen(
                    argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
    found: dict[tuple[int, ...], str] = {}
    for path, process in started.items():
        words = process.communicate(timeout=REPLY_TIMEOUT_S)[0].split()
        if process.returncode == 0 and len(words) == 4 and words[0] == "cpython":
            version = tuple(int(word) for word in words[1:])
            if version >= (3, 8):
                found.setdefault(version, path)
    return tuple((".".join(map(str, version)), found[version]) for version in sorted(found))


def find_bridges() -> list[Bridge]:
    """Return the bridges under test: Python in each interpreter found, and Node (present or not)."""
    python = str(BRIDGES_DIR / "python" / "snakepit_bridge.py")
    node = str(BRIDGES_DIR / "javascript" / "snakepit_bridge.js")
    bridges = [
        Bridge(f"python-{version}", "python", (path, python), "python3", str(TESTS_DIR / "handlers.py"))
        for version, path in find_pythons()
    ]
    found = shutil.which("node") or "node"
    bridges.append(Bridge("node", "javascript", (found, node), "node", str(TESTS_DIR / "handlers.js")))
    return [*bridges, *_script_bridges(), *_go_bridge()]


def _script_bridges() -> Iterator[Bridge]:
    for language, (runtime, options, suffix, cannot) in SCRIPT_LANGUAGES.items():
        script = BRIDGES_DIR / language / f"snakepit_bridge{suffix}"
        if script.is_file():
            argv = (shutil.which(runtime) or runtime, *options, str(script))
            handlers = str(TESTS_DIR / f"handlers{suffix}")
            yield Bridge(language, language, argv, runtime, handlers, frozenset(cannot))


def _go_bridge() -> Iterator[Bridge]:
    source = TESTS_DIR / "go" / "main.go"
    program = Path(tempfile.gettempdir()) / f"snakepit-conformance-go-{os.getuid()}-{_go_digest()}" / "worker"
    yield Bridge("go", "go", (str(program),), "go", str(source), frozenset({"command-line"}))


def _go_digest() -> str:
    """Return what names the build of these sources, wherever they lie."""
    sources = (*sorted((BRIDGES_DIR / "go").glob("*.go")), *sorted((TESTS_DIR / "go").glob("*.*")))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def prepare(bridge: Bridge) -> None:
    """Build the program of a compiled language, once for all processes of a test run; others need nothing."""
    program = Path(bridge.argv[0])
    if bridge.language != "go" or program.exists():
        return
    program.parent.mkdir(mode=0o700, exist_ok=True)
    with (program.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return
        unfinished = program.with_suffix(".unfinished")
        # No network: neither the bridge nor its test program needs a module from elsewhere.
        env = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off"}
        argv = ["go", "build", "-o", str(unfinished), "."]
        subprocess.run(argv, cwd=TESTS_DIR / "go", env=env, check=True, timeout=BUILD_TIMEOUT_S)
        unfinished.rename(program)


@functools.cache
def _validator() -> Callable[[Any], None]:
    schema = json.loads((BRIDGES_DIR / "schema.json").read_text())
    check: Callable[[Any], None] = jsonschema.Draft202012Validator(schema).validate
    return check


def validate(message: Any) -> None:
    """Raise ``jsonschema.ValidationError`` for a message that the schema does not allow."""
    _validator()(message)


def frame(payload: bytes) -> bytes:
    """Return a payload with its length before it."""
    return len(payload).to_bytes(4, "big") + payload


def dumps(message: Any) -> bytes:
    """Return a message as a host writes it."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _socket_pair(kind: int = socket.SOCK_STREAM) -> tuple[int, int]:
    first, second = socket.socketpair(socket.AF_UNIX, kind)
    return first.detach(), second.detach()


def _dup_high(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FRAME_FD_FLOOR)


class WorkerGone(Exception):
    """The worker closed its replies, or did not answer in time; carries its stderr."""


class Worker:
    """One bridge process and this side of its pipes; a context manager that leaves nothing behind.

    Args:
        argv: Program and arguments.
        level: 1 passes descriptors of their own; 0 uses stdin and stdout.
        env: Variables on top of the test's environment.
        claim: Whether to pass a claim pipe (level 1).
        sockets: Whether requests and replies go over sockets, which cannot be opened again by name.
        packets: Whether the replies go over a socket that gives each write of the worker to one read.

    Attributes:
        claims: Write end of the claim pipe (level 1).
        requests: Write end of the requests.
        replies: Read end of the replies.
    """

    def __init__(
        self,
        argv: Sequence[str],
        level: int = 1,
        env: Mapping[str, str] | None = None,
        claim: bool = True,
        sockets: bool = False,
        packets: bool = False,
    ) -> None:
        self.level = level
        self._files = contextlib.ExitStack()
        self.stderr_file = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # by the stack
        self.stdout_file = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # by the stack
        environment = {**os.environ, **(env or {})}
        theirs_in, self.requests = _socket_pair() if sockets else os.pipe()
        if packets:
            self.replies, theirs_out = _socket_pair(socket.SOCK_SEQPACKET)
        else:
            self.replies, theirs_out = _socket_pair() if sockets else os.pipe()
        claim_in, self.claims = os.pipe()
        os.set_blocking(claim_in, False)
        passed: list[int] = []
        if level:
            passed = [_dup_high(fd) for fd in (theirs_in, theirs_out)]
            environment["SNAKEPIT_FDS"] = "{},{}".format(*passed)
            if claim:
                passed.append(_dup_high(claim_in))
                environment["SNAKEPIT_CLAIM_FD"] = str(passed[2])
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if level else theirs_in,
            stdout=self.stdout_file if level else theirs_out,
            stderr=self.stderr_file,
            env=environment,
            pass_fds=passed,
            start_new_session=True,
        )
        for fd in (theirs_in, theirs_out, claim_in, *passed):
            os.close(fd)
        self._buffer = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_requests()
        with contextlib.suppress(ProcessLookupError):
            # The worker may have left children that hold its output; its session is its own.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(REPLY_TIMEOUT_S)
        for fd in (self.replies, self.claims):
            os.close(fd)
        self._files.close()

    def send_bytes(self, data: bytes) -> None:
        """Write raw bytes to the request pipe; more than a pipe holds must be read by the worker."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.requests, view) :]

    def send(self, message: Any, *frames: bytes) -> None:
        """Send one message and the raw frames that follow it."""
        self.send_bytes(b"".join([frame(dumps(message)), *map(frame, frames)]))

    def receive_frame(self) -> bytes:
        """Return the next payload.

        Raises:
            WorkerGone: End of the replies, or none within ``REPLY_TIMEOUT_S``; raised here.
        """
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        size = 4
        while True:
            if len(self._buffer) >= 4:
                size = 4 + int.from_bytes(self._buffer[:4], "big")
                assert 4 < size <= MAX_FRAME + 4, f"no frame: {self._buffer[:80]!r}"
            if len(self._buffer) >= max(size, 5):
                payload, self._buffer = self._buffer[4:size], self._buffer[size:]
                return payload
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self.replies], [], [], left_s)[0]:
                raise WorkerGone(f"no reply within {REPLY_TIMEOUT_S} s; stderr: {self.stderr()}")
            piece = os.read(self.replies, 1 << 20)
            if not piece:
                raise WorkerGone(f"the replies ended with {self._buffer[:80]!r}; stderr: {self.stderr()}")
            self._buffer += piece

    def receive_packet(self) -> list[Any]:
        """Return the messages of one write of the worker, which was started with ``packets``."""
        assert select.select([self.replies], [], [], REPLY_TIMEOUT_S)[0], self.stderr()
        self._buffer += os.read(self.replies, 1 << 20)
        messages = []
        while self._buffer:
            messages.append(self.receive())
        return messages

    def receive(self) -> Any:
        """Return the next message, valid by the schema."""
        message = json.loads(self.receive_frame())
        validate(message)
        return message

    def receive_attachments(self, message: Any, max_frame: int = MAX_FRAME) -> list[bytes]:
        """Return the bytes that follow a message, one value an entry of its ``attachments``."""
        blobs = []
        for entry in message.get("attachments", ()):
            blob = b""
            while len(blob) < entry["len"]:
                part = self.receive_frame()
                assert min(max_frame, entry["len"] - len(blob)) == len(part)
                blob += part
            blobs.append(blob)
        return blobs

    def call(self, request_id: int, command: str, args: Any = None, **more: Any) -> Any:
        """Send one request and return the next message."""
        self.send({"id": request_id, "command": command, "args": {} if args is None else args, **more})
        return self.receive()

    def start(self, *, max_frame: int = MAX_FRAME) -> Any:
        """Make the handshake of this worker's level and return the reply."""
        args: dict[str, Any] = {"worker_id": "w1", "initialization": True}
        if self.level:
            args["protocol"] = {"versions": [1], "max_frame": max_frame, "capabilities": list(CAPABILITIES)}
            args["start_args"] = None
        return self.call(0, "ping", args)

    def claim(self, count: int = 1) -> None:
        """Let the worker keep ``count`` claimed requests."""
        os.write(self.claims, b"c" * count)

    def close_requests(self) -> None:
        """End the request stream; a second call does nothing."""
        if self.requests >= 0:
            os.close(self.requests)
            self.requests = -1

    def wait(self) -> int:
        """Return the exit status (negative: the signal), waiting at most ``REPLY_TIMEOUT_S``."""
        return self.process.wait(REPLY_TIMEOUT_S)

    def stderr(self) -> str:
        """Return what the worker wrote to its stderr so far."""
        return os.pread(self.stderr_file.fileno(), 1 << 20, 0).decode(errors="replace")

    def stdout(self) -> str:
        """Return what the worker wrote to its stdout so far (level 1)."""
        return os.pread(self.stdout_file.fileno(), 1 << 20, 0).decode(errors="replace")


def start_bridge(
    bridge: Bridge, level: int = 1, *, handlers: bool = True, claim: bool = True, packets: bool = False
) -> Worker:
    """Start a bridge with its language's test handlers, or with the built-in commands only."""
    options = ("--handlers", bridge.handlers) if handlers else ()
    return Worker([*bridge.argv, *options], level, claim=claim, packets=packets)


# Transcripts


@dataclass(frozen=True)
class Scenario:
    """One golden transcript: its first line, and the steps ``{"from": ..., ...}`` after it."""

    name: str
    header: dict[str, Any]
    steps: tuple[dict[str, Any], ...]

    def concerns(self, bridge: Bridge) -> bool:
        """Return whether the transcript is for this bridge."""
        return bridge.language in self.header.get("bridges", [bridge.language])

    def __str__(self) -> str:
        return self.name


def load_scenarios() -> list[Scenario]:
    """Return all transcripts of ``bridges/golden``, by file name."""
    scenarios = []
    for path in sorted(GOLDEN_DIR.glob("*.jsonl")):
        header, *steps = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        scenarios.append(Scenario(path.stem, header, tuple(steps)))
    return scenarios


def replay(scenario: Scenario, bridge: Bridge) -> None:
    """Play the host's part of a transcript and compare the worker's.

    Raises:
        AssertionError: The worker said something else; raised here.
    """
    header = scenario.header
    with start_bridge(bridge, header["level"], handlers=header.get("handlers", False)) as worker:
        for number, step in enumerate(scenario.steps, start=2):
            if step["from"] == "host":
                _play(worker, step)
                continue
            actual = worker.receive()
            where = f"{scenario.name}.jsonl:{number}"
            expected = step["message"]
            compare(expected, actual, step, where)
            frames = [worker.receive_frame().hex() for _ in step.get("frames", ())]
            assert step.get("frames", []) == frames, where
        worker.close_requests()
        assert header.get("exit", 0) == worker.wait(), worker.stderr()
        assert b"" == os.read(worker.replies, 1), "the worker said more than the transcript"


def _play(worker: Worker, step: dict[str, Any]) -> None:
    if "claims" in step:
        worker.claim(step["claims"])
    frames = [bytes.fromhex(text) for text in step.get("frames", ())]
    if "message" in step:
        worker.send(step["message"], *frames)
    else:
        worker.send_bytes(b"".join(map(frame, frames)))


def compare(expected: Any, actual: Any, rules: Mapping[str, Any], where: str, at: str = "") -> None:
    """Assert that a message is the expected one, but for the pointers that ``rules`` exempt.

    Args:
        expected: From the transcript.
        actual: From the worker.
        rules: ``{"any": pointers of which only the JSON type counts, "extra": pointers of objects that may
            have further keys, "prefix": pointers of text that only begins as expected}``.
        where: For the message of a failure.
        at: Pointer of the values compared.
    """
    place = f"{where} {at or '/'}: expected {expected!r}, got {actual!r}"
    assert json_type(expected) == json_type(actual), place
    if at in rules.get("any", ()):
        return
    if isinstance(expected, dict):
        if at in rules.get("extra", ()):
            assert expected.keys() <= actual.keys(), place
        else:
            assert expected.keys() == actual.keys(), place
        for key, value in expected.items():
            compare(value, actual[key], rules, where, f"{at}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(expected, list):
        assert len(expected) == len(actual), place
        for index, value in enumerate(expected):
            compare(value, actual[index], rules, where, f"{at}/{index}")
    elif at in rules.get("prefix", ()):
        assert actual.startswith(expected), place
    else:
        assert expected == actual, place


def json_type(value: Any) -> str:
    """Return the name of a value's JSON type; integers and other numbers are one, as in JSON."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    names = {int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def iterate_messages(scenarios: Sequence[Scenario]) -> Iterator[tuple[str, Any]]:
    """Yield ``(place, message)`` for every message of the transcripts."""
    for scenario in scenarios:
        for number, step in enumerate(scenario.steps, start=2):
            if "message" in step:
                yield f"{scenario.name}.jsonl:{number}", step["message"]

"""The bridges under test, and workers of them: those of the conformance kit, checked by the schema too.

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
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import jsonschema
import pytest

from snakepit import JavaAdapter
from snakepit._conformance import peer
from snakepit._conformance.case import Case
from snakepit._conformance.limits import KNOWN_LIMITS
from snakepit._conformance.peer import CAPABILITIES, MAX_FRAME, dumps, frame
from snakepit._conformance.runner import Suite
from snakepit._conformance.survey import Target
from snakepit._conformance.transcripts import Scenario

__all__ = (
    "BRIDGES_DIR",
    "CAPABILITIES",
    "MAX_FRAME",
    "REPLY_TIMEOUT_S",
    "TESTS_DIR",
    "Bridge",
    "Worker",
    "check_case",
    "dumps",
    "find_bridges",
    "find_pythons",
    "frame",
    "iterate_messages",
    "pair_up",
    "prepare",
    "start_bridge",
    "suite_of",
    "validate",
)

BRIDGES_DIR = Path(__file__).resolve().parents[2] / "bridges"
TESTS_DIR = Path(__file__).resolve().parent
BUILD_TIMEOUT_S = 100.0  # arbitrary: the first build compiles the standard library as well
REPLY_TIMEOUT_S = 20.0  # arbitrary bound: an interpreter starts in 0.05 s on an idle machine

IMPATIENT_S = 3.0  # for what is known to fail, maybe by silence

JAVA_HANDLERS = "Handlers"  # the class

# language: (program, its options, suffix of bridge and handler file)
SCRIPT_LANGUAGES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "ruby": ("ruby", (), ".rb"),
    #
    "r": ("Rscript", ("--vanilla",), ".R"),
    #
    "perl": ("perl", (), ".pl"),
    #
    "php": ("php", ("-d", "display_errors=stderr", "-d", "memory_limit=-1"), ".php"),
    #
    # A script for sh, which becomes lua5.4 (or lua5.3, or lua): Lua itself cannot move descriptors.
    "lua": ("sh", (), ".lua"),
}


@dataclass(frozen=True)
class Bridge:
    """One bridge in one runtime: what to start, and the handler file of its language.

    Attributes:
        runtime: Name of the program, as ``require_runtime`` knows it.
    """

    name: str
    language: str
    argv: Sequence[str]
    runtime: str
    handlers: str

    @property
    def cannot(self) -> frozenset[str]:
        """Names of the rules that the language cannot keep, see PROTOCOL.md."""
        return frozenset(KNOWN_LIMITS.get(self.language, ()))

    def __str__(self) -> str:
        return self.name


class JavaCommand(Sequence[str]):
    """The command line of the Java bridge, compiled with its test handlers when it is first looked at."""

    @functools.cached_property
    def _words(self) -> tuple[str, ...]:
        return JavaAdapter(TESTS_DIR / "Handlers.java").argv()[: -len(("--handlers", JAVA_HANDLERS))]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._words[index]

    def __len__(self) -> int:
        return len(self._words)


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
    """Return ``((version, path), ...)``, each minor version >= 3.8 once, oldest first."""
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
    found: dict[tuple[int, int], tuple[str, str]] = {}
    for path, process in started.items():
        words = process.communicate(timeout=REPLY_TIMEOUT_S)[0].split()
        if process.returncode == 0 and len(words) == 4 and words[0] == "cpython":
            series = (int(words[1]), int(words[2]))
            if series >= (3, 8):
                found.setdefault(series, (".".join(words[1:]), path))
    return tuple(found[series] for series in sorted(found))


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
    bridges.append(Bridge("java", "java", JavaCommand(), "java", JAVA_HANDLERS))
    return [*bridges, *_script_bridges(), *_go_bridge()]


def _script_bridges() -> Iterator[Bridge]:
    for language, (runtime, options, suffix) in SCRIPT_LANGUAGES.items():
        script = BRIDGES_DIR / language / f"snakepit_bridge{suffix}"
        if script.is_file():
            argv = (shutil.which(runtime) or runtime, *options, str(script))
            handlers = str(TESTS_DIR / f"handlers{suffix}")
            yield Bridge(language, language, argv, runtime, handlers)


def _go_bridge() -> Iterator[Bridge]:
    source = TESTS_DIR / "go" / "main.go"
    program = BRIDGES_DIR.parent / "build" / "conformance-go" / _go_digest() / "worker"
    yield Bridge("go", "go", (str(program),), "go", str(source))


def _go_digest() -> str:
    """Return what names the build of these sources, wherever they lie."""
    sources = (*sorted((BRIDGES_DIR / "go").glob("*.go")), *sorted((TESTS_DIR / "go").glob("*.*")))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def prepare(bridge: Bridge) -> None:
    """Build the program of a compiled language, once for all processes of a test run; others need nothing."""
    program = Path(bridge.argv[0])
    if bridge.language != "go" or program.exists():
        return
    program.parent.mkdir(parents=True, exist_ok=True)
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


class Worker(peer.Worker):
    """A worker whose messages are also valid by the schema."""

    def __init__(self, *args: Any, timeout_s: float = REPLY_TIMEOUT_S, **options: Any) -> None:
        super().__init__(*args, timeout_s=timeout_s, **options)

    def receive(self) -> Any:
        """Return the next message, valid by the schema."""
        message = super().receive()
        validate(message)
        return message

    def writes(self) -> int:
        """Return how many system calls of the worker have written so far; the last one may not count yet."""
        text = Path(f"/proc/{self.process.pid}/io").read_text("ascii")
        return int(re.findall(r"^syscw: (\d+)$", text, re.MULTILINE)[0])


def bridge_of(language: str) -> Bridge:
    """Return the one bridge of a language."""
    (bridge,) = (bridge for bridge in find_bridges() if bridge.language == language)
    return bridge


def starter(bridge: Bridge, folder: Path) -> Callable[[str], Worker]:
    """Return a function that starts a worker with a handler file of the given text, in the folder."""

    def start_with(text: str) -> Worker:
        path = folder / f"handlers{Path(bridge.handlers).suffix}"
        path.write_text(text, "utf-8")
        return Worker([*bridge.argv, "--handlers", str(path)])

    return start_with


def answers(worker: Worker, calls: Iterable[tuple[str, Any]]) -> list[Any]:
    """Return the result of each call, or the message of its error."""
    found = []
    for number, (command, args) in enumerate(calls, start=1):
        worker.send({"id": number, "command": command, "args": args})
        reply = worker.receive()
        found.append(reply["result"] if reply["success"] else reply["error"]["message"])
    return found


def start_bridge(
    bridge: Bridge, level: int = 1, *, handlers: bool = True, claim: bool = True, packets: bool = False
) -> Worker:
    """Start a bridge with its language's test handlers, or with the built-in commands only."""
    options = ("--handlers", bridge.handlers) if handlers else ()
    return Worker([*bridge.argv, *options], level, claim=claim, packets=packets)


@functools.cache
def suite_of(bridge: Bridge) -> Suite:
    """Return the conformance suite of a bridge with its test handlers."""
    argv = (*bridge.argv, "--handlers", bridge.handlers)
    return Suite(Target(argv, REPLY_TIMEOUT_S, Worker))


def iterate_messages(scenarios: Sequence[Scenario]) -> Iterator[tuple[str, Any]]:
    """Yield ``(place, message)`` for every message of the transcripts."""
    for scenario in scenarios:
        for number, step in enumerate(scenario.steps, start=2):
            if "message" in step:
                yield f"{scenario.name}.jsonl:{number}", step["message"]


def pair_up(cases: Iterable[Case]) -> list[Any]:
    """Return the parameters ``(case, bridge)`` of each case with every bridge that it is for."""
    return [
        pytest.param(case, bridge, id=f"{case}-{bridge}")
        for case in cases
        for bridge in find_bridges()
        if bridge.language in (case.languages or {bridge.language})
        and ("command random" not in case.needs or bridge.language == "javascript")
    ]


def check_case(case: Case, bridge: Bridge, require_runtime: Callable[[str], str]) -> None:
    """Run one case; what a language is said not to be able to do must really fail.

    Raises:
        Finding: It failed; raised here.
    """
    if bridge.language != "python":
        require_runtime(bridge.runtime)
    prepare(bridge)
    suite = suite_of(bridge)
    outcome = suite.run(case)
    if outcome.finding is not None:
        raise outcome.finding
    if outcome.status == "cannot":
        impatient = Suite(Target(suite.target.argv, IMPATIENT_S, Worker))
        assert impatient.try_out(case).finding is not None, f"it can: {outcome.reason} (limits.py, PROTOCOL.md)"
    else:
        assert "passed" == outcome.status, outcome.reason

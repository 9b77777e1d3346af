"""What a bridge has: one handshake before the cases, and what it offers for them to need.

Runs on the thread of the runner; owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .finding import Finding, GoneFinding
from .messages import describe_error
from .peer import Worker

__all__ = (
    "ECHO",
    "FULL_ECHO",
    "FULL_PING",
    "HANDLERS",
    "MIRROR",
    "Mirror",
    "NoStartError",
    "Survey",
    "Target",
    "take_survey",
)

FULL_PING = "the fields of section 12 in its ping"
HANDLERS = "`--handlers FILE` in its command line"
FULL_ECHO = "the fields of section 12 in its echo"
ECHO = "a command `echo` that gives its args back"
MIRROR = "a command `identity` or `echo`"
UNKNOWN = "Unknown command: "
_PING_FIELDS = ("bridge_type", "uptime", "requests_handled", "timestamp", "worker_id", "echo")
# The commands of section 13, harmless with empty args and answered at once, but for those that wait for ever.
_TEST_COMMANDS = (
    *("later", "fail", "count", "whoami", "deadline", "started", "unencodable", "text", "blob", "nested_blobs"),
    *("reverse", "sizes", "print_text", "write_fd_1", "child_reads_stdin", "child_sees", "log_line"),
)
# command: (args, keys of the result that tell it from a handler that replaces it)
_BUILT_IN_SIGNS: Mapping[str, tuple[Any, frozenset[str]]] = {
    "compute": ({"operation": "add", "a": 1, "b": 2}, frozenset({"operation", "inputs", "result"})),
    "info": ({}, frozenset({"bridge_info", "system_info"})),
    "random": ({}, frozenset({"type", "parameters", "value"})),
}


class NoStartError(Exception):
    """The bridge could not be started, or ended before its first reply; carries its stderr."""


@dataclass(frozen=True)
class Target:
    """The bridge under test.

    Attributes:
        argv: How it is started, with its handlers.
        timeout_s: Longest wait for anything, seconds.
        start: Makes a worker, as ``Worker`` does.
    """

    argv: tuple[str, ...]
    timeout_s: float = 10.0
    start: Callable[..., Worker] = field(default=Worker, compare=False)

    @property
    def bare_argv(self) -> tuple[str, ...]:
        """The same without ``--handlers FILE``: the built-in commands alone."""
        words, at = self.argv, -1
        if "--handlers" in words[:-1]:
            at = words.index("--handlers")
        return words if at < 0 else (*words[:at], *words[at + 2 :])


@dataclass(frozen=True)
class Mirror:
    """A command that gives back what it was sent: ``identity``, or an ``echo`` of either form."""

    command: str
    key: str | None = None

    def request(self, request_id: int, value: Any) -> dict[str, Any]:
        """Return the request that should be answered with the value."""
        args = {"value": value} if self.command == "identity" else value
        return {"id": request_id, "command": self.command, "args": args}

    def raw_request(self, request_id: int, text: bytes) -> bytes:
        """Return the same as a payload, with a value that is JSON text, or nearly."""
        args = b'{"value":' + text + b"}" if self.command == "identity" else text
        return b'{"id":%d,"command":"%s","args":%s}' % (request_id, self.command.encode(), args)

    def value(self, result: Any) -> Any:
        """Return the value out of a result; a result of another form as it is."""
        return result[self.key] if self.key and isinstance(result, dict) and self.key in result else result


@dataclass(frozen=True)
class Survey:
    """What one bridge answered.

    Attributes:
        result: Of its first ping.
        offers: Names of what cases may need: ``"command identity"``, ``"capability batch"``, ``FULL_PING`` ...
        mirrors: The commands for values; empty: there is none.
    """

    result: Mapping[str, Any]
    offers: frozenset[str]
    mirrors: tuple[Mirror, ...]

    @property
    def mirror(self) -> Mirror | None:
        """The first of the commands for values."""
        return self.mirrors[0] if self.mirrors else None

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What it told of protocol 1; empty: it stays at level 0."""
        told = self.result.get("protocol")
        return told if isinstance(told, dict) else {}

    @property
    def language(self) -> str | None:
        """The language it names, if it does."""
        return self.protocol.get("language")

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands it names, sorted."""
        return tuple(sorted(self.protocol.get("commands", ())))


def take_survey(target: Target, level: int) -> Survey:
    """Start the bridge once and ask.

    Raises:
        NoStartError: It did not start, or ended before the first reply; raised here.
        Finding: Its first answers are wrong; raised here.
    """
    try:
        worker = target.start(target.argv, level, timeout_s=target.timeout_s)
    except OSError as error:
        raise NoStartError(f"{target.argv[0]!r} cannot be started: {error.strerror or error}") from error
    with worker:
        try:
            reply = worker.start(offer=True)
        except GoneFinding as finding:
            raise NoStartError(_explain(level, worker, finding)) from finding
        except Finding as finding:
            finding.stderr = worker.stderr().strip()[-1000:]
            raise
        if not reply.get("success"):
            code, kind, message = describe_error(reply)
            what = f"{code or 'an error'}: {kind + ': ' if kind else ''}{message}"
            raise NoStartError(f"the first ping was answered with {what}{_tell_stderr(worker)}")
        result = reply["result"]
        if not isinstance(result, dict) or result.get("status") != "ok":
            raise Finding(
                "the first ping was not answered with an object that has the status ok",
                sent=worker.sent,
                expected='{"status": "ok", ...}',
                received=repr(result),
                hint="PROTOCOL.md, sections 3 and 4",
            )
        survey = _conclude(worker, result)
    more = {HANDLERS} if target.bare_argv != target.argv else set()
    return replace(survey, offers=survey.offers | more)


def _conclude(worker: Worker, result: Mapping[str, Any]) -> Survey:
    protocol = result.get("protocol")
    asked = _Asked(worker, frozenset(protocol["commands"]) if isinstance(protocol, dict) else None)
    offers = {f"capability {name}" for name in protocol["capabilities"]} if isinstance(protocol, dict) else set()
    mirrors = []
    # Whoever has `identity` has the test handlers; a `count` or `text` beside other commands is somebody's own.
    if asked.result("identity", {"value": [1]}) == [1]:
        mirrors.append(Mirror("identity"))
        names = asked.announced or ("identity", *(name for name in _TEST_COMMANDS if asked.has(name)))
        offers |= {f"command {name}" for name in names if name not in _BUILT_IN_SIGNS and name != "echo"}
    for name, (args, signs) in _BUILT_IN_SIGNS.items():
        answer = asked.result(name, args)
        if isinstance(answer, dict) and signs <= answer.keys():
            offers.add(f"command {name}")
    echoed = asked.result("echo", {"a": 1})
    if echoed == {"a": 1}:
        mirrors.append(Mirror("echo"))
    elif isinstance(echoed, dict) and echoed.get("echoed") == {"a": 1}:
        mirrors.append(Mirror("echo", "echoed"))
        offers |= {FULL_ECHO, "command echo"} if echoed.keys() == {"status", "echoed", "timestamp"} else set()
    if all(name in result for name in _PING_FIELDS):
        offers.add(FULL_PING)
    offers |= {ECHO for mirror in mirrors if mirror.command == "echo"}
    if mirrors:
        offers.add(MIRROR)
    return Survey(result, frozenset(offers), tuple(mirrors))


class _Asked:
    """The commands of a worker: announced, or asked for one by one."""

    def __init__(self, worker: Worker, announced: frozenset[str] | None) -> None:
        self.announced = announced
        self._worker = worker
        self._number = 0

    def has(self, name: str) -> bool:
        """Return whether a worker that announces nothing has such a command."""
        reply = self._call(name, {})
        return bool(reply["success"]) or not describe_error(reply)[2].startswith(UNKNOWN)

    def result(self, name: str, args: Any) -> Any:
        """Return what a command answers; None where there is none, or it fails."""
        if self.announced is not None and name not in self.announced:
            return None
        try:
            return self._call(name, args).get("result")
        except Finding:
            # The cases will find this too, and say where it matters.
            return args["value"] if name == "identity" else args if name == "echo" else None

    def _call(self, name: str, args: Any) -> Any:
        self._number += 1
        reply = self._worker.call(self._number, name, args)
        while "type" in reply:
            reply = self._worker.receive()
        return reply


def _explain(level: int, worker: Worker, finding: Finding) -> str:
    hint = "; a bridge that speaks on stdin and stdout only is tested with --level 0" if level else ""
    return f"the bridge ended before its first reply: {finding.received}{_tell_stderr(worker)}{hint}"


def _tell_stderr(worker: Worker) -> str:
    text = worker.stderr().strip()
    return f"; its stderr:\n{text[-4096:]}\n" if text else "; its stderr is empty"

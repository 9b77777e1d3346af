"""What a bridge has: one handshake before the cases, and what it offers for them to need.

Runs on the thread of the runner; owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .finding import Finding, GoneFinding
from .messages import describe_error
from .peer import Worker

__all__ = ("ECHO", "FULL_ECHO", "FULL_PING", "MIRROR", "Mirror", "NoStartError", "Survey", "Target", "take_survey")

FULL_PING = "the fields of section 12 in its ping"
FULL_ECHO = "the fields of section 12 in its echo"
ECHO = "a command `echo` that gives its args back"
MIRROR = "a command `identity` or `echo`"
BUILT_IN = frozenset({"ping", "echo", "compute", "info", "random"})
UNKNOWN = "Unknown command: "
_PING_FIELDS = ("bridge_type", "uptime", "requests_handled", "timestamp", "worker_id", "echo")
# Harmless with empty args, and answered at once: what a level-0 bridge is asked for, which announces nothing.
_ASKED_FOR = (
    *("echo", "compute", "info", "random", "identity", "later", "fail", "count", "whoami", "deadline", "started"),
    *("unencodable", "text", "blob", "nested_blobs", "reverse", "sizes", "print_text", "write_fd_1", "pid"),
    *("child_reads_stdin", "child_sees", "log_line"),
)


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
        offers: Names of what cases may need: ``"command echo"``, ``"capability batch"``, ``FULL_PING`` ...
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
            raise NoStartError(_explain(target, level, worker, finding)) from finding
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
        return _conclude(worker, result)


def _conclude(worker: Worker, result: Mapping[str, Any]) -> Survey:
    protocol = result.get("protocol")
    commands: Sequence[str] = ()
    offers = set()
    if isinstance(protocol, dict):
        commands = list(protocol["commands"])
        offers |= {f"capability {name}" for name in protocol["capabilities"]}
    else:
        commands = [name for number, name in enumerate(_ASKED_FOR, start=1) if _knows(worker, number, name)]
    offers |= {f"command {name}" for name in commands}
    if all(name in result for name in _PING_FIELDS):
        offers.add(FULL_PING)
    if not set(commands) - BUILT_IN:
        offers.add("the built-in commands alone")
    mirrors = [Mirror("identity")] if "command identity" in offers else []
    if "command echo" in offers:
        try:
            echoed = worker.call(100, "echo", {"a": 1}).get("result")
        except Finding:
            echoed = {"a": 1}  # the cases will say what is wrong with it
        if isinstance(echoed, dict) and echoed.get("echoed") == {"a": 1}:
            mirrors.append(Mirror("echo", "echoed"))
            offers |= {FULL_ECHO} if echoed.keys() == {"status", "echoed", "timestamp"} else set()
        elif echoed == {"a": 1}:
            mirrors.append(Mirror("echo"))
    offers |= {ECHO for mirror in mirrors if mirror.command == "echo"}
    if mirrors:
        offers.add(MIRROR)
    return Survey(result, frozenset(offers), tuple(mirrors))


def _knows(worker: Worker, request_id: int, name: str) -> bool:
    reply = worker.call(request_id, name)
    while "type" in reply:
        reply = worker.receive()
    return bool(reply["success"]) or not describe_error(reply)[2].startswith(UNKNOWN)


def _explain(target: Target, level: int, worker: Worker, finding: Finding) -> str:
    hint = ""
    if level:
        hint = "; a bridge that speaks on stdin and stdout only is tested with --level 0"
    return f"the bridge ended before its first reply: {finding.received}{_tell_stderr(worker)}{hint}"


def _tell_stderr(worker: Worker) -> str:
    text = worker.stderr().strip()
    return f"; its stderr:\n{text[-4096:]}\n" if text else "; its stderr is empty"

"""What a case is, where cases are collected, and what they are run with.

Runs on the thread of the runner; owns ``CASES``, which is complete once ``snakepit._conformance.cases`` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .finding import Finding, show_json
from .messages import describe_error
from .peer import MAX_FRAME, Worker
from .survey import MIRROR, Mirror, Survey, Target

__all__ = ("CASES", "GROUPS", "Case", "Trial", "case", "register")

GROUPS: Mapping[str, str] = {
    "section 3": "Level 0",
    "section 4": "The handshake",
    "rule 1": "The stream belongs to the bridge alone",
    "rule 2": "Read exactly, write completely, flush each reply; no silence",
    "rule 3": "An exception is a reply, and so is a result that cannot be sent",
    "rule 4": "Strict JSON both ways; integers exact or refused",
    "rule 5": "The end of the requests ends the worker",
    "rule 6": "SIGTERM keeps its default action, SIGINT is ignored",
    "rule 7": "It runs in environments that are not ours",
    "rule 8": "The same mistake is the same code and the same message",
    "pipeline": "Section 6: `pipeline`",
    "session": "Section 6: `session`",
    "deadline": "Section 6: `deadline`",
    "attachments": "Section 6: `attachments`",
    "batch": "Section 6: `batch`",
    "log": "Section 6: `log`",
    "claim": "Section 6: `claim`",
    "section 10": "Start and end of a worker",
    "section 12": "Built-in commands",
}
"""``{name: what it is about}`` of PROTOCOL.md's rules and sections, in the order of reports."""

# What a language may look for libraries by; a bridge needs none of them.
_LIBRARY_VARIABLES = (
    *("PYTHONPATH", "PYTHONSTARTUP", "NODE_PATH", "NODE_OPTIONS", "RUBYLIB", "RUBYOPT", "GEM_PATH", "PERL5LIB"),
    *("PERL5OPT", "R_LIBS", "R_LIBS_USER", "R_PROFILE", "LUA_PATH", "LUA_CPATH", "LUA_INIT", "CLASSPATH", "PHPRC"),
)
BARE: Mapping[str, str | None] = {
    **dict.fromkeys((*_LIBRARY_VARIABLES, "LANG", "LANGUAGE", "LC_CTYPE")),
    "LC_ALL": "C",
}


@dataclass(frozen=True)
class Case:
    """One case: it passes, or raises a ``Finding``.

    Attributes:
        name: Stable, lower case with hyphens.
        title: What the bridge has to do, one sentence.
        group: A key of ``GROUPS``.
        level: Of the host that it plays.
        needs: What the bridge must offer for the case to mean anything, names as in ``Survey.offers``.
        languages: Those it is for; empty: all.
        limit: Name of the rule that some language cannot keep, see ``KNOWN_LIMITS``.
        run: The case itself.
    """

    name: str
    title: str
    group: str
    level: int
    needs: frozenset[str]
    run: Callable[[Trial], None]
    languages: frozenset[str] = frozenset()
    limit: str | None = None

    def __str__(self) -> str:
        return self.name


CASES: list[Case] = []


def register(new: Case) -> None:
    """Add a case.

    Raises:
        ValueError: Its name is taken; raised here.
    """
    if any(new.name == known.name for known in CASES):
        raise ValueError(f"two cases are named {new.name!r}")
    CASES.append(new)


def case(
    group: str, title: str, *needs: str, levels: Iterable[int] = (1,), limit: str | None = None
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Return a decorator that makes a function a case, its name the case's; ``level0-`` goes before it at level 0."""

    def decorate(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
        name = function.__name__.replace("_", "-")
        for level in levels:
            full = name if level or name.startswith("level0-") else f"level0-{name}"
            register(Case(full, title, group, level, frozenset(needs), function, limit=limit))
        return function

    return decorate


@dataclass(frozen=True)
class Trial:
    """One run of one case against one bridge: starts workers, and compares.

    Attributes:
        target: The bridge.
        survey: What it offers.
        level: Of the host.
    """

    target: Target
    survey: Survey
    level: int

    @contextmanager
    def worker(
        self, *options: str, handshake: bool = True, bare: bool = False, max_frame: int = MAX_FRAME, **launch: Any
    ) -> Iterator[Worker]:
        """Start a worker, ready unless ``handshake`` is false; its stderr goes into a finding of the body.

        Args:
            options: Further words of its command line.
            handshake: Whether to make it.
            bare: Whether to leave ``--handlers`` out.
            max_frame: The limit to offer, bytes.
            launch: Further arguments of ``Worker``.
        """
        argv = self.target.bare_argv if bare else self.target.argv
        with self.target.start((*argv, *options), self.level, timeout_s=self.target.timeout_s, **launch) as worker:
            try:
                if handshake:
                    reply = worker.start(max_frame=max_frame)
                    if not reply.get("success"):
                        raise Finding("the handshake failed", sent=worker.sent, received=show_json(reply))
                yield worker
            except Finding as finding:
                finding.stderr = finding.stderr or worker.stderr().strip()[-1000:]
                raise

    @property
    def mirror(self) -> Mirror:
        """The command that gives values back; for cases that need ``MIRROR``."""
        if self.survey.mirror is None:
            raise ValueError(f"the case does not say that it needs {MIRROR}")
        return self.survey.mirror

    def raw_request(self, request_id: int, text: bytes) -> bytes:
        """Return the payload of a request whose args hold ``text``, for any bridge."""
        return (self.survey.mirror or Mirror("ping")).raw_request(request_id, text)

    def survive(self, worker: Worker, request_id: int = 1000) -> None:
        """Check that the worker answers one more request correctly."""
        mirror = self.survey.mirror
        worker.send(
            mirror.request(request_id, "alive") if mirror else {"id": request_id, "command": "ping", "args": {}}
        )
        reply = worker.receive()
        value = mirror.value(reply.get("result")) if mirror else "alive"
        if (reply.get("id"), reply.get("success"), value) != (request_id, True, "alive"):
            raise Finding(
                "the request after it was not answered as usual",
                sent=worker.sent,
                expected=f'success with the id {request_id} and "alive"',
                received=show_json(reply),
                hint="one bad request must not change how the next is answered; was there a second reply to it?",
            )

    def expect(self, expected: Any, actual: Any, what: str, worker: Worker, hint: str | None = None) -> None:
        """Check that two values are equal, also in type.

        Raises:
            Finding: They are not; raised here.
        """
        if (type(expected), expected) != (type(actual), actual):
            raise Finding(what, sent=worker.sent, expected=_show(expected), received=_show(actual), hint=hint)

    def expect_error(
        self, reply: Any, request_id: int | None, code: str, kind: str, begin: str, what: str, worker: Worker
    ) -> None:
        """Check that a reply is this error; without structured errors only its message counts."""
        received = describe_error(reply)
        right = (
            reply.get("success") is False
            and reply.get("id") == request_id
            and received[2].startswith(begin)
            and received[:2] in ((code, kind), (None, None))
        )
        if not right:
            name = "null" if request_id is None else request_id
            raise Finding(
                what,
                sent=worker.sent,
                expected=f"an error with the id {name}, code {code}, type {kind}, message {begin}...",
                received=show_json(reply),
                hint="PROTOCOL.md, section 7, has the codes and their exact words; section 9 has the bad frames",
            )


def _show(value: Any) -> str:
    return value if isinstance(value, str) and value.isascii() and value.isprintable() and value else show_json(value)

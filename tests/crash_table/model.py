"""The nouns of the crash table: states, knobs, cells, and what a cell is compared with."""

from __future__ import annotations

from enum import Enum
from typing import Any

import attrs

from snakepit import PoolStats

__all__ = ("Cell", "Knob", "Seen", "State")


class State(Enum):
    """Where a worker stands when it misbehaves."""

    STARTING = "starting"
    """In the place of its answer to the handshake, in every process of the pool."""
    IDLE = "idle"
    """After an answer, with nothing in its pipe."""
    CHECKING = "checking"
    """In the place of its answer to a health check; the next call is accepted meanwhile."""
    BUSY = "busy"
    """In the place of, or around, its answer to a request."""
    PIPED = "piped"
    """As busy, with five more requests sent ahead into its pipe."""
    RETIRING = "retiring"
    """As busy, after ``restart_worker``: it is to be replaced as soon as it has answered."""
    DRAINING = "draining"
    """As busy, after ``shutdown(wait=False)``, with two accepted requests in the queue."""
    ENDING = "ending"
    """At the end of its requests: once by ``restart_worker``, once by ``shutdown``."""


@attrs.frozen
class Knob:
    """One way to misbehave.

    Attributes:
        name: Part of the test's id.
        deed: For the saboteur.
        level: Of the protocol.
        hangs: It says "hung" at a gate and is silent from then on: some deadline of the pool has to end it.
        closes: It closes its replies and lives on.
        grandchild: It leaves a process behind.
        config: Settings of the pool.
    """

    name: str
    deed: dict[str, Any]
    level: int = 1
    hangs: bool = False
    closes: bool = False
    grandchild: bool = False
    config: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Cell:
    """What a knob does in a state, as users see it.

    Attributes:
        error: What the sabotaged call fails with; None: it has its result, or nobody called.  While starting:
            of the pending request, and ``text`` is that of its cause.
        text: Part of the error's text.
        end: How the sabotaged process ended, as ``snakepit.worker.exited`` tells it: reason and status.
        restarts: Of ``PoolStats``, as is ``recycled``; with one of them the next call has a new process.
        left_out: Why this cell makes no sense; then nothing else is said.
    """

    knob: str
    state: State
    error: type[BaseException] | None = None
    text: str = ""
    end: str = "shutdown, exit 0"
    restarts: int = 0
    recycled: int = 0
    left_out: str = ""

    @property
    def pid(self) -> str:
        """Say whether the next call is served by the "same" process, a "new" one, or "none" at all."""
        if self.state is State.STARTING and self.error is not None:
            return "none"
        return "new" if self.restarts or self.recycled else "same"

    @property
    def id(self) -> str:
        return f"{self.state.value}-{self.knob}"


@attrs.define
class Seen:
    """What a run of a cell has shown.

    Attributes:
        error: Of the sabotaged call.
        pids: Of the sabotaged process and of the one that served the next call.
        stats: The pool's numbers directly after the last call's result.
        exits: ``{incarnation: "reason, status"}`` of every process.
        others: Results of the calls that stood behind the sabotaged one.
        started: Processes that were started.
    """

    error: BaseException | None = None
    pids: tuple[int | None, int | None] = (None, None)
    stats: PoolStats = attrs.field(factory=PoolStats)
    exits: dict[int, str] = attrs.field(factory=dict)
    others: list[Any] = attrs.field(factory=list)
    started: list[int] = attrs.field(factory=list)

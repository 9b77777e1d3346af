"""The table of ends: how a host goes, what its workers do then, who lives on, and what must follow.

Pure data and arithmetic; `test_matrix` runs it.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

__all__ = (
    "ENDS",
    "EXPECTED",
    "FACTORS",
    "LANGUAGES",
    "PHASES",
    "SIBLINGS",
    "Cell",
    "full_product",
    "pairs",
    "pairwise",
)

Row = tuple[str, ...]

LANGUAGES = ("callable", "python", "javascript", "ruby")
"""What the workers are: the callable adapter, the two bridges, and the example bridge of level 0 in Ruby."""

PHASES = ("starting", "idle", "loop", "c_call", "stopped", "draining")
"""What they do when the host ends.

- starting: two workers are in their start-up, which never ends; nothing was accepted yet;
- idle: one has done a call, the other none;
- loop: a call runs in an endless loop of its language;
- c_call: a call is inside a C function and keeps the interpreter to itself;
- stopped: a call has stopped its worker with SIGSTOP;
- draining: `shutdown` is in progress, and a worker ignores both the end of its requests and SIGTERM.
"""

ENDS = ("sigkill", "sigterm", "os_exit", "exception", "ctrl_c", "sys_exit", "thread_exit")
"""How the host ends: the first three at once, the others through code of the interpreter.

- sigterm: with its default action;
- exception: raised by the program, outside `with`;
- ctrl_c: typed at the terminal that the host runs in, inside `with`;
- sys_exit: `sys.exit` inside `with`;
- thread_exit: `sys.exit` in a thread.
"""

SIBLINGS = ("alone", "fork", "c_fork")
"""Who lives on: nobody; a child of `os.fork`; one of fork(2) in C, past every hook of Python, which keeps
each descriptor of the host open: the pipes, the lifeline."""

FACTORS = (ENDS, PHASES, SIBLINGS, LANGUAGES)

BUSY = ("loop", "c_call", "stopped")

EXPECTED = {
    # The system ends the host without asking the interpreter.
    **dict.fromkeys(itertools.product(("sigkill", "sigterm", "os_exit"), PHASES), "ends"),
    # Inside `with`, both mean "stop": what runs is ended after the grace.
    **dict.fromkeys(itertools.product(("ctrl_c", "sys_exit"), PHASES), "ends"),
    # The exit of the interpreter finishes accepted work, as with the standard pools...
    **{("exception", phase): "ends" for phase in PHASES},
    # ...so work that has no end holds it up, until somebody interrupts.
    **{("exception", phase): "waits" for phase in BUSY},
    # SystemExit in a thread ends the thread; nothing of the pool may change.
    **{("thread_exit", phase): "lives" for phase in PHASES},
}
"""What follows, for each end and phase.

- ends: the host goes by itself in bounded time;
- waits: it waits for the work it has accepted; SIGINT ends it then;
- lives: it goes on; SIGKILL ends it then.

In every cell nothing that it has started is left two seconds after it has gone.
"""


class Cell(NamedTuple):
    """One row of the table."""

    end: str
    phase: str
    sibling: str
    language: str

    @property
    def id(self) -> str:
        """What the test is called."""
        return "-".join(self)

    @property
    def expected(self) -> str:
        """What follows."""
        return EXPECTED[self.end, self.phase]


def full_product() -> list[Cell]:
    """Return every cell."""
    return [Cell(*values) for values in itertools.product(*FACTORS)]


def pairs(row: Row) -> set[tuple[tuple[int, str], ...]]:
    """Return every two values of a row, with their places."""
    return set(itertools.combinations(enumerate(row), 2))


def pairwise(factors: Sequence[Row]) -> list[Row]:
    """Return rows in which any two values of two factors meet, chosen greedily and always alike."""
    rows = {row: pairs(row) for row in itertools.product(*factors)}
    missing = set().union(*rows.values())
    chosen: list[Row] = []
    while missing:
        # Scattered, so that equal gains do not always fall to the first values.
        chosen.append(max(rows, key=lambda row: (len(rows[row] & missing), _scatter(row))))
        missing -= rows[chosen[-1]]
    return chosen


def _scatter(row: Row) -> int:
    # Python's own hash of a text differs from run to run.
    return zlib.crc32("-".join(row).encode())

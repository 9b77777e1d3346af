"""The crash table of callables: what breaks at each place on a call's way, and what its caller is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from integration import callables_lib as lib

from snakepit import WorkerDied
from snakepit.errors import CommandError

__all__ = ("CALLS", "DEEDS", "PLACES", "Call")

DEEDS = ("raise", "sys_exit", "libc_exit", "os_exit", "segfault")

PLACES = {
    "pickling_in_host": (lib.identity, lib.BreaksOnPickle),
    "unpickling_in_worker": (lib.identity, lib.BreaksOnUnpickle),
    "running": (lib.act, str),
    "pickling_the_result": (lib.return_breaks_on_pickle, str),
    "pickling_the_exception": (lib.raise_breaks_on_pickle, str),
    "unpickling_in_host": (lib.return_breaks_on_unpickle, str),
    "garbage_collection": (lib.break_at_collection, str),
}
"""``{place: (function, makes its argument from the deed)}``."""


@attrs.frozen
class Call:
    """One cell.

    Attributes:
        error: What the call fails with, None when it has its result.
        text: Part of the error's text.
        pid: Whether the next call is served by the "same" process or a "new" one.
        refused: ``submit`` itself raises the error.
        host_ends: The deed ends the host by nature: it happens in the host's own interpreter.
    """

    place: str
    deed: str
    error: type[BaseException] | None = None
    text: str = ""
    pid: str = "same"
    refused: bool = False
    host_ends: bool = False

    @property
    def id(self) -> str:
        return f"{self.place}-{self.deed}"

    @property
    def fn(self) -> Callable[[Any], Any]:
        return PLACES[self.place][0]

    @property
    def argument(self) -> Any:
        return PLACES[self.place][1](self.deed)


EXIT_4, EXIT_6, SIGSEGV = "ended with exit code 4", "ended with exit code 6", "ended with signal 11 (SIGSEGV)"

CALLS = (
    Call("pickling_in_host", "raise", ValueError, "sabotage"),
    # The caller's own code asks the caller to end: that passes through submit, and nothing is accepted.
    Call("pickling_in_host", "sys_exit", SystemExit, "3", refused=True),
    Call("pickling_in_host", "libc_exit", host_ends=True),
    Call("pickling_in_host", "os_exit", host_ends=True),
    Call("pickling_in_host", "segfault", host_ends=True),
    Call("unpickling_in_worker", "raise", ValueError, "sabotage"),
    Call("unpickling_in_worker", "sys_exit", SystemExit, "3"),
    Call("unpickling_in_worker", "libc_exit", WorkerDied, EXIT_6, "new"),
    Call("unpickling_in_worker", "os_exit", WorkerDied, EXIT_4, "new"),
    Call("unpickling_in_worker", "segfault", WorkerDied, SIGSEGV, "new"),
    Call("running", "raise", ValueError, "sabotage"),
    Call("running", "sys_exit", SystemExit, "3"),
    Call("running", "libc_exit", WorkerDied, EXIT_6, "new"),
    Call("running", "os_exit", WorkerDied, EXIT_4, "new"),
    Call("running", "segfault", WorkerDied, SIGSEGV, "new"),
    Call("pickling_the_result", "raise", ValueError, "sabotage"),
    Call("pickling_the_result", "sys_exit", SystemExit, "3"),
    Call("pickling_the_result", "libc_exit", WorkerDied, EXIT_6, "new"),
    Call("pickling_the_result", "os_exit", WorkerDied, EXIT_4, "new"),
    Call("pickling_the_result", "segfault", WorkerDied, SIGSEGV, "new"),
    Call("pickling_the_exception", "raise", CommandError, "BreaksOnPickle"),
    Call("pickling_the_exception", "sys_exit", CommandError, "BreaksOnPickle"),
    Call("pickling_the_exception", "libc_exit", WorkerDied, EXIT_6, "new"),
    Call("pickling_the_exception", "os_exit", WorkerDied, EXIT_4, "new"),
    Call("pickling_the_exception", "segfault", WorkerDied, SIGSEGV, "new"),
    Call("unpickling_in_host", "raise", ValueError, "sabotage"),
    Call("unpickling_in_host", "sys_exit", SystemExit, "3"),
    Call("unpickling_in_host", "libc_exit", host_ends=True),
    Call("unpickling_in_host", "os_exit", host_ends=True),
    Call("unpickling_in_host", "segfault", host_ends=True),
    # What __del__ raises goes to stderr and to nobody else; the call has its result.
    Call("garbage_collection", "raise"),
    Call("garbage_collection", "sys_exit"),
    Call("garbage_collection", "libc_exit", WorkerDied, EXIT_6, "new"),
    Call("garbage_collection", "os_exit", WorkerDied, EXIT_4, "new"),
    Call("garbage_collection", "segfault", WorkerDied, SIGSEGV, "new"),
)

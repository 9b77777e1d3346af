"""Starts hosts, ends them, and measures how long anything of them outlives them.

Runs on the test's thread.  Every process of a host is held by a pidfd from the moment it is known, so that a
number that was given to another process can neither be mistaken for an orphan nor be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import psutil
from integration import scripts

from leaks import wait_until

__all__ = ("LONG_S", "ORPHANS_LIMIT_S", "QUICK_S", "Figures", "Host", "Terminal", "all_gone")

ORPHANS_LIMIT_S = 2.0
"""How long anything of a host may outlive it; the promise of the documentation."""
BOUND_S = scripts.BOUND_S
QUICK_S = 0.2
"""The graces where the pool ends its workers itself."""
LONG_S = 60.0
"""The graces where something else has to end them."""

PROGRAM = "from orphans.host import main\nmain()\n"


class Figures:
    """How long it took until nothing was left, by mechanism."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = {}

    def add(self, mechanism: str, seconds: float) -> None:
        """Note one clean-up."""
        self.ms.setdefault(mechanism, []).append(seconds * 1000)


class Terminal:
    """A pseudo-terminal: what a user types, and what is printed.

    Attributes:
        fd: The side of the programs.
        text: What was printed so far, with plain line ends.
    """

    def __init__(self) -> None:
        self._master, self.fd = pty.openpty()
        self.text = ""
        self._stop, self._stopper = os.pipe()
        # A reader of its own, or a full terminal would block the programs.
        self._reader = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        with contextlib.suppress(OSError):  # EIO: the last program has closed its side
            while self._stop not in dict(poll.poll()):
                self.text += os.read(self._master, 65536).decode().replace("\r\n", "\n")

    def press(self, keys: bytes) -> None:
        """Type; b"\\x03" is Ctrl-C."""
        os.write(self._master, keys)

    def wait_for(self, text: str, timeout_s: float = BOUND_S) -> None:
        """Wait until this text was printed."""
        try:
            wait_until(lambda: text in self.text, timeout_s)
        except AssertionError:
            raise AssertionError(f"{text!r} was not printed within {timeout_s} s, but: {self.text!r}") from None

    def settings(self) -> list[Any]:
        """Return what programs may change and must leave as it was."""
        return termios.tcgetattr(self._master)

    def hang_up(self) -> None:
        """Close the terminal's window: the programs get SIGHUP."""
        self.close_programs_side()
        os.write(self._stopper, b"x")
        self._reader.join(BOUND_S)  # the system waits for whoever is in a read
        os.close(self._master)
        self._master = -1

    def close_programs_side(self) -> None:
        """Close this process's copy; may be repeated."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close both sides once all programs are gone, so that `text` is complete; may be repeated."""
        self.close_programs_side()
        self._reader.join(BOUND_S)
        assert not self._reader.is_alive(), "somebody still holds the terminal"
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        if self._stop >= 0:
            os.close(self._stop)
            os.close(self._stopper)
            self._stop = -1


class Host:
    """A host program in the phase it was asked for.

    Args:
        folder: An empty one, for its program and its workers' notes.
        language: What its workers are.
        phase: What they do.
        end: How it will end.
        sibling: Who of it lives on.
        switches: Names of ``host.SWITCHES``.
        deed: What the busy worker does, if not what the phase says.
        grace_s: Of the pool, before TERM and before KILL.
        terminal: Give it a controlling terminal.
        options: For ``scripts.start``; ``wrapper`` are words before its command line.
        daemonize: Let it leave its session by two forks.
        nested: Let it be a worker of another host's pool.

    Attributes:
        process: The process that was started: the host, or what stands around it.
        pids: ``{role: pid}`` of all that it has started.
        busy: The pid of the worker that does the deed.
        terminal: Its controlling terminal, or None.
    """

    def __init__(
        self,
        folder: Path,
        language: str,
        phase: str,
        end: str = "",
        sibling: str = "alone",
        *,
        switches: tuple[str, ...] = (),
        deed: str = "",
        grace_s: float = LONG_S,
        terminal: bool = False,
        daemonize: bool = False,
        nested: bool = False,
        **options: Any,
    ) -> None:
        self._folder = folder
        self._notes = folder / "notes"
        self._notes.mkdir()
        self.terminal = Terminal() if terminal else None
        self._pidfds: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        self.errors_path = folder / "stderr"
        plan = {
            "language": language,
            "phase": phase,
            "end": end,
            "sibling": sibling,
            "switches": switches,
            "deed": deed or phase,
            "grace_s": grace_s,
            "terminal": terminal,
            "daemonize": daemonize,
            "nested": nested,
            "folder": str(self._notes),
        }
        self._control = self._start(plan, options)
        self._lines = self._control.makefile("r")
        try:
            # With a short grace it may be killed before; with the pipes in another process it sees no end.
            self._take_stock(phase, leaves=grace_s > QUICK_S and sibling != "c_fork")
        except BaseException:
            self.close()
            raise

    def _start(self, plan: dict[str, Any], options: dict[str, Any]) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs, open(self.errors_path, "wb") as errors, contextlib.ExitStack() as stack:
            listener = None
            if plan["nested"]:
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                plan["socket"] = str(self._folder / "socket")
                listener.bind(plan["socket"])
                listener.listen(1)
            if self.terminal is not None:
                fd = self.terminal.fd
                options = {"stdin": fd, "stdout": fd, "stderr": fd, "start_new_session": True, **options}
            plan["fd"] = theirs.fileno()
            self.process = scripts.start(
                self._folder,
                PROGRAM,
                json.dumps(plan),
                pass_fds=(theirs.fileno(),),
                **{"stdout": subprocess.DEVNULL, "stderr": errors, **options},
            )
            if self.terminal is not None:
                self.terminal.close_programs_side()
            if listener is not None:
                ours.close()
                listener.settimeout(BOUND_S)
                ours, _ = listener.accept()
        ours.settimeout(BOUND_S)
        return ours

    def _take_stock(self, phase: str, leaves: bool) -> None:
        self._know(outermost=self.process.pid)
        message = self.hear()
        if "exiting" in message:
            raise AssertionError(f"the host has failed: {self.errors()}")
        workers: list[int] = message.pop("workers")
        self._know(**message)
        notes = wait_until(lambda: self._read_notes(2 if phase == "starting" else 1), BOUND_S, "the workers' notes")
        for number, note in enumerate(notes):
            self.busy = note.pop("worker")
            workers.remove(self.busy)
            self._know(**{f"busy {number}": self.busy}, **{f"{role} {number}": pid for role, pid in note.items()})
        for number, pid in enumerate(workers):
            self._know(**{f"other {number}": pid})
        for role, pid in self.pids.items():
            if role.startswith(("escaped", "vanished")):
                wait_until(lambda pid=pid: os.getsid(pid) == pid, BOUND_S, f"{role} is in a session of its own")  # type: ignore[misc]
        expected = {"stopped": psutil.STATUS_STOPPED, "c_call": psutil.STATUS_SLEEPING}.get(phase)
        if expected is not None:
            busy = psutil.Process(self.busy)
            # In the C call once its thread no longer runs: it sleeps there and nowhere else.
            wait_until(lambda: busy.status() == expected, BOUND_S, f"worker {self.busy} is {expected}")
        if phase == "draining":
            self.go_on()
            assert {"draining": True} == self.hear()
            if leaves:
                leaving = self._notes / f"{self.busy}.leaving"
                wait_until(leaving.exists, BOUND_S, f"worker {self.busy} has seen the end of its requests")

    def _read_notes(self, count: int) -> list[dict[str, int]]:
        notes = [json.loads(path.read_text()) for path in sorted(self._notes.glob("*.json"))]
        return notes if len(notes) == count else []

    def _know(self, **pids: int) -> None:
        for role, pid in pids.items():
            self._pidfds[role] = os.pidfd_open(pid)
            self.pids[role] = pid

    # The conversation --------------------------------------------------------------------------------

    def hear(self) -> dict[str, Any]:
        """Return the host's next message."""
        try:
            line = self._lines.readline()
        except TimeoutError:
            line = ""
        if not line:
            raise AssertionError(f"the host says nothing: {self.errors()}")
        message: dict[str, Any] = json.loads(line)
        return message

    def go_on(self) -> None:
        """Let it do the next step."""
        self._control.sendall(b"x")

    def errors(self) -> str:
        """Return what it has written to stderr."""
        return self.terminal.text if self.terminal is not None else self.errors_path.read_text()

    # The end -----------------------------------------------------------------------------------------

    def signal(self, number: int, role: str = "host") -> None:
        """Send a signal to one of its processes."""
        signal.pidfd_send_signal(self._pidfds[role], number)

    def wait_end(self, timeout_s: float = BOUND_S, role: str = "host") -> None:
        """Wait until it has gone, and reap it if it is our child."""
        assert _readable(self._pidfds[role], timeout_s), f"the host lives on: {self.errors()}"
        if self.process.pid == self.pids[role]:
            self.process.wait(BOUND_S)

    def has_ended(self, role: str) -> bool:
        """Return whether one of its processes has ended."""
        return _readable(self._pidfds[role], 0)

    def living(self) -> dict[str, int]:
        """Return what has not ended, except the host and its sibling."""
        return {
            role: pid
            for role, pid in self.pids.items()
            if role not in ("outermost", "host", "sibling") and not self.has_ended(role)
        }

    def wait_gone(self, stays: Collection[str] = ()) -> float:
        """Wait until nothing is left of a host that has gone, the guardian included.

        Args:
            stays: First words of the roles that stay, by what is known of the mechanism under test.

        Returns:
            Seconds until workers and descendants were gone; the guardian looks around a little longer.
        """
        started = time.monotonic()
        took_s = 0.0
        must_go = [role for role in self.living() if role.split()[0] not in stays]
        for role in sorted(must_go, key="guardian".__eq__):
            left_s = started + ORPHANS_LIMIT_S - time.monotonic()
            if not _readable(self._pidfds[role], max(0.0, left_s)):
                raise AssertionError(f"left {ORPHANS_LIMIT_S} s after the end: {self.living()} of {self.pids}")
            if role != "guardian":
                took_s = time.monotonic() - started
        return took_s

    def close(self) -> None:
        """End whatever is left, and let go of it."""
        for fd in self._pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        self.process.kill()
        self.process.wait(BOUND_S)
        for fd in self._pidfds.values():
            _readable(fd, BOUND_S)
            os.close(fd)
        self._pidfds.clear()
        self._lines.close()
        self._control.close()
        if self.terminal is not None:
            self.terminal.close()


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


@contextlib.contextmanager
def all_gone(pids: list[int]) -> Iterator[None]:
    """Check that these processes are gone two seconds after the block, at the latest."""
    fds = [os.pidfd_open(pid) for pid in pids]
    try:
        yield
        deadline = time.monotonic() + ORPHANS_LIMIT_S
        for fd, pid in zip(fds, pids, strict=True):
            assert _readable(fd, max(0.0, deadline - time.monotonic())), f"{pid} of {pids} is left"
    finally:
        for fd in fds:
            os.close(fd)

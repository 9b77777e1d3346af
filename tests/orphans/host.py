"""The host whose end is under test: it makes a pool, brings it into a phase, and ends as it is told.

Runs as a process of its own, started by `driver`; talks to the test over an inherited socket, a line of JSON
a message.  It imports the product, and its switches reach into it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orphans import deeds

from snakepit import CommandAdapter, JavaScriptAdapter, PoolConfig, PythonAdapter, SnakepitExecutor
from snakepit._supervision import spawn
from snakepit._supervision.guardian import GUARDIAN, _Helper

import gates

WORKERS = Path(__file__).resolve().parent / "workers"
LIMIT_S = 30.0
STACKS_S = 20.0
"""When a host that is still there shows its stacks; the test waits for longer."""


class Control:
    """The host's end of the conversation with the test."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
        self._waits_for = [self._socket]

    def watch_signals(self) -> None:
        """Have every wait of the main thread end for a signal, whenever it comes."""
        # RACE: Python runs no handler for a signal that comes on the last steps before a call that blocks.
        self._wake, woken = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        self._waits_for.append(woken)

    def say(self, **message: Any) -> None:
        """Tell the test."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def wait(self) -> None:
        """Wait until the test says "go on"."""
        while self._socket not in (ready := select.select(self._waits_for, [], [])[0]):
            ready[0].recv(1)  # a signal's, whose handler did not raise
        if not self._socket.recv(1):
            os._exit(70)  # the test is gone


# Switches ------------------------------------------------------------------------------------------


def without_signal() -> None:
    """No parent-death signal: as where there is no setpriv."""
    spawn.find_setpriv = lambda: None  # type: ignore[assignment]


def without_guardian() -> None:
    """No guardian: as where none can be started."""
    GUARDIAN._start_locked = lambda: None  # type: ignore[method-assign]


def _unsaid(*verbs: str) -> Callable[[], None]:
    def switch() -> None:
        send = _Helper.send

        def send_rest(self: _Helper, text: str) -> bool:
            kept = [line for line in text.splitlines(True) if line.split()[0] not in verbs]
            return send(self, "".join(kept)) if kept else True

        _Helper.send = send_rest  # type: ignore[method-assign]

    return switch


SWITCHES: dict[str, Callable[[], None]] = {
    "no_signal": without_signal,
    "no_guardian": without_guardian,
    "no_groups": _unsaid("+", "-"),
    "no_runs": _unsaid("run", "end"),
}


# The pool ------------------------------------------------------------------------------------------


def make_pool(language: str, start_deed: str | None, folder: str, config: PoolConfig) -> SnakepitExecutor:
    """Return a pool of two workers; with a deed their start never ends."""
    start = {"deed": start_deed, "folder": folder} if start_deed else {}
    path = {"PYTHONPATH": gates.DIRECTORY}
    if language == "callable":
        return SnakepitExecutor(
            2, initializer=deeds.act if start else None, initargs=tuple(start.values()), config=config
        )
    if language == "python":
        kind: Any = PythonAdapter(WORKERS / "handlers.py", env=path, start_args=start or None)
    elif language == "javascript":
        kind = JavaScriptAdapter(WORKERS / "handlers.js", start_args=start or None)
    else:
        env = {f"START_{name.upper()}": value for name, value in start.items()}
        kind = CommandAdapter(["ruby", str(WORKERS / "bridge.rb")], env=env)
    return SnakepitExecutor(kind, 2, config=config)


def enter_phase(executor: SnakepitExecutor, language: str, phase: str, deed: str, folder: str) -> None:
    """Bring the pool into a phase, as far as the host can tell."""
    if phase == "starting":
        while not all(info.pid for info in executor.workers()):
            threading.Event().wait(0.005)
        return
    executor.wait_ready(LIMIT_S, 2)
    call = (deeds.act, deed, folder) if language == "callable" else ("act", {"deed": deed, "folder": folder})
    future = executor.submit(*call)
    if phase in ("idle", "draining"):
        future.result(LIMIT_S)


def fork_sibling(kind: str) -> int | None:
    """Return the pid of a child of this host that lives on, or None."""
    if kind == "alone":
        return None
    # Set before and not in the child: in a child forked past Python's hooks hardly anything may be called.
    ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    libc = ctypes.PyDLL(None)
    pause = libc.pause
    pid = os.fork() if kind == "fork" else int(libc.fork())
    if pid == 0:
        while True:
            pause()
    for number, handler in ignored.items():
        signal.signal(number, handler)
    return pid


# The end -------------------------------------------------------------------------------------------


def say_at_exit(control: Control) -> None:
    """Tell when the interpreter's exit has begun, before the pools' own hook runs."""
    threading._register_atexit(control.say, exiting=True)  # type: ignore[attr-defined]


def introduce(executor: SnakepitExecutor, control: Control, known: dict[str, Any], draining: bool) -> None:
    """Say what is known; for the phase of draining, begin the shutdown once the test has taken note."""
    control.say(**known)
    if draining:
        control.wait()
        executor.shutdown(wait=False)
        executor._manager.ask(lambda _: None)  # it answers once it has condemned the workers
        control.say(draining=True)
    control.wait()


def end(how: str, executor: SnakepitExecutor, control: Control, known: dict[str, Any], draining: bool) -> None:
    """Introduce this host, and end it; for ends from outside, wait for them."""
    if how in ("ctrl_c", "sys_exit"):
        with executor:
            introduce(executor, control, known, draining)
            sys.exit(3)
    introduce(executor, control, known, draining)
    if how == "os_exit":
        os._exit(4)
    if how == "exception":
        raise ValueError("the host's own")
    if how == "exec":
        os.execvp(deeds.GRANDCHILD[0], deeds.GRANDCHILD)  # noqa: S606  # becoming another program is the point
    if how == "thread_exit":
        thread = threading.Thread(target=sys.exit, args=(3,))
        thread.start()
        thread.join()
        control.say(alive=[info.pid for info in executor.workers()])
        control.wait()
    control.wait()


def main() -> None:
    """Do what the command line says: one JSON object, the keywords of ``driver.Host``."""
    plan: dict[str, Any] = json.loads(sys.argv[1])
    if plan["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if plan["daemonize"]:
        daemonize()
    control = Control(plan["fd"])
    if plan["end"] == "ctrl_c":
        control.watch_signals()
    faulthandler.dump_traceback_later(STACKS_S)
    for name in plan["switches"]:
        SWITCHES[name]()
    config = PoolConfig(min_workers=2, shutdown_grace_s=plan["grace_s"], kill_grace_s=plan["grace_s"])
    if plan["nested"]:
        nest(plan)
        return
    start_deed = plan["deed"] if plan["phase"] == "starting" else None
    executor = make_pool(plan["language"], start_deed, plan["folder"], config)
    say_at_exit(control)
    enter_phase(executor, plan["language"], plan["phase"], plan["deed"], plan["folder"])
    sibling = fork_sibling(plan["sibling"])
    pids = [info.pid for info in executor.workers() if info.pid]
    helpers = {"guardian": GUARDIAN.pid, "sibling": sibling}
    known = {"host": os.getpid(), "workers": pids, **{name: pid for name, pid in helpers.items() if pid}}
    end(plan["end"], executor, control, known, plan["phase"] == "draining")


def daemonize() -> None:
    """Leave the session by two forks, as daemons do."""
    for leave in (os.setsid, lambda: None):
        if os.fork():
            os._exit(0)
        leave()


def nest(plan: dict[str, Any]) -> None:
    """Run the same plan in a worker of a pool of this host, and wait for ever."""
    inner = {**plan, "nested": False}
    with SnakepitExecutor(1) as outer:
        outer.submit(run_inner, inner).exception()
        threading.Event().wait()


def run_inner(plan: dict[str, Any]) -> None:
    """In a worker: be the host of the plan.  The socket came through the file system: descriptors do not travel."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(plan["socket"])
        sys.argv = ["host", json.dumps({**plan, "fd": connection.detach()})]
    main()

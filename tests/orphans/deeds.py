"""What workers do in the tests of orphans: they found a family, tell of it, and then behave as told.

Runs in Python workers, of commands and of callables; `workers/` has the same in other languages.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import subprocess
import threading

__all__ = ("GRANDCHILD", "act", "tell")

GRANDCHILD = ("sleep", "120")
AT_MOST_S = 120


def act(deed: str, folder: str) -> int:
    """Start a plain child and one in a session of its own, tell of them, and do the deed."""
    plain = subprocess.Popen(GRANDCHILD)
    escaped = subprocess.Popen(GRANDCHILD, start_new_session=True)
    family = {"plain": plain.pid, "escaped": escaped.pid}
    if deed.startswith("bare_"):
        # A plain child that does not carry the run's token, and one that has left the session as well.
        family["bare"] = subprocess.Popen(GRANDCHILD, env={"PATH": os.environ["PATH"]}).pid
        family["vanished"] = subprocess.Popen(GRANDCHILD, env={"PATH": os.environ["PATH"]}, start_new_session=True).pid
    tell(folder, {"worker": os.getpid(), **family})
    if deed.endswith("draining"):
        be_stubborn(os.path.join(folder, f"{os.getpid()}.leaving"))
    else:
        DEEDS[deed.removeprefix("bare_")]()
    return os.getpid()


def tell(folder: str, pids: dict[str, int]) -> None:
    """Leave a note of these pids in the folder, whole at once."""
    path = os.path.join(folder, f"{os.getpid()}.json")
    with open(path + ".new", "w") as file:
        json.dump(pids, file)
    os.rename(path + ".new", path)


def wait() -> None:
    """Block as a slow start does: other threads may run."""
    threading.Event().wait(AT_MOST_S)


def loop() -> None:
    """Run for ever in the interpreter."""
    while True:
        pass


def c_call() -> None:
    """Stay in a C function that keeps the interpreter's lock: no other thread may run."""
    ctypes.PyDLL(None).sleep(AT_MOST_S)


def stop() -> None:
    """Stop this process, as a debugger or a full disk would."""
    os.kill(os.getpid(), signal.SIGSTOP)


def be_stubborn(note: str) -> None:
    """Ignore SIGTERM, and from the end of the requests on stay in an exit handler that holds everything up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    atexit.register(leave_slowly, note)


def leave_slowly(note: str) -> None:
    """Leave a note, and hold everything up."""
    with open(note, "w"):
        c_call()


def be_idle() -> None:
    """Do nothing more."""


DEEDS = {
    "starting": wait,
    "idle": be_idle,
    "loop": loop,
    "c_call": c_call,
    "stopped": stop,
}

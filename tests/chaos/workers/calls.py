"""What the workers of a chaos run do: note that they run, then serve, fail, hang, or end themselves.

Callables as they are, and the body of the Python handlers.  Every run appends one line to the run log of
its pool, whole even when several processes write: ``S rid pid [nonce n]``.
"""

import os
import select
import signal
import sys
import time

_log = []


def note(*words):
    """Append one line to the run log."""
    if not _log:
        _log.append(os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    os.write(_log[0], (" ".join(map(str, words)) + "\n").encode())


def nap(seconds):
    """Let time pass."""
    select.select([], [], [], seconds)


def perform(how, arg):
    """Do what the caller wants to happen inside of a worker."""
    if how == "nap":
        nap(arg)
    elif how == "spin":
        end = time.perf_counter() + arg
        while time.perf_counter() < end:
            pass
    elif how == "fail":
        raise ValueError(arg)
    elif how == "exit":
        os._exit(arg)
    elif how == "hang":
        nap(600)
    elif how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        nap(600)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "noise":
        # Never to the host's own output: what the pool does with it is another test's subject.
        sys.stderr.write("noise " * arg + "\n")
        sys.stderr.flush()
    elif how == "bytes":
        return bytes(arg)
    elif how == "unsendable":
        return (number for number in range(3))
    elif how == "swallow":
        return len(arg)
    return None


def step(rid, how="quick", arg=None):
    """Run one request without a session."""
    note("S", rid, os.getpid())
    return [rid, os.getpid(), perform(how, arg)]


def visit(rid, how="quick", arg=None):
    """Run one request of a session: count it in the session's state, whose nonce names this incarnation of it."""
    from snakepit_bridge import context

    state = context().state
    state.setdefault("nonce", os.urandom(8).hex())
    state["n"] = state.get("n", 0) + 1
    note("S", rid, os.getpid(), state["nonce"], state["n"])
    answer = [rid, os.getpid(), state["nonce"], state["n"], state.get("steps", 0)]
    perform(how, arg)
    return answer


def settle_in(place, pinned):
    """Be one step of a session's set-up; a session that is pinned to its worker finds what a new one finds."""
    from snakepit_bridge import context

    state = context().state
    if pinned and (state.get("steps", 0) != place or "n" in state):
        raise AssertionError(f"set-up step {place} found {state}")
    state["steps"] = place + 1

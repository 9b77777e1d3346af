"""Commands with which a test holds, watches and breaks its workers; runs in the Python bridge."""

import os
import signal
import sys

from snakepit_bridge import command, context, on_start

from gates import pass_gate


@on_start
def start(gate=None, text=None):
    if gate:
        pass_gate(gate, "start")
    context().worker_state["text"] = text


@command
def started_with():
    return context().worker_state.get("text")


def note(log, value):
    """Append a line to a run log, whole even when several processes write."""
    if log:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, f"{value}\n".encode())
        os.close(fd)


@command
def hold(gate, value=None, log=None):
    """Say in the log that the command runs, wait at the gate, return the value."""
    note(log, value)
    pass_gate(gate, str(value))
    return value


@command
def run(value=None, log=None):
    """Say in the log that the command runs, and return the value."""
    note(log, value)
    return value


@command
def hold_or_run(value, gate=None):
    """Wait at the gate, if there is one, and return the value."""
    if gate is not None:
        pass_gate(gate, str(value))
    return value


@command
def give(value):
    return value


@command
def pid():
    return os.getpid()


@command
def env(name):
    return os.environ.get(name)


@command
def put(key, value, log=None):
    note(log, f"{key}={value}")
    context().state[key] = value
    return os.getpid()


@command
def fetch(key):
    return context().state.get(key)


@command
def append(value):
    values = context().state.setdefault("values", [])
    values.append(value)
    return [os.getpid(), list(values)]


@command
def die(code=None, number=None, text=""):
    sys.stderr.write(text)
    sys.stderr.flush()
    if number is not None:
        os.kill(os.getpid(), number)
    os._exit(code or 0)


@command
def ignore_term():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return os.getpid()


@command
def fail(text="boom"):
    raise RuntimeError(text)


@command
def shout(text):
    print(text, flush=True)
    sys.stderr.write("stderr " + text + "\n")
    sys.stderr.flush()
    context().log("logged " + text, level="warning")
    return text


@command
def size(data):
    return len(data)


@command
def reversed_bytes(data):
    return data[::-1]


@command
def bad_result(kind):
    return {"set": {1}, "nan": float("nan"), "surrogate": "\ud800"}[kind]

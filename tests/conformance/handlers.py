"""The commands that transcripts and misuse tests expect of a Python bridge; handlers.js has the same."""

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
import time

from snakepit_bridge import command, context, on_start


class Inner(Exception):
    """The cause of a Failure."""


class Failure(Exception):
    """What ``fail`` raises."""

    data = None


@on_start
def begin(**start_args):
    if start_args.get("fail"):
        raise Failure("cannot start")
    context().worker_state["start_args"] = start_args or None


@command
def started():
    return context().worker_state["start_args"]


@command
def identity(value):
    return value


@command
def later(value):
    async def answer():
        await asyncio.sleep(0)
        return value

    return answer()


@command
def fail(message="boom"):
    error = Failure(message)
    error.data = {"field": "name"}
    raise error from Inner("deep down")


@command
def count():
    state = context().state
    state["count"] = state.get("count", 0) + 1
    return state["count"]


@command
def whoami():
    return {"session": context().session_id, "worker": context().worker_id}


@command
def deadline():
    return context().deadline_s


@command
def log_line(message, level, fields):
    context().log(message, level, **fields)
    return "logged"


@command
def unencodable(kind):
    cycle = {}
    cycle["self"] = cycle
    deep = []
    for _ in range(300):
        deep = [deep]
    values = {
        "nan": float("nan"),
        "infinity": float("inf"),
        "lone surrogate": "x\ud800",
        "cycle": cycle,
        "deep": deep,
        "object": object(),
    }
    return {"a": [values[kind]]}


@command
def text(size):
    return "x" * size


@command
def blob(size):
    return bytes(i % 256 for i in range(size))


@command
def nested_blobs():
    return {"a/b": [b"one"], "t~": {"empty": b"", "two": b"\x00\x01"}, "n": None}


@command
def reverse(data):
    return data[::-1]


@command
def sizes(items):
    return [len(item) for item in items]


@command
def print_text(line):
    print(line, flush=True)
    return "printed"


@command
def write_fd_1(line):
    """Write to descriptor 1 as native code would."""
    ctypes.CDLL(None).write(1, line.encode(), len(line.encode()))
    return "written"


@command
def child_reads_stdin():
    return subprocess.run(["cat"], stdout=subprocess.PIPE, check=True).stdout.decode()


@command
def child_sees():
    script = "ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'"
    done = subprocess.run(["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    return done.stdout.decode().split()


@command
def hang():
    context().log("hanging")
    threading.Event().wait()


@command
def stall(ms):
    """Compute for so many milliseconds; with null, wait for ever."""
    until = time.monotonic() + (ms or 0) / 1000
    while ms is None or time.monotonic() < until:
        if ms is None:
            threading.Event().wait()
    return ms


@command
async def stall_later(ms):
    """Wait for ever with null, and let the event loop run meanwhile."""
    if ms is None:
        await asyncio.Event().wait()
    return ms


@command
def leave():
    sys.exit("not this way")


@command
def interrupt():
    raise KeyboardInterrupt


@command
def pid():
    return os.getpid()

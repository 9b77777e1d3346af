"""Commands for the tests of supervision: memory in a child process, and a death that comes once."""

import os
import signal
import subprocess
import sys

from snakepit_bridge import command, context

CHILD = "import sys; held = b'x' * int(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


@command
def hoard(size):
    """Let a child process hold so many bytes; it lives as long as this worker."""
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", CHILD, str(size)], stdin=pipe, stdout=pipe)
    child.stdout.readline()
    context().worker_state["child"] = child
    return [os.getpid(), child.pid]


@command
def pid():
    return os.getpid()


@command
def die_once(path, log=None):
    """Kill this process the first time, and return its pid from then on."""
    if log:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return os.getpid()
    return os.kill(os.getpid(), signal.SIGKILL)

"""Commands that tell what limits their process has, and run into them; for the Python bridge, and as callables."""

import ctypes
import os
import subprocess
import sys

try:
    from snakepit_bridge import command
except ImportError:  # imported by a test, as callables

    def command(function):
        return function


@command
def facts(file=None):
    """Tell what the process and a child of it have."""
    if file:
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o666))
    script = "ulimit -S -n; ulimit -H -n; ulimit -S -v; umask; nice"
    child = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    return {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "cwd": os.getcwd(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "mode": os.stat(file).st_mode & 0o777 if file else None,
        "env": dict(os.environ),
        "child": child,
    }


@command
def allocate(size):
    return len(bytearray(size))


@command
def burn():
    while True:
        pass


@command
def open_many(count):
    files = []
    try:
        for _ in range(count):
            files.append(open(os.devnull))  # noqa: SIM115  # all at once, until the limit
        return len(files)
    finally:
        for file in files:
            file.close()


@command
def write(file, size):
    with open(file, "wb") as out:
        out.write(b"." * size)
        out.flush()


@command
def parent_death_signal():
    """Tell the signal that the process gets when the thread that started it ends, 0 for none."""
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))
    return number.value


@command
def path():
    return [os.getcwd(), list(sys.path)]

"""A wrapper that forks and stays between, as docker or bwrap do: it runs a command line and ends as that ends.

    waiting_wrapper.py LOG [--standard-streams-only] -- argv...

It notes a SIGTERM in LOG and goes on.  Its copies of the worker's descriptors stay open.
"""

import os
import signal
import subprocess
import sys

log, *rest = sys.argv[1:]
only_standard = rest[0] == "--standard-streams-only"
argv = rest[rest.index("--") + 1 :]


def note(number, frame):
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, b"TERM\n")
    os.close(fd)


signal.signal(signal.SIGTERM, note)
status = subprocess.Popen(argv, close_fds=only_standard).wait()
# Status or 128 + signal, as a shell does it.
os._exit(status if status >= 0 else 128 - status)

"""The entry point of the ``snakepit`` command; without its extra it says what to install.

Runs on the main thread and owns the process: exit status, interrupts, closed pipes.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

__all__ = ("main",)

_EXTRA = ("click", "rich")
_INTERRUPTED = 130
_PIPE_CLOSED = 141
"""128 + SIGPIPE, as for any program whose reader has gone."""
_UNWRITABLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after the program's name; None: those of this process.

    Returns:
        The exit status: 0 success, 1 failure (also: click or rich is not installed, stdout is closed or cannot be
        written), 2 usage, 130 interrupted, 141 when the reader of the output has gone, and those of ``snakepit run``.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process; print(file=None) is stdout
    if sys.stdout is None:
        print("snakepit: stdout is closed; for no output: >/dev/null", file=sys.stderr)
        return 1
    try:
        from ._cli.commands import invoke

        status = invoke(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return status
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(
            f"snakepit: the command line needs {' and '.join(_EXTRA)}, and there is no {error.name!r} here;"
            ' install them with: pip install "snakepit-pool[cli]"',
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        _discard_output()
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        with suppress(OSError):
            print(f"snakepit: the output cannot be written: {error.strerror}", file=sys.stderr)
        _discard_output()
        return 1
    except KeyboardInterrupt:
        print("snakepit: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _discard_output() -> None:
    """Let the interpreter's own flush at its end succeed: it would complain once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)

"""The entry point of the ``snakepit`` command; without its extra it says what to install.

Runs on the main thread and owns the process: exit status, interrupts, closed pipes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ("main",)

_EXTRA = ("click", "rich")
_INTERRUPTED = 130
_PIPE_CLOSED = 141
"""128 + SIGPIPE, as for any program whose reader has gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after the program's name; None: those of this process.

    Returns:
        The exit status: 0 success, 1 failure (also: click or rich is not installed), 2 usage,
        130 interrupted, 141 when the reader of the output has gone, and those of ``snakepit run``.
    """
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
        # The interpreter flushes once more at its end, and would complain.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        print("snakepit: interrupted", file=sys.stderr)
        return _INTERRUPTED

"""Steps and log lines that must not stop what follows them.

Runs on the pool's threads, owns no state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

__all__ = ("QuietLogger", "quietly")


class QuietLogger:
    """A logger whose handlers and filters, which are users' code, cannot stop the thread that logs.

    Args:
        name: The logger's.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def warning(self, text: str, *args: object) -> None:
        """Log a warning."""
        quietly(self._logger.warning, text, *args)

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log an error."""
        quietly(lambda: self._logger.error(text, *args, exc_info=exc_info))

    def critical(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log what ends a pool."""
        quietly(lambda: self._logger.critical(text, *args, exc_info=exc_info))


def quietly(call: Callable[..., Any], *args: Any) -> None:
    """Call, and go on whatever that raises."""
    # BaseException: on a thread of the pool a SystemExit or KeyboardInterrupt is nobody's wish to end it.
    try:
        call(*args)
    except BaseException:
        return

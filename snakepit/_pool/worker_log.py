"""Log messages of workers -> the logger ``snakepit.worker``.

Runs on the manager's thread; owns nothing.
"""

from __future__ import annotations

import logging
from typing import Any

from .._text import escape_text, show
from .quiet import quietly

__all__ = ("log",)

_MAX_LOG_CHARS = 8192
"""Arbitrary: as much as a line of stderr may have."""

_logger = logging.getLogger("snakepit.worker")
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def log(worker_id: str, message: dict[str, Any]) -> None:
    """Hand a worker's log message to the logger."""
    name, text, fields = message.get("level"), message.get("message", ""), message.get("fields")
    level = _LEVELS.get(name.lower(), logging.INFO) if isinstance(name, str) else logging.INFO
    if _logger.isEnabledFor(level):
        shown = escape_text(text[:_MAX_LOG_CHARS]) if isinstance(text, str) else show(text)
        # A filter or handler of the user's may raise anything, and this thread has more to do than logging.
        quietly(_logger.log, level, "[%s] %s%s", worker_id, shown, f" {show(fields, 2000)}" if fields else "")

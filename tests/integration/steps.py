"""Interrupts at every step at which the interpreter runs signal handlers; for host programs, on their main thread."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ("interrupted",)


def interrupted(call: Callable[[], Any], place: int, also: tuple[str, ...] = ()) -> tuple[int, int, Any]:
    """Call; at its step of this number send SIGINT to this process.

    Args:
        call: What is to be interrupted.
        place: Number of the step, from 1 on; 0: none.
        also: Ends of the names of source files that count beside those of the package.

    Returns:
        ``(steps made, interrupts caught, the value or None)``.
    """
    steps, caught, value = 0, 0, None

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal steps
        # Where the interpreter runs handlers: at the entries of functions, and after calls of its own.
        name = frame.f_code.co_filename
        if ("/snakepit/" in name or name.endswith(also)) and event in ("call", "c_return"):
            steps += 1
            if steps == place:
                os.kill(os.getpid(), signal.SIGINT)

    try:
        try:
            sys.setprofile(profile)
            value = call()
        finally:
            sys.setprofile(None)
    except KeyboardInterrupt:
        caught += 1
    return steps, caught, value

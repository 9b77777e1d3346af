"""The one clock of the host: monotonic seconds, and the check of every time-out a user gives.

Runs on any thread and owns no state.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import Final

__all__ = ("FOREVER_S", "INHERIT", "LONGEST_WAIT_S", "Inherit", "check_timeout", "monotonic_s", "pick_timeout")

monotonic_s = time.monotonic

LONGEST_WAIT_S = 86400.0
"""Most seconds that a thread of the pool asks the system to wait; whoever wakes early looks at the clock and waits
again.  The system takes milliseconds in 31 bits: 24.8 days, and no infinity."""

FOREVER_S = 1e9
"""From so many seconds on, 32 years, a time-out is no limit.  The system's locks wait for 292 years at most, and any
language reads the milliseconds exactly."""


class Inherit(Enum):
    """The default of every time-out parameter: take the value from outside (None means "no limit")."""

    INHERIT = "inherit"

    def __repr__(self) -> str:
        return "<inherit>"


INHERIT: Final = Inherit.INHERIT


def check_timeout(name: str, value: object) -> float | None:
    """Return ``value`` as seconds, or None for "no limit".

    Args:
        name: The parameter, for the message.
        value: Seconds, > 0; ``FOREVER_S`` and more, ``math.inf`` too, count as None.

    Raises:
        TypeError: Not a number (bool and str included); raised here.
        ValueError: Zero, negative, NaN, or an int that is no float; raised here.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds > 0 or None, not {value!r} ({type(value).__name__})")
    try:
        seconds = float(value)
    except OverflowError:
        bits = int(value).bit_length()
        raise ValueError(f"{name} must be seconds > 0 or None (no limit), not an int of {bits} bits") from None
    if not seconds > 0:
        raise ValueError(f"{name} must be seconds > 0 or None (no limit), not {value!r}")
    return None if seconds >= FOREVER_S else seconds


def pick_timeout(name: str, value: float | Inherit | None, outer_s: float | None) -> float | None:
    """Return the time-out in force: ``value`` if it was given, else the one from outside."""
    return outer_s if value is INHERIT else check_timeout(name, value)

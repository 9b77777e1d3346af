"""When a worker that ended may be started again, and when to give up.

Pure; used by the scheduler on the manager's thread.
"""

from __future__ import annotations

import random

from .model import Slot

__all__ = ("RestartPolicy",)


class RestartPolicy:
    """Exponential back-off per slot, and one budget of consecutive failed starts for the pool.

    A start has failed when the process ended before a valid handshake, or within the longest back-off after
    it without having been given anything.  A worker that has answered, or idled for longer, is proven: its
    death costs no budget and its slot is filled again at once.

    Args:
        first_s: Delay after the first failed start, > 0.
        factor: Growth per further failure of the same slot, >= 1.
        cap_s: Longest delay before jitter.
        jitter: Share by which a delay varies both ways, 0 to 1.
        budget: Consecutive failed starts at which the pool is broken, >= 1.
        rng: Source of the jitter.
    """

    def __init__(
        self, *, first_s: float, factor: float, cap_s: float, jitter: float, budget: int, rng: random.Random
    ) -> None:
        self._first_s = first_s
        self._factor = factor
        self._cap_s = cap_s
        self._jitter = jitter
        self.budget = budget
        self._rng = rng
        self.failures = 0
        self.last_error: BaseException | None = None

    @property
    def spent(self) -> bool:
        """True when the budget is used up."""
        return self.failures >= self.budget

    def failed(self, slot: Slot, error: BaseException) -> float:
        """Count a failed start and return the delay, in seconds, before the slot's next one."""
        self.failures += 1
        self.last_error = error
        slot.failures += 1
        delay_s = min(self._first_s, self._cap_s)
        # Step by step: a power of a large factor is more than a float can hold.
        for _ in range(min(slot.failures - 1, 64)):
            delay_s = min(delay_s * self._factor, self._cap_s)
        return delay_s * (1 + self._jitter * (2 * self._rng.random() - 1))

    def succeeded(self, slot: Slot) -> None:
        """Forget the failures: a worker of this slot has answered."""
        slot.failures = 0
        self.reset()

    def reset(self) -> None:
        """Start from nothing: a worker has answered, or the pool is healed by hand."""
        self.failures = 0
        self.last_error = None

"""What a soak has to show: lines through samples with their noise, and the bounds that fail it.

Pure; the samples come from ``soak``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import attrs

__all__ = ("Check", "Cycle", "Histogram", "Line", "check_cycles", "fit")

RSS_MB_PER_HOUR = 10.0
"""Above it, and outside of its noise, the host's memory is said to grow.  A request that left 50 bytes behind would
show as several hundred at full speed."""
RSS_MB = 2.0
"""Growth of the whole run below which its slope says nothing: what an allocator may take late.  Arbitrary."""
BLOCKS_PER_KILL = 5.0
"""Python's allocated blocks that may stay for each worker killed; one that is forgotten leaves more than 100."""
BLOCKS_PER_CALL = 0.001
"""The same for each call; a leaked one leaves at least 1."""
P99_RATIO = 2.0
"""Of the last cycles to the first, in one mode.  The p99 of a minute with 60 kills varies by half on a busy machine."""
ENDS = 3
"""Cycles at each end of a run whose median stands for it, where a run has enough of them."""
THROUGHPUT_RATIO = 0.67
"""The same for calls."""


@attrs.frozen
class Line:
    """A straight line through samples: change per second, with its standard error."""

    slope: float
    error: float
    seconds: float

    @property
    def certain(self) -> float:
        """The slope that the noise does not explain: two standard errors nearer to 0, and never beyond it."""
        return math.copysign(max(0.0, abs(self.slope) - 2 * self.error), self.slope)


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """Fit a line through ``(seconds, value)``; at least three points."""
    count = len(points)
    middle = sum(x for x, _ in points) / count
    mean = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    slope = sum((x - middle) * (y - mean) for x, y in points) / spread
    rest = sum((y - mean - slope * (x - middle)) ** 2 for x, y in points)
    return Line(slope, math.sqrt(rest / (count - 2) / spread), points[-1][0] - points[0][0])


class Histogram:
    """Latencies in buckets 9 % wide: a soak's memory must not grow with its calls."""

    def __init__(self) -> None:
        self._buckets = [0] * 256
        self.count = 0

    def add(self, seconds: float) -> None:
        place = int(8 * math.log2(max(seconds, 1e-6) * 1e6))
        self._buckets[min(place, 255)] += 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """Return the upper end of the bucket with this quantile, in seconds; 0 when it is empty."""
        left = self.count * share
        for place, number in enumerate(self._buckets):
            left -= number
            if left <= 0 and number:
                return float(2 ** ((place + 1) / 8) / 1e6)
        return 0.0


@attrs.frozen
class Cycle:
    """One turn through all modes, and what was measured while everything rested after it.

    Attributes:
        at_s: Since the start.
        seconds: Under load.
        calls: That were answered.
        p99_s: By mode.
    """

    at_s: float
    seconds: float
    calls: int
    kills: int
    p99_s: Mapping[str, float]
    rss_mb: float
    fds: int
    threads: int
    blocks: int
    objects: int


@attrs.frozen
class Check:
    """One row of the final table."""

    name: str
    figure: str
    bound: str
    good: bool


def check_cycles(cycles: Sequence[Cycle]) -> list[Check]:
    """Judge a soak; the first cycle is its warm-up, the lines go through the last two thirds."""
    ends = min(ENDS, (len(cycles) - 1) // 2)
    first, last = cycles[1 : 1 + ends], cycles[-ends:]
    tail = cycles[min(len(cycles) // 3, len(cycles) - 3) :]
    checks = [_memory(tail), _blocks(tail, "Python's allocated blocks", [c.blocks for c in tail])]
    checks.append(_blocks(tail, "objects of the collector", [c.objects for c in tail]))
    for what in ("fds", "threads"):
        values = [getattr(cycle, what) for cycle in cycles[1:]]
        figure = f"{min(values)} to {max(values)}"
        checks.append(Check(f"{what} at rest", figure, "the same after every cycle", len(set(values)) == 1))
    for mode in first[0].p99_s:
        old, new = (median(cycle.p99_s[mode] for cycle in cycles) for cycles in (first, last))
        ratio = new / old if old else math.inf
        figure = f"{old * 1e3:.2f} ms, then {new * 1e3:.2f} ms: {ratio:.2f}"
        checks.append(Check(f"p99, {mode}, at both ends", figure, f"<= {P99_RATIO}", ratio <= P99_RATIO))
    old, new = (median(cycle.calls / cycle.seconds for cycle in cycles) for cycles in (first, last))
    figure = f"{old:.0f}/s, then {new:.0f}/s: {new / old:.2f}"
    checks.append(Check("calls, at both ends", figure, f">= {THROUGHPUT_RATIO}", new / old >= THROUGHPUT_RATIO))
    return checks


def _memory(cycles: Sequence[Cycle]) -> Check:
    line = fit([(cycle.at_s, cycle.rss_mb) for cycle in cycles])
    per_hour, error, certain = (value * 3600 for value in (line.slope, line.error, line.certain))
    noise = "within the noise" if not certain else "outside of the noise"
    grew = certain > RSS_MB_PER_HOUR and line.slope * line.seconds > RSS_MB
    return Check(
        "resident memory of the host",
        f"{cycles[-1].rss_mb:.1f} MB, {per_hour:+.2f} +- {error:.2f} MB/h ({noise})",
        f"<= {RSS_MB_PER_HOUR:.0f} MB/h beyond 2 standard errors, or <= {RSS_MB:.0f} MB in all",
        not grew,
    )


def _blocks(cycles: Sequence[Cycle], name: str, values: list[int]) -> Check:
    line = fit([(cycle.at_s, float(value)) for cycle, value in zip(cycles, values, strict=True)])
    calls, kills = (sum(getattr(cycle, what) for cycle in cycles[1:]) for what in ("calls", "kills"))
    limit = BLOCKS_PER_KILL * kills + BLOCKS_PER_CALL * calls
    grown, certain = line.slope * line.seconds, line.certain * line.seconds
    return Check(
        name,
        f"{values[-1]}, {grown:+.0f} +- {line.error * line.seconds:.0f} over {calls} calls and {kills} kills",
        f"<= {limit:.0f} beyond 2 standard errors",
        certain <= limit,
    )

"""The short form of ``make soak``, and that its checks find a leak."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from chaos.soak import MODES, Soak
from chaos.trends import Cycle, Histogram, check_cycles, fit

MB_PER_HOUR = 1 / 3600


def cycles(count: int = 30, **changes: float) -> list[Cycle]:
    """Return a soak of so many minutes in which nothing grows but what is given: its change per minute."""
    made = []
    for number in range(count):
        # A sawtooth in the place of noise.
        noise = (number % 3) - 1
        cycle = Cycle(
            at_s=60.0 * number,
            seconds=60.0,
            calls=200_000,
            kills=60,
            p99_s=dict.fromkeys(MODES, 0.005),
            rss_mb=60 + 0.3 * noise,
            fds=58,
            threads=16,
            blocks=110_000 + 200 * noise,
            objects=28_000 + 50 * noise,
        )
        grown = {
            name: getattr(cycle, name) + type(getattr(cycle, name))(change * number) for name, change in changes.items()
        }
        made.append(attrs.evolve(cycle, **grown))
    return made


def failed(soak: list[Cycle]) -> list[str]:
    """Return the names of the checks that fail."""
    return [check.name for check in check_cycles(soak) if not check.good]


def test_a_line_through_points() -> None:
    """Slope and standard error of a known sample; the noise takes away what it explains."""
    exact = fit([(0, 1.0), (1, 3.0), (2, 5.0)])
    noisy = fit([(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)])

    assert (2.0, 0.0, 2.0) == (exact.slope, exact.error, exact.certain)
    assert pytest.approx(0.2) == noisy.slope
    assert 0.0 == noisy.certain


def test_nothing_that_grows() -> None:
    """Noise around a level is no finding."""
    assert [] == failed(cycles())
    assert [] == failed(cycles(7))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        # 15 MB/h: 50 bytes in each of 80 requests a second.
        ({"rss_mb": 0.25}, "resident memory of the host"),
        # 20 objects for each of 60 kills.
        ({"blocks": 1200}, "Python's allocated blocks"),
        ({"objects": 1200}, "objects of the collector"),
        ({"fds": 0.1}, "fds at rest"),
        ({"threads": 0.1}, "threads at rest"),
        ({"calls": -3000}, "calls, at both ends"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_grows_is_found(changes: dict[str, float], name: str) -> None:
    """A slow leak of each kind fails its check, and no other."""
    assert [name] == failed(cycles(**changes))


def test_a_p99_that_grows_is_found() -> None:
    """A mode whose slowest calls become twice as slow is named."""
    soak = cycles()
    soak[-3:] = [attrs.evolve(cycle, p99_s={**cycle.p99_s, MODES[1]: 0.0101}) for cycle in soak[-3:]]

    assert [f"p99, {MODES[1]}, at both ends"] == failed(soak)


def test_quantiles() -> None:
    """A histogram's quantiles are right within the width of a bucket."""
    histogram = Histogram()
    for microseconds in range(1, 10_001):
        histogram.add(microseconds / 1e6)

    assert pytest.approx(0.005, rel=0.1) == histogram.quantile(0.5)
    assert pytest.approx(0.0099, rel=0.1) == histogram.quantile(0.99)


def test_a_short_soak_leaves_nothing(node: str, tmp_path: Path) -> None:
    """After each cycle of load and kills the host has the descriptors and threads that it had before."""
    soak = Soak(1, 6.0, tmp_path)

    checks = {check.name: check for check in soak.run()}

    for name in ("fds at rest", "threads at rest", "unexpected errors"):
        assert checks[name].good, soak.table(list(checks.values()))
    assert (tmp_path / "soak-1.csv").read_text().count("\n") > 5
    assert all(cycle.calls and set(MODES) == set(cycle.p99_s) for cycle in soak.cycles)


def test_a_planted_leak_is_found(node: str, tmp_path: Path) -> None:
    """Memory, objects, descriptors and threads that the soak itself leaks are what its checks name."""
    soak = Soak(2, 6.0, tmp_path, ("memory", "objects", "fds", "threads"))

    checks = soak.run()

    found = {check.name for check in checks if not check.good}
    leaked = {"resident memory of the host", "Python's allocated blocks", "objects of the collector"}
    assert leaked | {"fds at rest", "threads at rest"} <= found, soak.table(checks)

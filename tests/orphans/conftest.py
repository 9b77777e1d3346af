"""What the tests of orphans share: hosts that are ended after the test, and the figures of a full run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from orphans.driver import Figures, Host

_figures = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_figures] = Figures()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Return where clean-up times are noted."""
    return request.config.stash[_figures]


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Return a function that starts a host; what is left of it is ended after the test."""
    made: list[Host] = []

    def start(*args: Any, **options: Any) -> Host:
        folder = tmp_path / f"host-{len(made)}"
        folder.mkdir()
        made.append(Host(folder, *args, **options))
        return made[-1]

    yield start
    for host in made:
        host.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr:  # a part of the suite: its figures say little
        return
    ms = config.stash[_figures].ms
    if ms:
        terminalreporter.section("ms from the end of the host until its workers and their descendants are gone")
        for name in sorted(ms):
            values = ms[name]
            terminalreporter.line(
                f"{name:40} {len(values):4} times  median {statistics.median(values):7.1f}  max {max(values):7.1f}"
            )

"""However a host ends, and whatever its workers do: two seconds later nothing of it is left."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from orphans import cells
from orphans.cells import Cell
from orphans.driver import LONG_S, QUICK_S, Figures, Host

IN_THE_SUITE = [Cell(*row) for row in cells.pairwise(cells.FACTORS)]
THE_REST = [cell for cell in cells.full_product() if cell not in set(IN_THE_SUITE)]

FROM_OUTSIDE = {"sigkill": signal.SIGKILL, "sigterm": signal.SIGTERM}


@pytest.mark.parametrize(
    "cell",
    [
        *(pytest.param(cell, id=cell.id) for cell in IN_THE_SUITE),
        *(pytest.param(cell, id=cell.id, marks=pytest.mark.full_matrix) for cell in THE_REST),
    ],
)
def test_nothing_is_left(
    cell: Cell, start_host: Callable[..., Host], figures: Figures, request: pytest.FixtureRequest
) -> None:
    """Workers, their plain children, those in a session of their own, and the guardian go with the host."""
    runtime = {"javascript": "node", "ruby": "ruby"}.get(cell.language)
    if runtime is not None:
        request.getfixturevalue(runtime)
    orderly = cell.expected == "ends" and cell.end in ("exception", "ctrl_c", "sys_exit")
    host = start_host(
        cell.language,
        cell.phase,
        cell.end,
        cell.sibling,
        grace_s=QUICK_S if orderly else LONG_S,
        terminal=cell.end == "ctrl_c",
    )

    end(cell, host)
    host.wait_end()
    took_s = host.wait_gone()

    figures.add(f"{cell.end}, {cell.expected}", took_s)
    assert {"plain", "escaped", "busy", "guardian"} <= {role.split()[0] for role in host.pids}
    assert cell.sibling == "alone" or not host.has_ended("sibling")
    check_status_and_stderr(cell, host)


def end(cell: Cell, host: Host) -> None:
    """End the host as the cell says, and see what the cell expects on the way."""
    if cell.end in FROM_OUTSIDE:
        host.signal(FROM_OUTSIDE[cell.end])
    elif host.terminal is not None:
        host.terminal.press(b"\x03")
    else:
        host.go_on()
    if cell.expected == "lives":
        assert host.busy in host.hear()["alive"]
        assert host.busy in host.living().values()
        host.signal(signal.SIGKILL)
    if cell.expected == "waits":
        assert {"exiting": True} == host.hear()
        assert not host.has_ended("host")
        assert host.busy in host.living().values()
        host.signal(signal.SIGINT)


STATUS = {
    "sigkill": -signal.SIGKILL,
    "sigterm": -signal.SIGTERM,
    "os_exit": 4,
    "exception": 1,
    "ctrl_c": -signal.SIGINT,
    "sys_exit": 3,
    "thread_exit": -signal.SIGKILL,
}


def check_status_and_stderr(cell: Cell, host: Host) -> None:
    """Check that the host's status is its own, and that nobody else has written a traceback."""
    errors = host.errors()

    assert STATUS[cell.end] == host.process.returncode
    if cell.expected == "waits":
        assert errors.startswith("Traceback")
        assert "ValueError: the host's own\n" in errors
    else:
        assert {"exception": 1, "ctrl_c": 1}.get(cell.end, 0) == errors.count("Traceback"), errors


def test_every_pair_is_in_the_suite() -> None:
    """The cells that the suite runs hold every pair of values of any two factors."""
    every = set().union(*(cells.pairs(cell) for cell in cells.full_product()))

    assert every == set().union(*(cells.pairs(cell) for cell in IN_THE_SUITE))
    assert len(IN_THE_SUITE) < 50


def test_every_end_is_judged() -> None:
    """The table says of every end and phase what follows."""
    assert {(cell.end, cell.phase) for cell in cells.full_product()} == set(cells.EXPECTED)

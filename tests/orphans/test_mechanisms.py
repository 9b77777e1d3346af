"""Each mechanism that ends orphans, alone: what it does, and what it cannot do.

Together they leave nothing (`test_matrix`).  Here all but one are switched off in the host, and the table says
which processes stay; those that stay have to be alive when the others have gone.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from integration import scripts
from orphans.cells import LANGUAGES, PHASES, SIBLINGS, pairwise
from orphans.driver import Figures, Host, all_gone

SWITCHED_OFF = {
    # The guardian as it is: groups and run tokens, no parent-death signal.
    "guardian": ("no_signal",),
    # Its list of groups without the tokens, and the other way round.
    "groups": ("no_signal", "no_runs"),
    "tokens": ("no_signal", "no_groups"),
    # The parent-death signal, and what a bridge does at the end of its requests.
    "signal": ("no_guardian",),
    "end of file": ("no_guardian", "no_signal"),
}

DESCENDANTS = frozenset(("plain", "escaped", "bare", "vanished"))
"""Children of a worker: in its group; in a session of their own; in its group without the run's token in their
environment; in a session of their own and without the token."""

STAYS = {
    # Nothing ties it to the host any more: neither group nor environment.
    "guardian": frozenset(("vanished",)),
    "groups": frozenset(("escaped", "vanished")),
    "tokens": frozenset(("bare", "vanished")),
    # The system clears it at fork: it reaches the worker alone.
    "signal": DESCENDANTS,
    "end of file": DESCENDANTS,
}

CANNOT_SEE_THE_END = {
    # A thread of the bridge looks, unless a C call keeps the lock.
    "callable": ("c_call", "stopped", "draining"),
    "python": ("c_call", "stopped", "draining"),
    # One thread, which looks between two calls.
    "javascript": ("loop", "c_call", "stopped", "draining"),
    "ruby": ("starting", "loop", "c_call", "stopped", "draining"),
}
"""In which phases a busy worker does not notice the end of its requests."""

FACTORS = (tuple(SWITCHED_OFF), PHASES, SIBLINGS, LANGUAGES)
IN_THE_SUITE = pairwise(FACTORS)
THE_REST = sorted(set(itertools.product(*FACTORS)) - set(IN_THE_SUITE))


def stays(mechanism: str, phase: str, sibling: str, language: str) -> frozenset[str]:
    """Return the roles of what a mechanism leaves."""
    left = STAYS[mechanism]
    if mechanism == "end of file":
        if sibling == "c_fork":
            return left | {"busy", "other"}  # it holds the pipes open, so there is no end
        if phase in CANNOT_SEE_THE_END[language]:
            return left | {"busy"}
    return left


@pytest.mark.parametrize(
    ("mechanism", "phase", "sibling", "language"),
    [
        *(pytest.param(*cell, id="-".join(cell)) for cell in IN_THE_SUITE),
        *(pytest.param(*cell, id="-".join(cell), marks=pytest.mark.full_matrix) for cell in THE_REST),
    ],
)
def test_alone(
    start_host: Callable[..., Host],
    figures: Figures,
    request: pytest.FixtureRequest,
    mechanism: str,
    phase: str,
    sibling: str,
    language: str,
) -> None:
    """After SIGKILL of the host a mechanism ends what the table says, in time, and nothing else."""
    runtime = {"javascript": "node", "ruby": "ruby"}.get(language)
    if runtime is not None:
        request.getfixturevalue(runtime)
    host = start_host(language, phase, sibling=sibling, switches=SWITCHED_OFF[mechanism], deed=f"bare_{phase}")
    expected = stays(mechanism, phase, sibling, language)
    before = {role.split()[0] for role in host.living()}

    host.signal(signal.SIGKILL)
    host.wait_end()
    took_s = host.wait_gone(stays=expected)

    assert before & expected == {role.split()[0] for role in host.living()}
    assert ("guardian" in before) is (mechanism not in ("signal", "end of file"))
    figures.add(f"{mechanism} alone", took_s)


KILLED_BETWEEN = """
import os, signal, sys
from snakepit import SnakepitExecutor
from snakepit._supervision import spawn
from snakepit._supervision.guardian import GUARDIAN

if sys.argv[1] == "no_signal":
    spawn.find_setpriv = lambda: None

def register(pid, start):
    print(pid, GUARDIAN.pid, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)

GUARDIAN.register = register
SnakepitExecutor(1).submit(pow, 2, 2).result()
"""


@pytest.mark.parametrize("switch", ["", "no_signal"])
def test_killed_between_spawn_and_list(tmp_path: Path, switch: str) -> None:
    """A worker that was made and is on no list yet carries the run's token: its host may be killed there too."""
    host = scripts.start(tmp_path, KILLED_BETWEEN, switch, stdin=subprocess.PIPE)
    assert host.stdout is not None

    try:
        pids = [int(word) for word in host.stdout.readline().split()]
        with all_gone(pids):
            host.communicate("go on\n", timeout=scripts.BOUND_S)
    finally:
        host.kill()
        host.communicate()

    assert 2 == len(pids)
    assert -signal.SIGKILL == host.returncode

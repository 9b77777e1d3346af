"""Finds the workers that dead hosts have left, by the files of the run registry, and ends them.

Runs on a watchdog's thread at the first spawn of a host, and for ``snakepit doctor --orphans``; owns no state.

A process is an orphan when it carries the run token of a row in a dead host's file, or is in the group of such a
leader, whose pid and start time are those of the row.  It gets SIGKILL only while it has the start time that it had
when that was found out.  Nothing goes by name, by pid alone, or by a file whose host may live.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import attrs

from . import procfs as _procfs
from .run_files import HostId, RunFile, Standing, directories, open_directory, read_files, run_of, this_host, tidy

__all__ = ("Orphan", "Sweep", "find_orphans", "sweep_orphans")

END_LIMIT_S = 1.0
"""How long a sweep waits for the exits of what it has killed; arbitrary. The file stays for those that take longer."""
LOOK_LIMIT_S = 0.5
"""How long whoever only looks waits for the ends of execs, which take less than a millisecond each; arbitrary."""
QUIET_PAUSES_S = (0.005, 0.05, 0.1)
"""Pauses before further looks: the first always, all when a host died during a spawn; arbitrary, longer in sum than
a child takes from vfork to exec."""
MAX_ROWS = 200_000
"""Rows that one sweep considers, which bounds its memory; arbitrary. The other files wait for the next one."""


@attrs.frozen
class Orphan:
    """One process that a dead host has left.

    Attributes:
        start: Clock ticks since boot.
        token: The run token of its worker.
        host_pid: The dead host's.
        by_group: Whether only its group tells whose it is.
        spared: Whether it is not ended from here: this process, or one that it descends from.
    """

    pid: int
    pgid: int
    start: int
    token: str
    host_pid: int
    by_group: bool = False
    spared: bool = False

    @property
    def run(self) -> str:
        """Names the pool that it was a worker of."""
        return run_of(self.token)


@attrs.frozen
class Sweep:
    """What a sweep has done.

    Attributes:
        ended: Processes that got SIGKILL.
        left: Those that were still there at the end.
        problems: Why a directory could not be used.
    """

    ended: tuple[Orphan, ...] = ()
    left: tuple[Orphan, ...] = ()
    problems: tuple[OSError, ...] = ()


@attrs.define(eq=False)
class _Survey:
    """All files of all directories, and what the dead ones say together."""

    files: list[tuple[int, RunFile]] = attrs.field(factory=list)
    rows: dict[str, tuple[int, int, HostId]] = attrs.field(factory=dict)
    spawning: bool = False
    problems: list[OSError] = attrs.field(factory=list)


def find_orphans() -> Sweep:
    """Look only; what is found is `Sweep.left`.

    Raises:
        OSError: Out of descriptors, or no process table that could be trusted; raised here.
    """
    with _survey() as survey:
        found, unsure = _find(survey)
        # RACE: 1. an orphan execs, 2. it is looked at, and shows no token for a moment
        # (tests/unit/test_registry_orphans.py::test_looking_sees_an_orphan_in_the_middle_of_an_exec).
        deadline = time.monotonic() + LOOK_LIMIT_S
        while unsure and time.monotonic() < deadline:
            time.sleep(0.002)
            found, unsure = _find(survey)
        return Sweep(left=tuple(found), problems=tuple(survey.problems))


def sweep_orphans() -> Sweep:
    """End the orphans, wait for their exits in bounded time, and put the directories in order.

    Raises:
        OSError: As for `find_orphans`.
    """
    with _survey() as survey:
        ended, left, sure = _end(survey)
        tokens = {orphan.token for orphan in left}
        for directory_fd, file in survey.files:
            # Rows that were not considered, for they name a run of a live host, keep their file.
            done = sure and tokens.isdisjoint(file.tokens) and file.tokens <= survey.rows.keys()
            tidy(directory_fd, file, done)
        return Sweep(tuple(ended), tuple(left), tuple(survey.problems))


@contextlib.contextmanager
def _survey() -> Iterator[_Survey]:
    here = this_host()
    if here is None:
        raise OSError("there is no process table in which processes could be verified")
    survey = _Survey()
    with contextlib.ExitStack() as stack:
        for path in directories():
            try:
                directory_fd = open_directory(path, make=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                survey.problems.append(error)
                continue
            stack.callback(os.close, directory_fd)
            _consider(survey, directory_fd, here)
        # Whatever a dead host's file says: a run of a live one is not touched.
        yield _without_live_runs(survey)


def _consider(survey: _Survey, directory_fd: int, here: HostId) -> None:
    for file in read_files(directory_fd, here):
        if file.standing is Standing.DEAD and file.host is not None:
            if len(survey.rows) + len(file.tokens) > MAX_ROWS:
                continue
            survey.spawning = survey.spawning or bool(file.spawning)
            for token in file.spawning:
                survey.rows[token] = (0, 0, file.host)
            for token, (pid, start) in file.rows.items():
                survey.rows[token] = (pid, start, file.host)
        elif file.standing is Standing.LIVE:
            # Of these only the runs are of use: a few bytes a pool.
            runs = {run_of(token) for token in file.tokens}
            file = attrs.evolve(file, rows={f"{run}-0": (0, 0) for run in runs}, spawning=frozenset())
        survey.files.append((directory_fd, file))


def _without_live_runs(survey: _Survey) -> _Survey:
    live = {run_of(token) for _, file in survey.files if file.standing is Standing.LIVE for token in file.rows}
    if live:
        survey.rows = {token: row for token, row in survey.rows.items() if run_of(token) not in live}
    return survey


def _find(survey: _Survey) -> tuple[list[Orphan], bool]:
    """Return the orphans that are there now, and whether another look is needed to be sure."""
    rows = survey.rows
    if not rows:
        return [], False
    table = _procfs.process_table() or []
    ours = _this_process_and_its_ancestors()
    oldest = min(host.start for _, _, host in rows.values())
    found: dict[int, Orphan] = {}
    tokens: dict[int, str] = {}
    unsure = False
    for record in table:
        if record.start < oldest or record.pid <= 1:
            continue
        token = _procfs.find_token(record.pid)
        unsure = unsure or token is None
        tokens[record.pid] = token or ""
        if token in rows:
            host = rows[token][2]
            found[record.pid] = Orphan(
                record.pid, record.pgid, record.start, token, host.pid, spared=record.pid in ours
            )
    # A number of a group means this group as long as its leader lives; so it is looked at after the table.
    leaders = {
        orphan.pid: orphan
        for orphan in found.values()
        if orphan.pid == orphan.pgid
        and (orphan.pid, orphan.start) == rows[orphan.token][:2]
        and _procfs.process_start(orphan.pid) == orphan.start
    }
    for record in table:
        leader = leaders.get(record.pgid)
        # One with a token of its own is judged by that.
        if leader is None or record.start < leader.start or record.pid in found:
            continue
        if not tokens.get(record.pid):
            orphan = attrs.evolve(leader, pid=record.pid, start=record.start, by_group=True)
            found[record.pid] = attrs.evolve(orphan, spared=record.pid in ours)
    return sorted(found.values(), key=lambda orphan: orphan.pid), unsure


def _end(survey: _Survey) -> tuple[list[Orphan], list[Orphan], bool]:
    """Return (what got SIGKILL, what was still there at the end, whether that is certain)."""
    ended: dict[tuple[int, int], Orphan] = {}
    if not survey.rows:
        return [], [], True
    deadline = time.monotonic() + END_LIMIT_S
    # RACE: (1) a host has made a child, (2) the host is killed, (3) the child execs and only now shows its token
    # (tests/unit/test_registry_orphans.py::test_a_worker_that_shows_its_token_late).
    # And: (1) the processes are listed, (2) an orphan forks and exits, (3) it is looked at.  Hence a look after it.
    pauses = list(QUIET_PAUSES_S if survey.spawning else QUIET_PAUSES_S[:1])
    while True:
        found, unsure = _find(survey)
        targets = [orphan for orphan in found if not orphan.spared]
        late = time.monotonic() > deadline
        # Whom only the group tells goes first: without its leader nobody could say whose it is.
        awaited = {orphan.pgid for orphan in targets if orphan.by_group and not late}
        for orphan in targets:
            if orphan.pid in awaited and not orphan.by_group:
                continue
            if _procfs.kill_verified(orphan.pid, orphan.start):
                ended[orphan.pid, orphan.start] = orphan
        if late or not (targets or unsure or pauses):
            return list(ended.values()), found, not (unsure or targets)
        time.sleep(0.002 if targets or unsure else pauses.pop(0))


def _this_process_and_its_ancestors() -> set[int]:
    pids: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        try:
            with open(f"{_procfs.PROC}/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return pids

"""Ends what exited workers left behind: the rest of their groups, and descendants that left the group.

THREAD: the watchdog's; owns no state.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from . import procfs as _procfs
from .ward import Ward

__all__ = ("Left", "kill_left")

MOST_LISTINGS = 5
"""How often the processes are listed in one look at most; arbitrary, twice is usual."""


@attrs.frozen
class Left:
    """What one look has found.

    Attributes:
        pids: ``{worker_id: [pid]}`` of what was still there.
        unsure: Whether something could not be judged, so that only another look can say that nothing is left.
    """

    pids: dict[str, list[int]]
    unsure: bool = False


def kill_left(exited: Sequence[Ward]) -> Left:
    """Send SIGKILL to what is left.

    Args:
        exited: At least one; their leaders have exited and are not reaped, unless by somebody else.
    """
    left: dict[str, list[int]] = {ward.worker_id: [] for ward in exited}
    try:
        known = _procfs.process_ids()
        if known is not None:
            for ward in exited:
                left[ward.worker_id] += _still_ending(ward)
            return Left(left, _kill_listed(exited, left, known))
    except OSError:
        # Out of descriptors: nothing can be seen now.
        return Left(left, unsure=True)
    for ward in exited:
        ward.child.poll()  # a zombie leader would count as a member
        if not ward.child.group_is_empty():
            left[ward.worker_id].append(ward.child.pid)
    return Left(left)


def _kill_listed(exited: Sequence[Ward], left: dict[str, list[int]], listed: set[int]) -> bool:
    """Kill what is listed and what turns up meanwhile; return whether something could not be judged."""
    # A leader that somebody else has reaped no longer reserves its number.
    groups = {ward.child.pgid: ward for ward in exited if not ward.child.reaped}
    tokens: dict[str | None, Ward] = {ward.token: ward for ward in exited}
    leaders = {ward.child.pid for ward in exited}
    oldest = min(ward.start for ward in exited)
    unsure = False
    new = listed
    for _ in range(MOST_LISTINGS):
        vanished = False
        for pid in new - leaders:
            record = _procfs.process_record(pid)
            if record is None or record.ended:
                vanished = vanished or record is None or record.start >= oldest
                continue
            member = groups.get(record.pgid)
            if member is not None:
                member.child.kill_group()
                left[member.worker_id].append(pid)
            elif record.start >= oldest:
                # It may have left the group by setsid; its environment still tells whose it is.
                token = _procfs.find_token(pid)
                # RACE: 1. an escaped descendant execs, 2. it is looked at between its old and its new
                # environment (tests/unit/test_sweep.py::test_a_descendant_in_the_middle_of_an_exec).
                unsure = unsure or token is None
                escaped = tokens.get(token)
                if escaped is not None and escaped.killed.get(pid) != record.start:
                    if _procfs.kill_verified(pid, record.start):
                        escaped.killed[pid] = record.start
                        left[escaped.worker_id].append(pid)
                    else:
                        vanished = True
        # RACE: 1. the processes are listed, 2. an escaped descendant forks, 3. it exits, 4. it is looked at.
        # Who has gone since the listing may have left one that is not on it: what is new is looked at too
        # (tests/unit/test_sweep.py::test_a_descendant_that_forks_and_exits_behind_the_listing).
        if not vanished:
            return unsure
        new = (_procfs.process_ids() or set()) - listed
        listed = listed | new
    return unsure


def _still_ending(ward: Ward) -> list[int]:
    """Return those that were killed at an earlier look and have not ended yet."""
    # RACE: 1. an escaped descendant is killed, 2. it gives up its memory, and its environment with it, 3. the next
    # look finds no token, 4. the kernel ends it.  So it is known by its pid and start time until it has ended
    # (tests/unit/test_sweep.py::test_a_killed_descendant_is_waited_for_until_it_has_ended).
    for pid, start in list(ward.killed.items()):
        record = _procfs.process_record(pid)
        if record is None or record.ended or record.start != start:
            del ward.killed[pid]
    return list(ward.killed)

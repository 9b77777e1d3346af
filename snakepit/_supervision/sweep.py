"""Ends what exited workers left behind: the rest of their groups, and descendants that left the group.

THREAD: the watchdog's; owns no state.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import procfs as _procfs
from .ward import Ward

__all__ = ("kill_left",)


def kill_left(exited: Sequence[Ward]) -> dict[str, list[int]]:
    """Send SIGKILL to what is left and return ``{worker_id: [pid]}`` of what was still there.

    Args:
        exited: At least one; their leaders have exited and are not reaped, unless by somebody else.
    """
    left: dict[str, list[int]] = {ward.worker_id: [] for ward in exited}
    table = _procfs.process_table()
    if table is None:
        for ward in exited:
            ward.child.poll()  # a zombie leader would count as a member
            if not ward.child.group_is_empty():
                left[ward.worker_id].append(ward.child.pid)
        return left
    # A leader that somebody else has reaped no longer reserves its number.
    groups = {ward.child.pgid: ward for ward in exited if not ward.child.reaped}
    tokens = {ward.token: ward for ward in exited}
    oldest = min(ward.start for ward in exited)
    for record in table:
        member = groups.get(record.pgid)
        if member is not None:
            member.child.kill_group()
            left[member.worker_id].append(record.pid)
        elif record.start >= oldest:
            # It may have left the group by setsid; its environment still tells whose it is.
            escaped = tokens.get(_procfs.run_token(record.pid))
            if escaped is not None and _procfs.kill_verified(record.pid, record.start):
                left[escaped.worker_id].append(record.pid)
    return left

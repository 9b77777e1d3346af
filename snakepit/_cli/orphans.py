"""``snakepit doctor --orphans`` and ``--kill-orphans``: the workers that dead hosts have left.

Runs on the main thread; owns nothing.  What an orphan is, and how it is ended, is decided in ``_supervision/orphans``,
as for the sweep at the start of a host.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from .._supervision import procfs as _procfs
from .._supervision.orphans import Orphan, Sweep, find_orphans, sweep_orphans
from .._supervision.run_files import VARIABLE, directories, open_directory, this_host
from .._text import escape
from .terminal import make_table

__all__ = ("describe_registry", "run_orphans")

UNKNOWN = 3
COMMAND_BYTES = 4096
"""How much of a command line is shown; arbitrary."""


def run_orphans(console: Console, as_json: bool, kill: bool) -> int:
    """List the orphans, or end them, and print what was found.

    Returns:
        0 if there are none (any more), 1 if there are some, 3 if that cannot be found out.
    """
    try:
        listed = find_orphans()
        # What has ended shows no command line any more.
        described = {(orphan.pid, orphan.start): _describe(orphan) for orphan in listed.left}
        found = sweep_orphans() if kill else listed
    except OSError as error:
        if as_json:
            console.file.write(json.dumps({"ok": False, "problems": [str(error)]}, indent=2) + "\n")
        print(f"snakepit: orphans cannot be found here: {error}", file=sys.stderr)
        return UNKNOWN
    status = UNKNOWN if found.problems else 1 if found.left else 0
    ended, left = (
        [described.get((orphan.pid, orphan.start)) or _describe(orphan) for orphan in orphans]
        for orphans in (found.ended, found.left)
    )
    if as_json:
        problems = [str(problem) for problem in found.problems]
        report = {"ok": status == 0, "orphans": left, "ended": ended, "problems": problems}
        console.file.write(json.dumps(report, indent=2) + "\n")
        return status
    if ended:
        _show(console, "Ended", ended)
    if left:
        _show(console, "Could not be ended" if kill else "Orphans", left)
    _conclude(console, found, kill)
    return status


def describe_registry() -> str:
    """Return where this host would write down its workers, and what speaks against it."""
    if this_host() is None:
        return "none: no process table in which processes could be verified"
    try:
        places = directories()
        if not places:
            return f"switched off by {VARIABLE}"
        os.close(open_directory(places[0], make=False))
    except FileNotFoundError as error:
        return f"{error.filename} (made by the first pool)"
    except OSError as error:
        return f"none: {error}"
    return places[0]


def _describe(orphan: Orphan) -> dict[str, Any]:
    return {
        "pid": orphan.pid,
        "group": orphan.pgid,
        "age_s": _age_s(orphan.start),
        "command": _command(orphan.pid),
        "run": orphan.run,
        "host": orphan.host_pid,
    }


def _age_s(start: int) -> float | None:
    try:
        with open(f"{_procfs.PROC}/uptime", encoding="ascii") as file:
            uptime_s = float(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return round(max(0.0, uptime_s - start / os.sysconf("SC_CLK_TCK")), 1)


def _command(pid: int) -> str:
    try:
        with open(f"{_procfs.PROC}/{pid}/cmdline", "rb") as file:
            words = file.read(COMMAND_BYTES).rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    return escape(b" ".join(words))


def _show(console: Console, title: str, orphans: Sequence[dict[str, Any]]) -> None:
    table = make_table(console, ">pid", ">group", ">age", "run", ">dead host", "command", title=title)
    for orphan in orphans:
        age_s = orphan["age_s"]
        age = "-" if age_s is None else f"{age_s:.0f} s"
        words = [orphan["pid"], orphan["group"], age, orphan["run"], orphan["host"]]
        table.add_row(*map(str, words), Text(orphan["command"]))
    console.print(table)


def _conclude(console: Console, found: Sweep, kill: bool) -> None:
    for problem in found.problems:
        console.print(f"- not looked at: {problem}", soft_wrap=True)
    if found.left and not kill:
        console.print("snakepit doctor --kill-orphans ends them; so does the next start of a pool")
    elif not found.left and not found.problems:
        console.print("no orphans are left" if found.ended else "no orphans")

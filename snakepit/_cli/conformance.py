"""``snakepit conformance``: a bridge, in any language, against the rules of the frame protocol.

Runs on the main thread; owns nothing.  What is tried, and what counts, is decided in ``_conformance``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from .._conformance.finding import Finding
from .._conformance.report import MARKS, describe_finding, describe_outcome, make_badge, make_record
from .._conformance.runner import Outcome, Status, Suite, select_cases
from .._conformance.survey import NoStartError, Survey, Target
from .terminal import write_json

__all__ = ("run_conformance",)

USAGE = 2
STYLES: dict[Status, str] = {"passed": "green", "failed": "bold red", "not applicable": "dim", "cannot": "yellow"}


def run_conformance(
    console: Console, argv: Sequence[str], level: int, as_json: bool, only: Sequence[str], timeout_s: float
) -> int:
    """Try one bridge and print what was found.

    Returns:
        0 if nothing was found, 1 if something was, 2 if it could not be tried.
    """
    try:
        cases = select_cases(level, only)
        suite = Suite(Target(tuple(argv), timeout_s), level)
        survey = suite.survey
    except (ValueError, NoStartError) as error:
        print(f"snakepit conformance: {error}", file=sys.stderr)
        return USAGE
    except Finding as finding:
        # Without an answer to the first ping no case could say more than this.
        return _conclude_early(console, argv, level, as_json, finding)
    outcomes = []
    for outcome in suite.run_all(cases):
        outcomes.append(outcome)
        if not as_json:
            _show(console, outcome)
    if as_json:
        _write(console, argv, level, survey, outcomes)
    else:
        console.print(Text(make_badge(level, outcomes)), soft_wrap=True)
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _conclude_early(console: Console, argv: Sequence[str], level: int, as_json: bool, finding: Finding) -> int:
    (case,) = select_cases(level, ["handshake" if level else "level0-host-is-served"])
    outcome = Outcome(case, "failed", finding=finding)
    if as_json:
        _write(console, argv, level, None, [outcome])
    else:
        _show(console, outcome)
        console.print(Text(f"{make_badge(level, [outcome])}: nothing else was tried"), soft_wrap=True)
    return 1


def _show(console: Console, outcome: Outcome) -> None:
    mark = Text(f"{MARKS[outcome.status]:<7} ", STYLES[outcome.status])
    # A reason is read to its end; a title may be cut at the terminal's edge.
    whole = outcome.status == "cannot"
    console.print(mark + Text(describe_outcome(outcome)), no_wrap=not whole, overflow="ellipsis", soft_wrap=whole)
    for line in describe_finding(outcome.finding) if outcome.finding else ():
        console.print(Text(f"        {line}"), soft_wrap=True)


def _write(
    console: Console, argv: Sequence[str], level: int, survey: Survey | None, outcomes: Sequence[Outcome]
) -> None:
    write_json(console.file, make_record(argv, level, survey, outcomes), indent=2)

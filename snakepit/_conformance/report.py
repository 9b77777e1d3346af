"""The outcomes of a run as text and as JSON.

Pure; used on any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from .case import GROUPS
from .finding import Finding
from .runner import Outcome, Status
from .survey import Survey

__all__ = ("MARKS", "describe_finding", "describe_outcome", "make_badge", "make_record")

MARKS: dict[Status, str] = {"passed": "ok", "failed": "FAIL", "not applicable": "n/a", "cannot": "cannot"}


def describe_outcome(outcome: Outcome) -> str:
    """Return the line of a case, without its mark."""
    words = outcome.reason if outcome.reason is not None else outcome.case.title
    return f"{outcome.case.group:<11} {outcome.case.name}: {words}"


def describe_finding(finding: Finding) -> Iterator[str]:
    """Yield the lines of a finding; those of a text with several are indented alike."""
    yield finding.what
    for label, text in finding.parts().items():
        first, *more = text.splitlines()
        yield f"{label:<8}  {first}"
        yield from (f"{'':<8}  {line}" for line in more)


def make_badge(level: int, outcomes: Sequence[Outcome]) -> str:
    """Return the line of the whole run: ``level 1: 61/61``, and what was not run."""
    counts = Counter(outcome.status for outcome in outcomes)
    badge = f"level {level}: {counts['passed']}/{counts['passed'] + counts['failed']}"
    further = [f"{counts[status]} {status}" for status in ("not applicable", "cannot") if counts[status]]
    return f"{badge} ({', '.join(further)})" if further else badge


def make_record(argv: Sequence[str], level: int, survey: Survey | None, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return a run as ``{"badge", "level", "argv", "language", "runtime", "bridge", "cases": [...]}``."""
    protocol = survey.protocol if survey is not None else {}
    return {
        "badge": make_badge(level, outcomes),
        "level": level,
        "argv": list(argv),
        **{key: protocol.get(key) for key in ("language", "runtime", "bridge")},
        "passed": sum(outcome.status == "passed" for outcome in outcomes),
        "applicable": sum(outcome.status in ("passed", "failed") for outcome in outcomes),
        "cases": [
            {
                "name": outcome.case.name,
                "group": outcome.case.group,
                "about": GROUPS[outcome.case.group],
                "title": outcome.case.title,
                "level": outcome.case.level,
                "status": outcome.status,
                "limit": outcome.case.limit if outcome.status == "cannot" else None,
                "reason": outcome.reason,
                "finding": {"what": outcome.finding.what, **outcome.finding.parts()} if outcome.finding else None,
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in outcomes
        ],
    }

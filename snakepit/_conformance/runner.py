"""Runs the cases against one bridge, one after the other.

Runs on the caller's thread; a ``Suite`` owns the survey of its bridge.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from . import cases as _cases
from .case import CASES, Case, Trial
from .finding import Finding
from .limits import KNOWN_LIMITS
from .survey import Survey, Target, take_survey

__all__ = ("Outcome", "Status", "Suite", "select_cases")

Status = Literal["passed", "failed", "not applicable", "cannot"]
SERVED = "level0-host-is-served"
assert _cases.__all__, "the import collects the cases"


@dataclass(frozen=True)
class Outcome:
    """How one case ended.

    Attributes:
        case: The case.
        status: Of it.
        reason: Why it was not run, for ``"not applicable"`` and ``"cannot"``.
        finding: What was wrong, for ``"failed"``.
        seconds: How long it took.
    """

    case: Case
    status: Status
    reason: str | None = None
    finding: Finding | None = None
    seconds: float = 0.0


def select_cases(level: int, only: Sequence[str] = ()) -> list[Case]:
    """Return the cases of a level and those below it, in the order of reports.

    Args:
        level: 0 or 1.
        only: Names or patterns with ``*``; empty: all.

    Raises:
        ValueError: A name that fits no case; raised here.
    """
    cases = [case for case in CASES if case.level <= level]
    for pattern in only:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            names = ", ".join(case.name for case in cases)
            raise ValueError(f"no case of level {level} is named {pattern!r}; there are: {names}")
    return [case for case in cases if not only or any(fnmatchcase(case.name, pattern) for pattern in only)]


class Suite:
    """The cases of one bridge.

    Args:
        target: The bridge.
        level: Highest level of the hosts that it is tried with, 0 or 1.
    """

    def __init__(self, target: Target, level: int = 1) -> None:
        self.target = target
        self.level = level

    @functools.cached_property
    def survey(self) -> Survey:
        """What the bridge offers; it is started when this is first looked at.

        Raises:
            NoStartError: It did not start; raised here.
            Finding: Its first answers are wrong; raised here.
        """
        return take_survey(self.target, self.level)

    @functools.cached_property
    def _serves_level_0(self) -> bool:
        (served,) = (case for case in CASES if case.name == SERVED)
        return self.level == 0 or self.run(served).status == "passed"

    def reason_to_skip(self, case: Case) -> tuple[Status, str] | None:
        """Return why a case is not run, if it is not."""
        survey = self.survey
        language = survey.language
        if case.languages and language not in case.languages:
            return "not applicable", f"it is for {' and '.join(sorted(case.languages))}"
        if case.level and not survey.protocol and case.name != "handshake":
            return "not applicable", "the bridge stays at level 0"
        if not case.level and case.name != SERVED and not self._serves_level_0:
            return "not applicable", "a host of level 0 is not served"
        limits = KNOWN_LIMITS.get(language or "", {})
        if case.limit is not None and case.limit in limits:
            return "cannot", f"{language}: {limits[case.limit]}"
        missing = sorted(case.needs - survey.offers)
        if missing:
            return "not applicable", f"the bridge does not have: {', '.join(missing)}"
        return None

    def run(self, case: Case) -> Outcome:
        """Run one case, or say why not."""
        skipped = self.reason_to_skip(case)
        return self.try_out(case) if skipped is None else Outcome(case, *skipped)

    def try_out(self, case: Case) -> Outcome:
        """Run one case, whatever speaks against it."""
        began = time.monotonic()
        try:
            case.run(Trial(self.target, self.survey, case.level))
        except Finding as finding:
            return Outcome(case, "failed", finding=finding, seconds=time.monotonic() - began)
        except OSError as error:
            gone = Finding(f"the bridge cannot be started any more: {error}")
            return Outcome(case, "failed", finding=gone, seconds=time.monotonic() - began)
        except (LookupError, TypeError, AttributeError) as error:
            # Cases take replies apart as the protocol has them; a mistake in a case looks the same.
            line = traceback.extract_tb(error.__traceback__)[-1].line
            what = f"a reply has another form than the case needs: {type(error).__name__}: {error}"
            other = Finding(what, hint=f"the case reads it so: {line}")
            return Outcome(case, "failed", finding=other, seconds=time.monotonic() - began)
        return Outcome(case, "passed", seconds=time.monotonic() - began)

    def run_all(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """Yield the outcome of each case that is for the bridge's language, as it ends."""
        for case in cases:
            if not case.languages or self.survey.language in case.languages:
                yield self.run(case)

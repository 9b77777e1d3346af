"""Writes the table of docs/languages.md: each rule of the protocol by each language.

``python tests/conformance/table.py`` tries every bridge of the checkout whose runtime is here, or takes the outputs of
``snakepit conformance --json`` that it is given.  Runs on the main thread, owns what stands between the two marks.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from conformance.driver import find_bridges, prepare, suite_of  # noqa: E402 - run as a script, it needs the paths above

from snakepit._conformance.case import GROUPS  # noqa: E402
from snakepit._conformance.report import make_record  # noqa: E402
from snakepit._conformance.runner import select_cases  # noqa: E402

PAGE = ROOT / "docs" / "languages.md"
BEGIN, END = "<!-- table begins -->\n", "<!-- table ends -->\n"
NAMES = {"javascript": "JavaScript", "php": "PHP"}


def try_bridges() -> Iterator[dict[str, Any]]:
    """Yield the record of each bridge; of Python that of the newest interpreter."""
    chosen = {bridge.language: bridge for bridge in find_bridges() if shutil.which(bridge.runtime)}
    for bridge in chosen.values():
        prepare(bridge)
        suite = suite_of(bridge)
        outcomes = list(suite.run_all(select_cases(1)))
        record = make_record(suite.target.argv, 1, suite.survey, outcomes)
        print(f"{bridge.language}: {record['badge']}", file=sys.stderr)
        yield record


def make_table(records: Sequence[dict[str, Any]]) -> str:
    """Return the table and its notes in Markdown."""
    heads = [f"{_name(record)} {record['runtime']}" for record in records]
    lines = [f"| rule or section | {' | '.join(heads)} |", "|---" * (1 + len(records)) + "|"]
    for group, about in GROUPS.items():
        title = about if about.startswith("Section") else f"{group.capitalize()}: {about}"
        cells = [_cell(record, [case for case in record["cases"] if case["group"] == group]) for record in records]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    totals = [f"**{record['passed']}/{record['applicable']}**" for record in records]
    lines.append(f"| **All** | {' | '.join(totals)} |")
    notes = {
        _note(record, case): f"{_name(record)} cannot keep `{case['limit']}`: {case['reason'].partition(': ')[2]}."
        for record in records
        for case in record["cases"]
        if case["limit"]
    }
    lines += ["", *(f"[^{note}]: {text}" for note, text in notes.items())]
    return "\n".join(lines).rstrip("\n") + "\n"


def _name(record: dict[str, Any]) -> str:
    language: str = record["language"]
    return NAMES.get(language, language.capitalize())


def _note(record: dict[str, Any], case: dict[str, Any]) -> str:
    return f"{record['language']}-{case['limit']}"


def _cell(record: dict[str, Any], cases: Iterable[dict[str, Any]]) -> str:
    cases = list(cases)
    counts = Counter(case["status"] for case in cases)
    due = counts["passed"] + counts["failed"]
    words = [f"{counts['passed']}/{due}"] if due else []
    notes = dict.fromkeys(f"[^{_note(record, case)}]" for case in cases if case["limit"])
    return " ".join([*words, *notes]) or "-"


def main(words: Sequence[str]) -> int:
    """Write the table; return the exit status: 1 if a bridge failed a case."""
    records = [json.loads(Path(word).read_text("utf-8")) for word in words] or list(try_bridges())
    before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"{PAGE} has not the two marks {BEGIN.strip()} and {END.strip()}", file=sys.stderr)
        return 2
    PAGE.write_text(f"{before}{BEGIN}\n{make_table(records)}\n{END}{after}", "utf-8")
    return int(any(record["passed"] < record["applicable"] for record in records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

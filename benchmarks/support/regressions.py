"""Which ratios have become worse than the recorded ones.

The record is ``{"commit": str, "machine": {...}, "rows": {id: {"value": float, "op": str, "spread": [min, max]}}}``,
with judged ratios only.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

TOLERANCE = 0.2
"""Share by which a ratio may be worse than the recorded one."""


class Worse(NamedTuple):
    """A row that has become worse.

    Attributes:
        row_id: Its id; what stands before the first dot is its script.
        recorded: Its recorded value.
        value: Its value now, or None where it was not measured.
        by: Share by which it is worse.
    """

    row_id: str
    recorded: float
    value: float | None
    by: float

    @property
    def script(self) -> str:
        """The script that measures it."""
        return self.row_id.partition(".")[0]

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.row_id}: not measured any more; {self.recorded:.2f} x was recorded"
        return f"{self.row_id}: {self.value:.2f} x, {self.by:.0%} worse than the recorded {self.recorded:.2f} x"


def record(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the record of the judged ratios of some results; of several runs the median, so that luck is no record."""
    made: dict[str, Any] = {"commit": "", "machine": {}, "rows": {}}
    values: dict[str, list[float]] = {}
    for content in results:
        made["commit"] = content["commit"]
        made["machine"] = {key: content["machine"][key] for key in ("processor", "processors", "system")}
        for row in content["rows"]:
            if row["unit"] != "x" or not row["goal_op"]:
                continue
            values.setdefault(row["id"], []).append(row["value"])
            low, high = (round(bound, 3) for bound in row["spread"])
            old = made["rows"].get(row["id"], {"spread": [low, high]})
            made["rows"][row["id"]] = {
                "value": round(statistics.median(values[row["id"]]), 3),
                "op": row["goal_op"],
                "spread": [min(low, old["spread"][0]), max(high, old["spread"][1])],
            }
    return made


def read_record(file: Path) -> dict[str, Any]:
    """Return the record of a file.

    Raises:
        SystemExit: There is none.
    """
    if not file.exists():
        raise SystemExit(f"{file} does not exist; `make bench-record` writes it")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def better(op: str, one: float, other: float) -> float:
    """Return the better of two values of a row."""
    return min(one, other) if op == "<=" else max(one, other)


def compare(recorded: dict[str, Any], values: dict[str, float]) -> list[Worse]:
    """Return the rows that are more than the tolerance worse than the record says, the worst first.

    Args:
        recorded: See ``record``.
        values: What was measured now, by id.
    """
    found = []
    for row_id, row in recorded["rows"].items():
        value, old = values.get(row_id), row["value"]
        if value is None:
            found.append(Worse(row_id, old, None, 1.0))
            continue
        by = value / old - 1 if row["op"] == "<=" else 1 - value / old
        if by > TOLERANCE:
            found.append(Worse(row_id, old, value, by))
    return sorted(found, key=lambda worse: -worse.by)

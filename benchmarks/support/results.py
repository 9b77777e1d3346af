"""Options, statistics, and what every script hands on: rows with their goals, tables and lines for plots.

The JSON of a script is::

    {"script": str, "commit": str, "machine": {...}, "versions": {name: version}, "sample": str, "quick": bool,
     "rows": [{"id": str, "question": str, "goal": str, "goal_op": "<=" | ">=" | "", "goal_value": float | null,
               "value": float, "spread": [min, max], "unit": "x" | ..., "met": bool | null, "details": {...}}],
     "tables": [{"title": str, "columns": [str], "rows": [[str]]}],
     "plots": [{"id": str, "title": str, "x": str, "y": str, "lines": {name: [[x, y]]}}]}

A row's value is the median over rounds, its spread the least and the largest of them.  The unit "x" is a ratio; only
ratios are compared from run to run, since absolute figures of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("snakepit-pool", "loky", "pebble", "mpire", "cloudpickle", "msgspec", "numpy", "scikit-learn", "ray")


def options(description: str | None, full: dict[str, int], quick: dict[str, int]) -> argparse.Namespace:
    """Parse the options of a script.

    Args:
        description: The script's docstring.
        full: Its numbers, ``{option: default}``.
        quick: Those that ``--quick`` replaces.

    Returns:
        The numbers by name, and ``json`` (a Path or None) and ``quick``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    for name, value in full.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{value}; quick: {quick.get(name, value)}")
    given = parser.parse_args()
    for name, value in full.items():
        if getattr(given, name) is None:
            setattr(given, name, quick.get(name, value) if given.quick else value)
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(given, name)}")
    return given


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which ``share`` of the sample lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratios round by round: both sides of each had the same neighbours."""
    return [value / other for value, other in zip(values, others, strict=True)]


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(columns)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def figure(value: float) -> str:
    """Return a number with about three digits that matter."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def commit() -> str:
    """Return the checkout's commit, with a mark when it was changed since."""
    command = ["git", "describe", "--always", "--dirty=+changes"]
    try:
        name = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name.stdout.strip()


def machine() -> dict[str, Any]:
    """Return what the figures depend on, ``load_1min`` of before the script's own work included."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = f"{model}, {line.partition(':')[2].strip()}"
                break
    except OSError:
        pass
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of the interpreter and of every contender that is installed."""
    found = {"CPython": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Report:
    """Collects the rows of one script, prints them, and writes the JSON.

    Args:
        script: The script's name without ``.py``.
        sample: Its size, in words.
        given: The script's options.
    """

    def __init__(self, script: str, sample: str, given: argparse.Namespace) -> None:
        self._given = given
        self._began = time.monotonic()
        self._content: dict[str, Any] = {
            "script": script,
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "sample": sample,
            "quick": given.quick,
            "rows": [],
            "tables": [],
            "plots": [],
        }

    def row(
        self,
        name: str,
        question: str,
        values: Sequence[float],
        op: str = "",
        goal: float | None = None,
        against: str = "",
        unit: str = "x",
        **details: Any,
    ) -> None:
        """Add a row.

        Args:
            name: Its id within the script.
            question: What was asked.
            values: One a round.
            op: "<=" or ">="; "" for a figure that is shown and not judged.
            goal: What the median has to reach.
            against: In words, what the ratio is to; for any other unit, more words about the goal.
            unit: "x", "us", "1/s", ...
            **details: Anything else that JSON can carry.
        """
        value = median(values)
        unit_text = " x" if unit == "x" else f" {unit}"
        text = against if goal is None else f"{op} {goal:,g}{unit_text} {against}".strip()
        met = None if goal is None else value <= goal if op == "<=" else value >= goal
        self._content["rows"].append(
            {
                "id": f"{self._content['script']}.{name}",
                "question": question,
                "goal": text,
                "goal_op": op,
                "goal_value": goal,
                "value": value,
                "spread": [min(values), max(values)],
                "unit": unit,
                "met": met,
                "details": {"rounds": len(values), **details},
            }
        )

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table of figures that are shown beside the rows."""
        cells = [list(row) for row in rows]
        self._content["tables"].append({"title": title, "columns": list(columns), "rows": cells})

    def plot(self, name: str, title: str, x: str, y: str, lines: dict[str, Sequence[tuple[float, float]]]) -> None:
        """Add lines for a plot with logarithmic axes, ``{name: [(x, y)]}``."""
        script = self._content["script"]
        self._content["plots"].append({"id": f"{script}-{name}", "title": title, "x": x, "y": y, "lines": lines})

    def finish(self) -> None:
        """Print everything, and write it where ``--json`` says."""
        self._content["seconds"] = round(time.monotonic() - self._began, 1)
        print(header(self._content), end="\n\n")
        print(table(ROW_COLUMNS, (row_cells(row) for row in self._content["rows"])))
        for each in self._content["tables"]:
            print(f"\n{each['title']}\n")
            print(table(each["columns"], each["rows"]))
        sys.stdout.flush()
        if self._given.json is not None:
            self._given.json.parent.mkdir(parents=True, exist_ok=True)
            self._given.json.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")


def header(content: dict[str, Any]) -> str:
    """Return what figures need beside them: script, commit, machine, versions, sample."""
    host = content["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return (
        f"`benchmarks/{content['script']}.py` at `{content['commit']}`: {host['processor']},"
        f" {host['processors']} processors, load {host['load_1min']} before, {host['system']}; {packages};"
        f" {content['sample']}; {content['seconds']:.0f} s."
    )


ROW_COLUMNS = ("question", "goal", "median", "spread over rounds", "met")


def row_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row's cells under ``ROW_COLUMNS``."""
    unit = "" if row["unit"] == "x" else f" {row['unit']}"
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    low, high = row["spread"]
    return (row["question"], row["goal"], figure(row["value"]) + unit, f"{figure(low)} to {figure(high)}", met)

"""What the benchmarks write: results of a script, the record of ratios, and the tables of a page."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def regressions() -> ModuleType:
    """Return the module that compares; the benchmarks are scripts and no package."""
    spec = importlib.util.spec_from_file_location("regressions", BENCHMARKS / "support" / "regressions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(row_id: str, op: str, value: float, unit: str = "x") -> dict[str, Any]:
    """Return a row as scripts write it."""
    return {
        "id": row_id,
        "question": "how fast",
        "goal": f"{op} 2 x others",
        "goal_op": op,
        "goal_value": 2 if op else None,
        "value": value,
        "spread": [value / 2, value * 2],
        "unit": unit,
        "met": (value <= 2 if op == "<=" else value >= 2) if op else None,
        "details": {},
    }


def content(script: str, *rows: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a script."""
    return {
        "script": script,
        "commit": "abc1234",
        "machine": {"processor": "x", "processors": 2, "system": "Linux", "load_1min": 0.1},
        "versions": {"CPython": "3.11.7"},
        "sample": "3 rounds",
        "seconds": 1.0,
        "quick": True,
        "rows": list(rows),
        "tables": [{"title": "More", "columns": ["a"], "rows": [["7"]]}],
        "plots": [],
    }


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``report.py``."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "report.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("op", "recorded", "value", "worse"),
    [
        ("<=", 1.0, 1.19, False),
        ("<=", 1.0, 1.21, True),
        ("<=", 1.0, 0.1, False),
        (">=", 10.0, 8.1, False),
        (">=", 10.0, 7.9, True),
        (">=", 10.0, 99.0, False),
    ],
)
def test_a_ratio_may_be_a_fifth_worse(
    regressions: ModuleType, op: str, recorded: float, value: float, worse: bool
) -> None:
    """A ratio is worse when it is more than 20 % on the wrong side of the recorded one."""
    record = regressions.record([content("maps", row("maps.one", op, recorded))])

    found = regressions.compare(record, {"maps.one": value})

    assert worse == bool(found)
    assert all(each.row_id == "maps.one" and each.script == "maps" for each in found)


def test_the_worst_comes_first_and_says_by_how_much(regressions: ModuleType) -> None:
    """Each line names the row, both values and the share; a row that is missing counts as worse."""
    record = regressions.record(
        [content("maps", row("maps.a", ">=", 4.0), row("maps.b", "<=", 1.0), row("maps.c", ">=", 3.0))]
    )

    found = regressions.compare(record, {"maps.a": 3.0, "maps.b": 1.5})

    assert [
        "maps.c: not measured any more; 3.00 x was recorded",
        "maps.b: 1.50 x, 50% worse than the recorded 1.00 x",
        "maps.a: 3.00 x, 25% worse than the recorded 4.00 x",
    ] == [str(each) for each in found]


def test_only_judged_ratios_are_recorded(tmp_path: Path) -> None:
    """Absolute figures and rows without a goal are not compared between runs."""
    rows = row("store.a", ">=", 2.5), row("store.b", "<=", 7.0, "ms"), row("store.c", "", 1.0)
    (tmp_path / "store.json").write_text(json.dumps(content("store", *rows)), encoding="utf-8")

    done = report("--record", "--folder", tmp_path, "--recorded", tmp_path / "recorded.json")

    record = json.loads((tmp_path / "recorded.json").read_text(encoding="utf-8"))
    assert (0, "") == (done.returncode, done.stderr)
    assert {"store.a": {"value": 2.5, "op": ">=", "spread": [1.25, 5.0]}} == record["rows"]
    assert "abc1234" == record["commit"]


def test_a_record_of_several_runs_has_their_medians(regressions: ModuleType) -> None:
    """A lucky run is no record: the median of all counts, and the spread is that of all."""
    runs = [content("maps", row("maps.a", ">=", value)) for value in (9.0, 3.0, 4.0)]

    found = regressions.record(runs)

    assert {"maps.a": {"value": 4.0, "op": ">=", "spread": [1.5, 18.0]}} == found["rows"]


def test_a_record_that_is_missing_is_named(regressions: ModuleType, tmp_path: Path) -> None:
    """Without a record the check says how to make one."""
    with pytest.raises(SystemExit, match=r"recorded\.json does not exist; `make bench-record` writes it"):
        regressions.read_record(tmp_path / "recorded.json")


def test_results_replace_what_stands_in_their_place(tmp_path: Path) -> None:
    """The tables of a script go between its marks; the rest of the page stays."""
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- begin: maps -->\nold\n<!-- end: maps -->\nAfter.\n", encoding="utf-8")
    (tmp_path / "maps.json").write_text(json.dumps(content("maps", row("maps.a", "<=", 3.0))), encoding="utf-8")

    done = report("--folder", tmp_path, "--page", page)

    text = page.read_text(encoding="utf-8")
    assert (0, "") == (done.returncode, done.stderr)
    assert "old" not in text
    assert text.startswith("Before.\n<!-- begin: maps -->\n`benchmarks/maps.py` at `abc1234`: x, 2 processors")
    assert text.endswith("<!-- end: maps -->\nAfter.\n")
    assert "| how fast | <= 2 x others | 3.00 | 1.50 to 6.00 | **no** |" in text
    assert "More:\n\n| a |\n|---|\n| 7 |" in text
    assert (tmp_path / "plots" / "goals.svg").exists()


def test_a_place_may_be_on_another_page(tmp_path: Path) -> None:
    """Of several pages the one with the place gets the tables; the others stay as they are."""
    pages = tmp_path / "one.md", tmp_path / "two.md"
    pages[0].write_text("Nothing.\n", encoding="utf-8")
    pages[1].write_text("<!-- begin: maps -->\nold\n<!-- end: maps -->\n", encoding="utf-8")
    (tmp_path / "maps.json").write_text(json.dumps(content("maps", row("maps.a", "<=", 3.0))), encoding="utf-8")

    done = report("--folder", tmp_path, "--page", *pages)

    assert (0, "") == (done.returncode, done.stderr)
    assert "Nothing.\n" == pages[0].read_text(encoding="utf-8")
    assert "| how fast | <= 2 x others | 3.00 |" in pages[1].read_text(encoding="utf-8")


def test_a_page_without_the_place_is_an_error(tmp_path: Path) -> None:
    """A missing mark is named, and nothing is written."""
    page = tmp_path / "page.md"
    page.write_text("Nothing.\n", encoding="utf-8")
    (tmp_path / "maps.json").write_text(json.dumps(content("maps")), encoding="utf-8")

    done = report("--folder", tmp_path, "--page", page)

    assert 1 == done.returncode
    assert "the page has no place for 'maps': <!-- begin: maps --> ... <!-- end: maps -->" in done.stderr
    assert "Nothing.\n" == page.read_text(encoding="utf-8")


def test_a_script_writes_what_it_prints(tmp_path: Path) -> None:
    """The smallest script, in its quick form: rows with goals, and the machine they were measured on."""
    sizes = ("--operations", "20", "--sessions", "5", "--rounds", "2")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "store.py"), "--quick", "--json", str(tmp_path / "store.json"), *sizes],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    found = json.loads((tmp_path / "store.json").read_text(encoding="utf-8"))
    assert (0, "") == (done.returncode, done.stderr)
    assert {"memory_get", "memory_mix", "sqlite_get", "sqlite_mix"} <= {
        each["id"].removeprefix("store.") for each in found["rows"]
    }
    for each in found["rows"]:
        low, high = each["spread"]
        assert low <= each["value"] <= high
        assert each["question"] in done.stdout
    assert {"processor", "processors", "system", "load_1min"} == set(found["machine"])

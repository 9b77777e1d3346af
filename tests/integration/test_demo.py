"""``snakepit demo``: nothing is lost, nothing counted twice, and the verdict would say otherwise."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from snakepit import PythonAdapter, SnakepitExecutor
from snakepit._cli.demo import HANDLERS, _check, _load_handlers, _Run

from leaks import wait_until

LIMIT_S = 100


def run_demo(directory: Path, *words: str, **environment: str) -> tuple[int, dict[str, str], str]:
    """Run the demo; return its exit status, its table as {name: value}, and all of its output."""
    done = subprocess.run(
        [sys.executable, "-m", "snakepit", "demo", *words],
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    rows = (re.split(r"  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines())
    return done.returncode, {row[0]: row[1] for row in rows if len(row) == 2}, done.stdout


def test_every_file_is_counted_once(tmp_path: Path) -> None:
    """A worker is killed, its call repeated, its session replayed, and every file is counted exactly once."""
    status, table, output = run_demo(tmp_path, "--limit", "160", "--workers", "2", "--no-node")

    assert 0 == status, output
    assert "160, each counted once" == table["files"]
    assert ("0", "0", "0") == (table["lost"], table["counted twice"], table["leftover processes"])
    assert "1" == table["restarts"]
    # A worker that is killed in the moment between two calls takes none with it.
    assert table["repeated calls"] in ("0", "1")
    assert int(table["repeated calls"]) == output.count("this call is repeated")
    assert re.fullmatch(r"8 batches, of these \d+ replayed after the loss of its worker", table["session"])
    assert re.search(r"^SIGKILL to worker demo-\d-1 \(pid \d+\)", output, re.MULTILINE)
    assert "node pool of 2" not in table
    assert "\x1b" not in output


def test_node_counts_the_same_lines(tmp_path: Path, node: str) -> None:
    """Where Node is, a second pool works on the same files, and its lines are Python's."""
    status, table, output = run_demo(tmp_path, "--limit", "60", "--workers", "1")

    assert 0 == status, output
    assert table["node pool of 1"].endswith("lines as counted by Python")
    assert "different identifiers; most frequent: " in output


def test_missing_node_is_said(tmp_path: Path) -> None:
    """Without Node the demo says that the JavaScript job is left out, and is no failure."""
    status, _, output = run_demo(tmp_path, "--limit", "20", "--workers", "1", PATH=str(tmp_path))

    assert 0 == status, output
    assert "node is not in PATH: no JavaScript job" in output


def test_totals_survive_their_worker(tmp_path: Path) -> None:
    """The session's totals are replayed in the next worker, a batch counts once, a torn line not at all."""
    journal = tmp_path / "journal"
    adapter = PythonAdapter(HANDLERS / "source_stats.py", start_args=str(tmp_path))
    with SnakepitExecutor(adapter, 1) as executor:
        session = executor.session(setup=[("open_totals", {"journal": str(journal)})])
        batch = {"batch": 0, "files": [["json", 10, 2], ["json", 5, 1]]}
        added = [session.execute("add_totals", batch) for _ in range(2)]
        with journal.open("ab") as file:
            file.write(b'{"batch": 1, "fil')
        [worker] = executor.workers()
        assert worker.pid is not None

        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: worker.worker_id not in {info.worker_id for info in executor.workers()})
        again = session.execute("add_totals", batch)
        totals = session.execute("totals")

    assert [True, False, False] == [*added, again]
    assert {"json": {"files": 2, "lines": 15, "functions": 3}} == totals["packages"]
    assert (1, 1) == (totals["batches"], totals["replayed"])
    assert 1 == journal.read_bytes().count(b"\n") and journal.read_bytes().endswith(b"\n")


def test_file_stats(tmp_path: Path) -> None:
    """A file's lines, functions, classes and longest function are found; one that does not parse says why."""
    file_stats = _load_handlers().file_stats
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "good.py").write_text(
        "class A:\n    def f(self):\n        pass\n\nasync def g(): pass"
    )
    (tmp_path / "bad.py").write_bytes(b"def f(:\n\n")

    good = file_stats(str(tmp_path), "pkg/good.py")
    bad = file_stats(str(tmp_path), "bad.py")

    expected = {
        "package": "pkg",
        "lines": 5,
        "functions": 2,
        "classes": 1,
        "longest": ["f", 2],
        "error": None,
    }
    assert {"path": "pkg/good.py", **expected} == good
    assert ("(top level)", 2, 0) == (bad["package"], bad["lines"], bad["functions"])
    assert bad["error"].startswith("SyntaxError: ")


def helpers() -> set[int]:
    """Return the helper processes that earlier tests may have left: multiprocessing's and loky's trackers."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def make_run() -> tuple[_Run, dict[str, Any]]:
    """Return a flawless run over two files, and its session's totals."""
    stats = {"package": "p", "lines": 3, "functions": 1}
    found = {name: {"path": name, **stats} for name in ("p/a.py", "p/b.py")}
    run = _Run("", list(found), 1, expected=dict(found), found=dict(found), counted=Counter(list(found)))
    return run, {"packages": {"p": {"files": 2, "lines": 6, "functions": 2}}}


def test_verdict_accepts_a_flawless_run() -> None:
    """A run in which everything agrees has no complaints."""
    run, totals = make_run()

    _check(run, totals, helpers())

    assert [] == run.complaints


def test_verdict_tells_what_is_wrong() -> None:
    """A lost file, one counted twice, a differing result, wrong totals, a leftover process: all are told."""
    run, totals = make_run()
    del run.counted["p/a.py"]
    run.counted["p/b.py"] += 1
    run.expected["p/b.py"] = {}
    totals["packages"]["p"]["files"] = 3

    others = helpers()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        _check(run, totals, others)
        process.communicate(b"\n", timeout=LIMIT_S)

    texts = "\n".join(run.complaints)
    said = (
        "1 files were lost",
        "1 files were counted twice",
        "1 results differ",
        "totals are wrong",
        "left over",
    )
    assert [] == [text for text in said if text not in texts]
    assert len(said) == len(run.complaints)

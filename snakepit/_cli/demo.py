"""``snakepit demo``: the pool at work on the standard library's sources, with a worker killed in the middle.

Runs on the main thread; owns the demo's two pools and the session's journal while they live.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import psutil
from rich.console import Console

from .._bridges import bridge_path
from .._pool.future import SnakepitFuture
from .._pool.views import SessionView
from ..adapters import JavaScriptAdapter, PythonAdapter
from ..errors import SnakepitError, WorkerDied, WorkerStartError
from ..executor import SnakepitExecutor
from .terminal import Meter, make_table

__all__ = ("run_demo",)

HANDLERS = Path(__file__).resolve().parents[1] / "demo_handlers"
NOT_STANDARD = frozenset(("site-packages", "dist-packages", "__pycache__"))
SESSION = "totals"
FILES_PER_BATCH = 50
"""Arbitrary: a few dozen batches, so that the kill finds the session half-way."""
AHEAD_PER_WORKER = 16
"""Arbitrary: enough to keep every worker busy, few enough that progress is seen as it happens."""
UNPARSED_SHOWN = 3

Stats = dict[str, Any]


@attrs.define
class _Run:
    """What the demo has seen so far.

    Attributes:
        files: Every path, relative to ``root``.
        expected: ``{path: stats}`` of the same work done in one process.
        found: ``{path: stats}`` as the workers answered.
        counted: How often each path was answered.
        repeated: What the demo called again because the worker had died.
        killed: ``(worker id, pid)`` of the worker that the demo killed.
        seen: Every worker process, to look for at the end.
        seconds: ``{step: how long it took}``.
        complaints: What is wrong; empty at the end of a good run.
    """

    root: str
    files: list[str]
    workers: int
    expected: dict[str, Stats] = attrs.Factory(dict)
    found: dict[str, Stats] = attrs.Factory(dict)
    counted: Counter[str] = attrs.Factory(Counter)
    repeated: list[str] = attrs.Factory(list)
    killed: tuple[str, int] | None = None
    restarts: int = 0
    seen: dict[int, psutil.Process] = attrs.Factory(dict)
    seconds: dict[str, float] = attrs.Factory(dict)
    complaints: list[str] = attrs.Factory(list)

    def see(self, executor: SnakepitExecutor) -> None:
        """Remember the pool's processes of this moment."""
        for info in executor.workers():
            if info.pid is not None and info.pid not in self.seen and psutil.pid_exists(info.pid):
                self.seen[info.pid] = psutil.Process(info.pid)

    def rate(self, step: str) -> str:
        """Return a step's files per second, as text."""
        seconds = self.seconds[step]
        return f"{seconds:.1f} s, {len(self.files) / seconds:,.0f} files/s"


def run_demo(console: Console, workers: int | None, limit: int | None, with_node: bool) -> int:
    """Run the demo and print its table.

    Args:
        console: Where everything goes.
        workers: Size of each pool, >= 1; None: ``loky.cpu_count()``.
        limit: So many files, spread evenly over all of them, >= 1; None: all.
        with_node: Also run the JavaScript job, where Node is found.

    Returns:
        0, or 1 when a file was lost or counted twice, a result differs, or a process was left over.
    """
    if workers is None:
        import loky

        workers = int(loky.cpu_count())
    root = sysconfig.get_path("stdlib")
    found = source_files(root)
    files = (
        found
        if limit is None or limit >= len(found)
        else [found[i * len(found) // limit] for i in range(limit)]
    )
    others = {child.pid for child in psutil.Process().children(recursive=True)}
    run = _Run(root, files, workers)
    version = ".".join(map(str, sys.version_info[:3]))
    console.print(
        f"{len(files)} of {len(found)} Python files in {root} (Python {version}, without site-packages),"
        f" {workers} worker{'s' if workers > 1 else ''}",
        soft_wrap=True,
    )
    _warm_up(run)
    _one_process(console, run)
    with tempfile.TemporaryDirectory(prefix="snakepit-demo-") as directory:
        adapter = PythonAdapter(HANDLERS / "source_stats.py", start_args=root)
        with SnakepitExecutor(adapter, workers, name="demo") as executor:
            try:
                totals = _pool(console, run, executor, str(Path(directory) / "journal"))
            except SnakepitError as error:
                console.print(f"FAILED: {type(error).__name__}: {error}", style="bold red", soft_wrap=True)
                return 1
            if with_node:
                _node(console, run)
    _check(run, totals, others)
    _report(console, run, totals)
    for complaint in run.complaints:
        console.print(f"FAILED: {complaint}", style="bold red", soft_wrap=True)
    return 1 if run.complaints else 0


def source_files(root: str) -> list[str]:
    """Return every Python source below ``root`` that is the interpreter's own, relative to it and sorted."""
    found = []
    for directory, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_STANDARD]
        found += [
            os.path.relpath(os.path.join(directory, name), root).replace(os.sep, "/")
            for name in names
            if name.endswith(".py")
        ]
    return sorted(found)


# The steps -------------------------------------------------------------------------------------------


def _warm_up(run: _Run) -> None:
    """Read every file once: the first step must not pay for the disk, or the second would look fast."""
    for path in run.files:
        Path(run.root, path).read_bytes()


def _one_process(console: Console, run: _Run) -> None:
    """Do the work in this process, with the very function that the workers run."""
    file_stats = _load_handlers().file_stats
    with Meter(console, "one process", len(run.files)) as meter:
        started_at = time.monotonic()
        for path in run.files:
            run.expected[path] = file_stats(run.root, path)
            meter.advance()
        run.seconds["one process"] = time.monotonic() - started_at


def _load_handlers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("snakepit_demo_handlers", HANDLERS / "source_stats.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    bridge = str(bridge_path("python/snakepit_bridge.py").parent)
    sys.path.insert(0, bridge)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(bridge)
    return module


def _pool(console: Console, run: _Run, executor: SnakepitExecutor, journal: str) -> Stats:
    """Do the work in the pool, kill a worker meanwhile, and return what the session has added up."""
    started_at = time.monotonic()
    executor.wait_ready(None, workers=run.workers)
    run.seconds["start"] = time.monotonic() - started_at
    # The totals live in one worker.  If that worker is lost, the set-up replays the journal in the next.
    session = executor.session(SESSION, setup=[("open_totals", {"journal": journal})])
    session.execute("totals")
    run.see(executor)
    batches: list[tuple[Stats, SnakepitFuture]] = []
    with Meter(console, "pool", len(run.files)) as meter:
        started_at = time.monotonic()
        for batch in _batches(console, run, executor, meter):
            args = {"batch": len(batches), "files": batch}
            # Before the files that wait already: the session keeps pace.
            batches.append((args, session.submit("add_totals", args, priority=1)))
        run.seconds["pool"] = time.monotonic() - started_at
    for args, future in batches:
        _add_totals(console, run, session, args, future)
    totals: Stats = session.execute("totals")
    session.end()
    run.see(executor)
    run.restarts = executor.stats().restarts
    return totals


def _batches(
    console: Console, run: _Run, executor: SnakepitExecutor, meter: Meter
) -> Iterator[list[list[Any]]]:
    """Map over the files; yield ``[package, lines, functions]`` of each, in batches."""
    items = [{"path": path} for path in run.files]
    outcomes = executor.map(
        "analyse", items, buffersize=AHEAD_PER_WORKER * run.workers, return_exceptions=True
    )
    size = max(1, min(FILES_PER_BATCH, len(run.files) // 8))
    batch: list[list[Any]] = []
    for number, (path, outcome) in enumerate(zip(run.files, outcomes, strict=True), 1):
        if isinstance(outcome, WorkerDied):
            # The pool never repeats a call: it cannot know whether a command may run twice.  This one may.
            console.print(f"{path}: {_how(outcome)}; this call is repeated", style="yellow", soft_wrap=True)
            run.repeated.append(path)
            outcome = executor.execute("analyse", {"path": path})
        elif isinstance(outcome, BaseException):
            raise outcome
        run.counted[outcome["path"]] += 1
        run.found[outcome["path"]] = outcome
        batch.append([outcome["package"], outcome["lines"], outcome["functions"]])
        meter.advance()
        if run.killed is None and 3 * number >= len(run.files):
            _maybe_kill(console, run, executor)
        if len(batch) == size or number == len(run.files):
            yield batch
            batch = []


def _maybe_kill(console: Console, run: _Run, executor: SnakepitExecutor) -> None:
    """Kill the session's worker if it is busy at this moment; a call and the session's state go with it."""
    for info in executor.workers():
        if info.state == "busy" and SESSION in info.sessions and info.pid is not None:
            run.see(executor)
            run.killed = info.worker_id, info.pid
            os.kill(info.pid, signal.SIGKILL)
            console.print(
                f"SIGKILL to worker {info.worker_id} (pid {info.pid}): busy, and the session lived in it",
                style="yellow",
                soft_wrap=True,
            )
            return


def _add_totals(
    console: Console, run: _Run, session: SessionView, args: Stats, future: SnakepitFuture
) -> None:
    try:
        future.result()
    except WorkerDied as error:
        # It may have been carried out or not; the worker counts a batch's number once.
        name = f"add_totals, batch {args['batch']}"
        console.print(f"{name}: {_how(error)}; this call is repeated", style="yellow", soft_wrap=True)
        run.repeated.append(name)
        session.execute("add_totals", args)


def _how(error: WorkerDied) -> str:
    return f"WorkerDied (pid {error.pid}, signal {error.signal})"


def _node(console: Console, run: _Run) -> None:
    """Count lines and identifiers in a second pool, and compare the lines with Python's."""
    if shutil.which("node") is None:
        console.print("node is not in PATH: no JavaScript job (see: snakepit doctor)")
        return
    batches = [run.files[i : i + FILES_PER_BATCH] for i in range(0, len(run.files), FILES_PER_BATCH)]
    identifiers: Counter[str] = Counter()
    lines: dict[str, int] = {}
    adapter = JavaScriptAdapter(HANDLERS / "identifiers.js", start_args=run.root)
    try:
        with SnakepitExecutor(adapter, run.workers, name="demo-node") as executor:
            executor.wait_ready(None, workers=run.workers)
            run.see(executor)
            with Meter(console, "node", len(run.files)) as meter:
                started_at = time.monotonic()
                results = executor.map("identifiers", [{"paths": paths} for paths in batches])
                for paths, result in zip(batches, results, strict=True):
                    identifiers.update(result["identifiers"])
                    lines.update(zip(paths, result["lines"], strict=True))
                    meter.advance(len(paths))
                run.seconds["node"] = time.monotonic() - started_at
    except WorkerStartError as error:
        console.print(
            f"node does not start: no JavaScript job (see: snakepit doctor); {error}", soft_wrap=True
        )
        return
    except SnakepitError as error:
        run.complaints.append(f"the JavaScript job failed: {type(error).__name__}: {error}")
        return
    differing = [path for path in run.files if lines[path] != run.found[path]["lines"]]
    if differing:
        run.complaints.append(
            f"Node and Python disagree on the lines of {len(differing)} files: {differing[:3]}"
        )
    names = ", ".join(f"{name} {count:,}" for name, count in identifiers.most_common(5))
    console.print(f"node: {len(identifiers):,} different identifiers; most frequent: {names}", soft_wrap=True)


# The verdict -----------------------------------------------------------------------------------------


def _check(run: _Run, totals: Stats, others: set[int]) -> None:
    """Write down everything that is wrong."""
    lost = [path for path in run.files if not run.counted[path]]
    twice = [path for path, count in run.counted.items() if count > 1]
    if lost:
        run.complaints.append(f"{len(lost)} files were lost: {lost[:3]}")
    if twice:
        run.complaints.append(f"{len(twice)} files were counted twice: {twice[:3]}")
    differing = [path for path in run.found if run.found[path] != run.expected.get(path)]
    if differing:
        run.complaints.append(f"{len(differing)} results differ from those of one process: {differing[:3]}")
    packages: dict[str, Counter[str]] = {}
    for stats in run.found.values():
        row = packages.setdefault(stats["package"], Counter())
        row.update(files=1, lines=stats["lines"], functions=stats["functions"])
    if packages != totals["packages"]:
        run.complaints.append(f"the session's totals are wrong: {json.dumps(totals['packages'])[:200]}")
    left = {pid for pid, process in run.seen.items() if process.is_running()}
    left |= {child.pid for child in psutil.Process().children(recursive=True)} - others
    if left:
        run.complaints.append(f"{len(left)} processes are left over: {sorted(left)}")


def _report(console: Console, run: _Run, totals: Stats) -> None:
    every = list(run.found.values())
    unparsed = [stats["path"] for stats in every if stats["error"] is not None]
    shown = ", ".join(unparsed[:UNPARSED_SHOWN]) + (", ..." if len(unparsed) > UNPARSED_SHOWN else "")
    longest = max(
        (stats for stats in every if stats["longest"]), key=lambda stats: stats["longest"][1], default=None
    )
    largest = max(
        totals["packages"].items(), key=lambda item: item[1]["lines"], default=("none", {"lines": 0})
    )
    table = make_table(console, "", "")
    table.add_row("files", f"{len(every):,}, each counted once" if not run.complaints else f"{len(every):,}")
    table.add_row("not parseable", f"{len(unparsed)}" + (f" ({shown})" if unparsed else ""))
    table.add_row("lines", f"{sum(stats['lines'] for stats in every):,}")
    table.add_row("functions", f"{sum(stats['functions'] for stats in every):,}")
    table.add_row("classes", f"{sum(stats['classes'] for stats in every):,}")
    if longest is not None:
        name, length = longest["longest"]
        table.add_row("longest function", f"{name}, {length:,} lines, in {longest['path']}")
    table.add_row("largest package", f"{largest[0]}, {largest[1]['lines']:,} lines (from the session)")
    table.add_row("one process", run.rate("one process"))
    ratio = run.seconds["one process"] / run.seconds["pool"]
    table.add_row(
        f"pool of {run.workers}",
        f"{run.rate('pool')}: {ratio:.2f} x one process; ready in {1000 * run.seconds['start']:.0f} ms",
    )
    if "node" in run.seconds:
        table.add_row(f"node pool of {run.workers}", f"{run.rate('node')}; lines as counted by Python")
    killed = (
        "none (too few files to catch one busy)"
        if run.killed is None
        else f"{run.killed[0]}, pid {run.killed[1]}"
    )
    table.add_row("killed", killed)
    table.add_row("restarts", str(run.restarts))
    table.add_row("repeated calls", str(len(run.repeated)))
    table.add_row(
        "session",
        f"{totals['batches']} batches, of these {totals['replayed']} replayed after the loss of its worker",
    )
    table.add_row("lost", str(sum(not run.counted[path] for path in run.files)))
    table.add_row("counted twice", str(sum(count > 1 for count in run.counted.values())))
    table.add_row(
        "leftover processes", "0" if not any("left over" in text for text in run.complaints) else "see below"
    )
    console.print(table)

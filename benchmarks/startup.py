"""How long until 16 workers are ready, and until ``import snakepit`` is done?

python benchmarks/startup.py [--quick] [--json FILE] [--rounds 4] [--waiting 2] [--workers 16]

A pool is ready when as many calls as it has workers run at once (they meet at a socket of this process), or, where
the start itself is the question, when ``wait_ready`` says so: every worker has answered its handshake.  ``--waiting``
are the rounds with an ``on_start`` of one second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

if __name__ == "__main__":  # a worker that is started by spawn imports this file, and shall not pay for the rest
    import subprocess
    import sys
    import tempfile
    from contextlib import ExitStack
    from pathlib import Path

    from support import ROOT, loads, peers, tasks
    from support.meeting import LIMIT_S, Meeting
    from support.results import Report, figure, median, options, percentile, ratios

    from snakepit import JavaScriptAdapter, PoolConfig, PythonAdapter, SnakepitExecutor


def ready(make: Callable[[], Any], workers: int, steps: int) -> float:
    """Return the seconds until so many handshakes were answered, ``steps`` workers at a time."""
    pools: list[Any] = []

    def start() -> None:
        pools.append(make())
        for count in range(steps, workers + 1, steps):
            pools[0].wait_ready(timeout=LIMIT_S, workers=count)

    try:
        return loads.timed(start)
    finally:
        for pool in pools:
            assert len([worker for worker in pool.workers() if worker.state == "idle"]) == workers, pool.workers()
            pool.shutdown()


def together(make: Callable[[], Any], workers: int, meeting: Any) -> float:
    """Return the seconds until so many calls ran at once in a new pool."""
    futures: list[Any] = []
    pools: list[Any] = []

    def start() -> None:
        pools.append(make())
        futures.extend(pools[0].submit(tasks.meet, meeting.path) for _ in range(workers))
        meeting.wait(workers)

    try:
        took_s = loads.timed(start)
        assert len({future.result() for future in futures}) == workers
    finally:
        for pool in pools:
            pool.shutdown()
    return took_s


def interpreters(count: int, *arguments: str) -> float:
    """Return the seconds that so many interpreters take from spawn to exit, all at once."""

    def run() -> None:
        children = [subprocess.Popen([sys.executable, *arguments]) for _ in range(count)]
        for child in children:
            # Without a timeout, which would look for the end every few milliseconds; run.py limits the whole script.
            assert child.wait() == 0

    return loads.timed(run)


def one_interpreter(statement: str) -> float:
    """Return the seconds of the fastest of three interpreters that run a statement."""
    return min(interpreters(1, "-c", statement) for _ in range(3))


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"rounds": 4, "waiting": 2, "workers": 16}, {"rounds": 3, "waiting": 1})
    workers = given.workers
    on_demand = PoolConfig(min_workers=0)
    python = lambda: PythonAdapter(peers.HERE / "bench_handlers.py")  # noqa: E731  # three of a kind
    node = lambda: JavaScriptAdapter(peers.HERE / "bench_handlers.cjs")  # noqa: E731
    waiting = lambda: PythonAdapter(peers.HERE / "waiting_handlers.py")  # noqa: E731
    sample = f"{given.rounds} interleaved rounds ({given.waiting} with a waiting on_start), {workers} workers"
    report = Report("startup", sample, given)
    with ExitStack() as stack:
        meeting = Meeting(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.callback(meeting.close)

        def commands(adapter: Callable[[], Any], steps: int) -> Callable[[], float]:
            return lambda: ready(lambda: SnakepitExecutor(adapter(), workers, config=on_demand), workers, steps)

        def meets(make: Callable[[int], Any]) -> Callable[[], float]:
            return lambda: together(lambda: make(workers), workers, meeting)

        contenders: dict[str, Callable[[], float]] = {
            "commands, Python, at once": commands(python, workers),
            "commands, Python, one after the other": commands(python, 1),
            "commands, Node, at once": commands(node, workers),
            "callables": meets(peers.snakepit_callables),
            "ProcessPoolExecutor, spawn": meets(peers.process_pool),
            "loky": meets(peers.loky_pool),
            "bare interpreters": lambda: interpreters(workers, "-S", "-E", "-c", ""),
            "import snakepit": lambda: interpreters(
                1, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); import snakepit"
            ),
            "import snakepit, SnakepitExecutor looked up": lambda: one_interpreter(
                f"import sys; sys.path.insert(0, {ROOT!r}); from snakepit import SnakepitExecutor"
            ),
            "one interpreter": lambda: one_interpreter("import sys"),
        }
        figures = loads.rounds(contenders, given.rounds)

        def waited(count: int) -> Callable[[], float]:
            return lambda: ready(lambda: SnakepitExecutor(waiting(), count), count, count)

        slow = loads.rounds({"all": waited(workers), "one": waited(1)}, given.waiting)

    def judge(name: str, question: str, contender: str, goal: float, other: str) -> None:
        values, others = figures[contender], figures[other]
        seconds = {"ms": median(values) * 1e3, "other_ms": median(others) * 1e3}
        report.row(name, question, ratios(values, others), "<=", goal, other, **seconds)

    judge(
        "commands_at_once",
        f"{workers} workers with commands ready, all at once",
        "commands, Python, at once",
        0.55,
        "commands, Python, one after the other",
    )
    judge(
        "callables_spawn",
        f"{workers} workers with callables ready",
        "callables",
        0.8,
        "ProcessPoolExecutor, spawn",
    )
    report.row(
        "on_start_waiting",
        f"{workers} workers whose `on_start` waits 1 s, ready",
        ratios(slow["all"], slow["one"]),
        "<=",
        1.25,
        "one such worker",
        all_s=median(slow["all"]),
        one_s=median(slow["one"]),
    )
    bare = figures["one interpreter"]
    for name, contender, goal in (
        ("import", "import snakepit", {"op": "<=", "goal": 60}),
        # Names of the package may be loaded when they are first used.
        ("import_executor", "import snakepit, SnakepitExecutor looked up", {}),
    ):
        milliseconds = [(whole - own) * 1e3 for whole, own in zip(figures[contender], bare, strict=True)]
        report.row(name, f"{contender}, without the interpreter's own start", milliseconds, unit="ms", **goal)
    report.table(
        f"{workers} workers ready",
        ("contender", "median ms", "slowest ms"),
        [(name, figure(median(values) * 1e3), figure(percentile(values, 1) * 1e3)) for name, values in figures.items()],
    )
    report.finish()


if __name__ == "__main__":
    main()

"""Inference: a scikit-learn model loaded by ``on_start``, one row a request, 16 callers.

python benchmarks/inference.py [--quick] [--json FILE] [--calls 150] [--rounds 5] [--workers 2]

The model classifies the digits data set: scaling, then a perceptron with one hidden layer.  The bare processes load
the same model and call ``predict`` in a loop, with nobody to answer to.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

from support import loads, peers
from support.results import Report, figure, median, options, percentile, ratios

CALLERS = 16
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""For all alike: one row has no work for more."""

BARE = """
import pickle, sys, time
import numpy
with open(sys.argv[1], "rb") as file:
    model, rows = pickle.load(file), pickle.load(file)
model.predict(numpy.array([rows[0]]))
print("ready", flush=True)
for line in sys.stdin:
    count = int(line)
    begin = time.perf_counter()
    answers = [int(model.predict(numpy.array([rows[number % len(rows)]]))[0]) for number in range(count)]
    print(time.perf_counter() - begin, sum(answers), flush=True)
"""


class Bare:
    """Processes that do nothing but predict."""

    def __init__(self, count: int, path: Path) -> None:

        self._children = [
            subprocess.Popen(
                [sys.executable, "-c", BARE, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **ONE_THREAD},
            )
            for _ in range(count)
        ]
        for child in self._children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"

    def rate(self, each: int, expected: list[int]) -> float:
        """Return the predictions a second of all of them together."""
        total = sum(answer for answer, _ in zip(cycle(expected), range(each), strict=False))
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(f"{each}\n")
            child.stdin.flush()
        rate = 0.0
        for child in self._children:
            assert child.stdout is not None
            seconds, found = child.stdout.readline().split()
            assert int(found) == total
            rate += each / float(seconds)
        return rate

    def shutdown(self) -> None:
        """End the processes."""
        for child in self._children:
            child.communicate(timeout=10)


def train(path: Path) -> tuple[list[list[float]], list[int]]:
    """Fit the model, write it with some rows, and return these with the classes that it gives them."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data, target = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=60, tol=1e-2, random_state=0))
    model.fit(data, target)
    rows = data[:200].tolist()
    with path.open("wb") as file:
        pickle.dump(model, file)
        pickle.dump(rows, file)
    return rows, [int(answer) for answer in model.predict(data[:200])]


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"calls": 150, "rounds": 5, "workers": 2}, {"calls": 50, "rounds": 3})
    from snakepit import PythonAdapter, SnakepitExecutor

    sample = (
        f"{given.rounds} interleaved rounds, {CALLERS} callers with {given.calls} rows each, {given.workers} workers"
    )
    report = Report("inference", sample, given)
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.pickle"
        rows, expected = train(path)
        adapter = PythonAdapter(peers.HERE / "model_handlers.py", start_args={"path": str(path)}, env=ONE_THREAD)
        pool = stack.enter_context(SnakepitExecutor(adapter, given.workers))
        pool.wait_ready(timeout=60, workers=given.workers)
        bare = Bare(given.workers, path)
        stack.callback(bare.shutdown)
        p99: list[float] = []

        def caller(number: int) -> Any:
            asked = cycle(range(number, len(rows)))

            def call() -> bool:
                row = next(asked)
                return bool(pool.execute("predict", {"row": rows[row]}) == expected[row])

            return call

        def served() -> float:
            rate, times = loads.closed_loop([caller(number) for number in range(CALLERS)], given.calls, True)
            p99.append(percentile(times, 0.99))
            return rate

        each = given.calls * CALLERS // given.workers
        contenders = {"snakepit": served, "bare processes": lambda: bare.rate(each, expected)}
        for contender in contenders.values():
            contender()
        p99.clear()
        figures = loads.rounds(contenders, given.rounds)
    question = f"scikit-learn, one row a request, {CALLERS} callers"
    report.row("rate", f"{question}, requests/s", figures["snakepit"], ">=", 1000, unit="/s")
    report.row("p99", f"{question}, p99", [seconds * 1e3 for seconds in p99], "<=", 100, unit="ms")
    report.row(
        "bare",
        f"{question}, requests/s",
        ratios(figures["snakepit"], figures["bare processes"]),
        ">=",
        0.7,
        f"{given.workers} bare processes that predict in a loop",
        rate=median(figures["snakepit"]),
        other_rate=median(figures["bare processes"]),
    )
    report.table(
        "Predictions a second",
        ("contender", "predictions/s", "us each, and worker"),
        [
            (name, figure(median(values)), figure(given.workers * 1e6 / median(values)))
            for name, values in figures.items()
        ],
    )
    report.finish()


if __name__ == "__main__":
    main()

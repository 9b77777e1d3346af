"""Watches a JVM warm up: the same call again and again, in the same worker, becomes faster."""

import statistics
import time
from pathlib import Path

from snakepit import JavaAdapter, SnakepitExecutor

HERE = Path(__file__).resolve().parent
CALLS = 150
ARGS = {"text": (HERE.parents[1] / "glossary.md").read_text(encoding="utf-8"), "times": 20}


def main() -> None:
    """A worker that lives on keeps what its runtime has learnt; a new process for each call would never get there."""
    times_ms = []
    with SnakepitExecutor(JavaAdapter(HERE / "Handlers.java"), max_workers=1, timeout=60) as pool:
        pool.wait_ready(timeout=60)
        for _ in range(CALLS):
            began = time.perf_counter()
            answer = pool.execute("most", ARGS)
            times_ms.append(1000 * (time.perf_counter() - began))
        incarnations = {worker.incarnation for worker in pool.workers()}
    print(f"the most frequent word: {answer} times; worker number {incarnations.pop()} did all calls")
    print(f"first call: {times_ms[0]:.1f} ms")
    for start in (1, 10, 50, 100):
        print(f"calls {start + 1} to {start + 10}: {statistics.median(times_ms[start : start + 10]):.2f} ms")


if __name__ == "__main__":
    main()

"""What does a call cost beside an actor of Ray?

python benchmarks/ray_actors.py [--quick] [--json FILE] [--calls 200] [--tasks 4000] [--rounds 5] [--workers 2]

Apart from the other peers, since Ray's servers use the processors while its actors are idle.  Needs ``pip install
ray``, which the extra ``bench`` leaves out for its size; without it there is nothing to measure.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from support import loads, peers, tasks
from support.results import Report, figure, median, options, ratios

BYTES, LARGE, ARRAY = 1 << 20, 32 << 20, 8 << 20


class Actors:
    """Ray's actors behind ``submit``, in turn.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        import ray

        ray.init(num_cpus=count, include_dashboard=False, logging_level="ERROR", log_to_driver=False)

        class Runner:
            def add(self, a: int, b: int) -> int:
                return a + b

            def echo(self, value: Any) -> Any:
                return value

        self._ray = ray
        self._actors = [ray.remote(Runner).remote() for _ in range(count)]
        for actor in self._actors:
            assert ray.get(actor.add.remote(1, 2)) == 3

    def add(self, a: int, b: int) -> Any:
        """Make one call and wait."""
        return self._ray.get(self._actors[0].add.remote(a, b))

    def echo(self, value: Any) -> Any:
        """Send a value there and back."""
        return self._ray.get(self._actors[0].echo.remote(value))

    def flood(self, count: int) -> float:
        """Return the seconds of so many calls at once."""

        def run() -> None:
            number = len(self._actors)
            found = self._ray.get([self._actors[index % number].add.remote(1, 2) for index in range(count)])
            assert found == [3] * count

        return loads.timed(run)

    def shutdown(self) -> None:
        """End the servers."""
        self._ray.shutdown()


def main() -> None:
    """Measure and report."""
    given = options(
        __doc__, {"calls": 200, "tasks": 4000, "rounds": 5, "workers": 2}, {"calls": 50, "tasks": 1000, "rounds": 3}
    )
    if find_spec("ray") is None:
        print("ray is not installed: nothing to measure")
        return
    import numpy

    sample = (
        f"{given.rounds} interleaved rounds of {given.calls} sequential calls, {given.tasks:,} at once, and single"
        f" values; {given.workers} workers"
    )
    report = Report("ray_actors", sample, given)
    data, large, array = bytes(BYTES), bytes(LARGE), numpy.arange(ARRAY // 8, dtype=numpy.float64)
    with ExitStack() as stack:
        actors = Actors(given.workers)
        stack.callback(actors.shutdown)
        pool = stack.enter_context(peers.snakepit_callables(given.workers))
        peers.warm_up(lambda: pool.submit(tasks.add, 1, 2), given.workers)

        def once(call: Callable[[], Any]) -> Callable[[], float]:
            return lambda: median(loads.sequential(call, given.calls, 3)) * 1e6

        def echo(send: Callable[[Any], Any], value: Any, count: int) -> Callable[[], float]:
            def measure() -> float:
                answers: list[Any] = []
                took_s = loads.timed(lambda: answers.extend(send(value) for _ in range(count)))
                assert all(numpy.array_equal(value, answer) for answer in answers)
                return took_s / count * 1e6

            return measure

        def send(value: Any) -> Any:
            return pool.execute(tasks.echo, value)

        pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            "one call": (once(lambda: pool.execute(tasks.add, 1, 2)), once(lambda: actors.add(1, 2))),
            "one of many at once": (
                lambda: loads.flood(lambda: pool.submit(tasks.add, 1, 2), given.tasks, 3) / given.tasks * 1e6,
                lambda: actors.flood(given.tasks) / given.tasks * 1e6,
            ),
            "echo of 1 MiB bytes": (echo(send, data, 8), echo(actors.echo, data, 8)),
            "echo of 32 MiB bytes": (echo(send, large, 1), echo(actors.echo, large, 1)),
            "echo of 8 MiB numpy array": (echo(send, array, 2), echo(actors.echo, array, 2)),
        }
        contenders = {}
        for what, (own, rays) in pairs.items():
            contenders[f"{what}, snakepit"], contenders[f"{what}, Ray"] = own, rays
        figures = loads.rounds(contenders, given.rounds)
    cells = []
    for what in pairs:
        own_us, ray_us = figures[f"{what}, snakepit"], figures[f"{what}, Ray"]
        report.row(what.replace(" ", "_"), f"{what}, time", ratios(own_us, ray_us), against="a Ray actor")
        cells.append((what, figure(median(own_us)), figure(median(ray_us))))
    report.table("Microseconds", ("what", "snakepit, callables", "Ray actor"), cells)
    report.finish()


if __name__ == "__main__":
    main()

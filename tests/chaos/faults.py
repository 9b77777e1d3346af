"""What breaks during a chaos run: signals, recycling, restarts, the guardian; each drawn from a seeded source."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from .era import Era
from .signals import children_running, send

__all__ = ("Breaker",)

FAULTS = {
    "KILL": 40,
    "TERM": 12,
    "STOP, then CONT": 12,
    "STOP": 8,
    "recycle()": 6,
    "restart_worker()": 10,
    "guardian KILL": 4,
    "two KILL": 8,
}


class Breaker:
    """The thread that breaks things.

    Args:
        seed: Of the run.
        pause_s: Mean time between two faults, in seconds.
        eras: Gives the present pools.
        stop: Set when the run ends.
    """

    def __init__(self, seed: int, pause_s: float, eras: Callable[[], list[Era]], stop: threading.Event) -> None:
        self._rng = random.Random(f"{seed}-faults")
        self._pause_s = pause_s
        self._eras = eras
        self._stop = stop
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self.thread = threading.Thread(target=self._run, name="faults", daemon=True)

    def _run(self) -> None:
        rng = self._rng
        while not self._stop.wait(rng.expovariate(1 / self._pause_s)):
            fault = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
            choice, moment_s = rng.random(), rng.choice((0.01, 0.05, 0.3))
            eras = self._eras()
            if not eras:
                continue
            era = eras[int(choice * len(eras))]
            try:
                self._break(fault, era, rng.random(), moment_s)
            except BaseException as error:
                self.errors.append(f"{fault}: {error!r}")

    def _break(self, fault: str, era: Era, choice: float, moment_s: float) -> None:
        if fault == "guardian KILL":
            for pid in children_running("guardian_main.py"):
                self.done[fault] += send(pid, signal.SIGKILL, must_run="guardian_main.py")
            return
        with era.use() as pool:
            if pool is None:
                return
            workers = pool.workers()
            if not workers:
                return
            chosen = workers[int(choice * len(workers))]
            if fault == "recycle()":
                pool.recycle()
                self.done[fault] += 1
            elif fault == "restart_worker()":
                with suppress(LookupError):
                    pool.restart_worker(chosen.worker_id)
                    self.done[fault] += 1
            elif fault == "two KILL":
                for worker in workers[:2]:
                    self._signal(fault, worker.pid, signal.SIGKILL)
            elif fault == "STOP, then CONT":
                if self._signal(fault, chosen.pid, signal.SIGSTOP):
                    self._stop.wait(moment_s)
                    assert chosen.pid is not None
                    send(chosen.pid, signal.SIGCONT)
            else:
                self._signal(fault, chosen.pid, signal.Signals[f"SIG{fault}"])

    def _signal(self, fault: str, pid: int | None, number: signal.Signals) -> bool:
        sent = pid is not None and send(pid, number)
        self.done[fault] += sent
        return sent

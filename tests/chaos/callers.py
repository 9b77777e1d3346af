"""The callers of a chaos run: what each does next is drawn from its own seeded source."""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing, suppress
from typing import Any

from snakepit import (
    CommandError,
    CommandTimeout,
    EncodeError,
    PoolBroken,
    ProtocolError,
    QueueFull,
    QueueTimeout,
    ResultError,
    SnakepitExecutor,
    WorkerDied,
    WorkerStartError,
)
from snakepit.errors import SessionError

from .era import Era
from .verdict import Call, Finding, SessionBook
from .watch import new_rid

__all__ = ("Caller",)

WAIT_S = 60.0
"""How long a caller waits for anything; what takes longer is lost."""

ENDS = (
    CancelledError,
    CommandError,
    CommandTimeout,
    EncodeError,
    PoolBroken,
    ProtocolError,
    QueueTimeout,
    ResultError,
    SessionError,
    WorkerDied,
    WorkerStartError,
)
"""What a call may end with while everything is being broken."""

HOWS = (
    *(("quick", None),) * 40,
    *(("nap", 0.005),) * 10,
    *(("nap", 0.05),) * 4,
    *(("spin", 0.002),) * 6,
    *(("fail", 7),) * 5,
    ("exit", 0),
    ("exit", 3),
    ("hang", None),
    ("stubborn", None),
    ("stop", None),
    ("noise", 400),
    *(("bytes", 100_000),) * 2,
    *(("unsendable", None),) * 2,
    *(("swallow", "x" * 2000),) * 3,
    ("swallow", "x" * 200_000),
)


class Caller:
    """One thread's worth of calls.

    Args:
        number: Of the caller.
        seed: Of the run.
        eras: Gives the present pool of each kind, None between two.
        idle: Set while the callers are to be quiet.
        stop: Set when the run ends.
    """

    def __init__(
        self,
        number: int,
        seed: int,
        eras: Callable[[], list[Era]],
        idle: threading.Event,
        stop: threading.Event,
    ) -> None:
        self.rng = random.Random(f"{seed}-caller-{number}")
        self.done: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self._eras = eras
        self._idle = idle
        self._stop = stop
        self._actions: list[tuple[Callable[[Era, SnakepitExecutor], None], int]] = [
            (self.one, 40),
            (self.burst, 12),
            (self.visits, 30),
            (self.map, 8),
            (self.bad_argument, 5),
            (self.watch_the_pool, 5),
        ]
        self.thread = threading.Thread(target=self._run, name=f"caller-{number}", daemon=True)

    def _run(self) -> None:
        rng = self.rng
        actions, weights = zip(*self._actions, strict=True)
        while not self._stop.is_set():
            if self._idle.is_set() and rng.random() < 0.95:
                self._stop.wait(0.05)
                continue
            action = rng.choices(actions, weights)[0]
            eras = self._eras()
            if not eras:
                self._stop.wait(0.01)
                continue
            era = rng.choice(eras)
            with era.use() as pool:
                if pool is None:
                    continue
                try:
                    action(era, pool)
                except BaseException as error:
                    self.note("wrong_error", f"{era.name}: {action.__name__} raised {error!r}")
            del pool

    def note(self, row: str, text: str) -> None:
        self.findings.append((row, text))

    # Submitting -------------------------------------------------------------------------------------

    def options(self, era: Era, how: str) -> dict[str, Any]:
        """Draw a call's options."""
        rng = self.rng
        options: dict[str, Any] = {}
        if how in ("hang", "stubborn", "stop"):
            options["timeout"] = rng.choice((0.05, 0.2))
        elif rng.random() < 0.1:
            options["timeout"] = rng.choice((0.02, 0.5))
        if rng.random() < 0.15:
            options["queue_timeout"] = rng.choice((0.001, 0.02, 0.2))
        if rng.random() < 0.1:
            options["priority"] = rng.choice((-1, 1, 5))
        return options

    def submit(self, era: Era, submit: Callable[..., Any], *what: Any, **options: Any) -> Any:
        """Submit, and return the future, or None when the pool takes no more."""
        try:
            future = submit(*what, **options)
        except (QueueFull, PoolBroken) as error:
            self.done[type(error).__name__] += 1
        except RuntimeError as error:
            if "after shutdown" not in str(error):
                raise
            self.done["shut"] += 1
        else:
            return future
        return None

    def send(self, era: Era, pool: SnakepitExecutor) -> Any:
        """Submit one request that may do anything; return its future or None."""
        how, arg = self.rng.choice(HOWS)
        options = self.options(era, how)
        what = era.spoken(new_rid(), how, arg)
        if era.kind == "callables":
            return self.submit(era, pool.options(**options).submit, *what)
        return self.submit(era, pool.submit, *what, **options)

    def finish(self, future: Any) -> None:
        """Wait for a future, or cancel it first, early or late; its end must be one of those expected."""
        rng = self.rng
        chance = rng.random()
        if chance < 0.08:
            future.cancel()
        elif chance < 0.13:
            self.done["cancel running"] += future.cancel(running=True)
        elif chance < 0.2:
            self._stop.wait(rng.choice((0.001, 0.01, 0.05)))
            future.cancel(running=rng.random() < 0.5)
        elif chance < 0.25:
            return  # Held by nobody; its pool's book still counts it.
        called: list[object] = []
        future.add_done_callback(called.append)
        try:
            error = future.exception(WAIT_S)
        except CancelledError as cancelled:
            error = cancelled
        except TimeoutError:
            self.note("lost", f"no end within {WAIT_S} s: {future.record!r}")
            return
        self.done["completed" if error is None else type(error).__name__] += 1
        if error is not None and not isinstance(error, ENDS) and not _is_the_handlers(error):
            self.note("wrong_error", f"{error!r} for {future.record!r}")
        if len(called) > 1:
            self.note("twice", f"{len(called)} calls of a done-callback: {future.record!r}")

    # Actions ----------------------------------------------------------------------------------------

    def one(self, era: Era, pool: SnakepitExecutor) -> None:
        """Make one call."""
        future = self.send(era, pool)
        if future is not None:
            self.finish(future)

    def burst(self, era: Era, pool: SnakepitExecutor) -> None:
        """Make many calls at once."""
        futures = []
        for _ in range(self.rng.choice((5, 20, 100))):
            if self.rng.random() < 0.9:
                future = self.submit(era, pool.submit, *era.spoken(new_rid()))
            else:
                future = self.send(era, pool)
            if future is None:
                break
            futures.append(future)
        self.rng.shuffle(futures)
        for future in futures:
            self.finish(future)

    def visits(self, era: Era, pool: SnakepitExecutor) -> None:
        """Call a session several times in a row, without waiting in between; sometimes end it."""
        rng = self.rng
        futures = []
        with era.session_lock:
            session = era.session(rng.randrange(6), rng)
        view = pool.session(
            session.session_id,
            affinity=session.mode,
            setup=era.setup(session),
            ttl_s=0.05 if session.expires else None,
        )
        for _ in range(rng.choice((1, 3, 10))):
            how, arg = rng.choice(HOWS) if rng.random() < 0.2 else ("quick", None)
            future = self.visit(era, view, session, how, arg)
            if future is None:
                break
            futures.append(future)
        for future in futures:
            self.finish(future)
        if rng.random() < 0.1:
            with era.session_lock:
                era.epoch(session, ended=True)
                view.end()

    def visit(self, era: Era, view: Any, session: SessionBook, how: str, arg: Any) -> Any:
        """Make one call of a session; the order of acceptance is known, since one caller at a time submits."""
        options = self.options(era, how)
        options.pop("priority", None)
        what = era.spoken(new_rid(), how, arg, "visit")
        with era.session_lock:
            if era.kind == "callables":
                # A session's view takes no time-outs for callables.
                future = self.submit(era, view.submit, *what)
            else:
                future = self.submit(era, view.submit, *what, **options)
            if future is not None:
                session.calls.append(Call(era.epoch(session), future.record))
        return future

    def map(self, era: Era, pool: SnakepitExecutor) -> None:
        """Map over a list or an endless input, read some of it, close."""
        rng = self.rng
        endless = rng.random() < 0.4
        wanted = rng.choice((0, 3, 30))
        items: Iterator[Any] = (era.item(new_rid()) for _ in itertools.count())
        options: dict[str, Any] = {"return_exceptions": rng.random() < 0.5}
        # Never left out: the book knows the future of every request, and items that travel together have none.
        options["chunksize"] = rng.choice((1, 1, 7))
        if options["chunksize"] > 1 and callable(era.bare()):
            options["return_exceptions"] = False
        if endless:
            options["buffersize"] = rng.choice((1, 8, 40))
        else:
            items = itertools.islice(items, 40)
        mapping = pool.map_unordered if rng.random() < 0.4 else pool.map
        self.done["map"] += 1
        try:
            with closing(mapping(era.bare(), items, timeout=WAIT_S, **options)) as results:  # type: ignore[type-var]
                for _ in itertools.islice(results, wanted):
                    self.done["map items"] += 1
        except (*ENDS, QueueFull) as error:
            self.done[f"map: {type(error).__name__}"] += 1
        except TimeoutError:
            self.note("lost", f"{era.name}: a map had no next result within {WAIT_S} s")
        except RuntimeError as error:
            if "after shutdown" not in str(error):
                raise

    def bad_argument(self, era: Era, pool: SnakepitExecutor) -> None:
        """Make a call that has to be refused here, and nothing may be sent."""
        rid = new_rid()
        callables = era.kind == "callables"
        submit: Any = pool.submit
        tries: list[tuple[Any, tuple[type[BaseException], ...]]] = [
            (lambda: pool.options(timeout=-1), (ValueError,)),
            (lambda: pool.options(queue_timeout=math.nan), (ValueError,)),
            (lambda: pool.options(priority=True), (TypeError,)),
            (lambda: pool.session("\ud800"), (ValueError,)),
            (lambda: pool.session("x", affinity="loose"), (ValueError,)),
            (lambda: submit(7), (TypeError,)),
        ]
        if callables:
            tries += [(lambda: submit("step", {"rid": rid}), (TypeError,))]
        else:
            tries += [
                (lambda: submit("step", {"rid": rid, "arg": math.nan}), (EncodeError,)),
                (lambda: submit("step", {"rid": rid, "arg": {1, 2}}), (EncodeError,)),
                (lambda: submit("step", {"rid": rid}, {}), (TypeError,)),
                (lambda: submit("step", {"rid": rid}, tiemout=3), (TypeError,)),
                (lambda: submit(len, rid), (TypeError,)),
            ]
        call, expected = self.rng.choice(tries)
        self.done["bad argument"] += 1
        try:
            call()
        except expected:
            return
        except (PoolBroken, RuntimeError):
            # A door that is shut is looked at first.
            if era.ledger._refusal is None:
                raise
            return
        self.note("wrong_error", f"{era.name}: a bad argument was taken")

    def watch_the_pool(self, era: Era, pool: SnakepitExecutor) -> None:
        """Read the numbers; their sum must hold at every reading.  Sometimes submit what cannot be pickled."""
        stats = pool.stats()
        ended = stats.completed + stats.errors + stats.cancelled + stats.queue_timeouts + stats.command_timeouts
        if stats.requests != ended + stats.queued + stats.running or min(stats.queued, stats.running) < 0:
            self.note("counters", f"{era.name}: {stats}")
        if stats.running > era.settings["max_workers"] * 7 or stats.workers > era.settings["max_workers"]:
            self.note("counters", f"{era.name}: more running or workers than there may be: {stats}")
        pool.workers()
        if era.kind == "callables":
            future: Future[Any] | None = self.submit(era, pool.submit, len, threading.Lock())
            if future is not None and not isinstance(_end_of(future), (TypeError, *ENDS)):
                self.note("wrong_error", f"{era.name}: a lock was sent: {future!r}")
        with suppress(TimeoutError, WorkerStartError, PoolBroken, RuntimeError):
            pool.wait_ready(0.5)
        self.done["watch"] += 1


def _is_the_handlers(error: BaseException) -> bool:
    """Say whether a callable raised it: its own exception comes back."""
    return isinstance(error, (ValueError, TypeError)) and type(error.__cause__).__name__ != "NoneType"


def _end_of(future: Future[Any]) -> BaseException | None:
    try:
        return future.exception(WAIT_S)
    except CancelledError as cancelled:
        return cancelled

"""What users hold: validates and encodes in the caller's thread, admits, and hands back futures.

Runs on callers' threads; owns nothing that another thread changes.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any

import attrs

from ._clock import INHERIT, Inherit, check_timeout, monotonic_s, pick_timeout
from ._core import model as m
from ._core.numbers import PoolStats, WorkerInfo
from ._pool import checks as _checks
from ._pool import lifetime as _lifetime
from ._pool.assembly import start_pool
from ._pool.calls import CallOptions, Encoder, check_session_id
from ._pool.future import SnakepitFuture
from ._pool.intake import Intake
from ._pool.mapper import Mapper
from ._pool.roster import live_workers
from ._pool.views import OptionsView, SessionView
from ._wire import callables as _callables
from .adapters import Adapter, CallableAdapter
from .config import PoolConfig
from .sessions import SessionStore

__all__ = ("SnakepitExecutor",)


class SnakepitExecutor(Executor):
    """A pool of worker processes behind the interface of ``concurrent.futures``.

    Args:
        adapter: What the workers are; None: Python workers that run callables.  An int is ``max_workers``.
        max_workers: Pool size, >= 1.  None: ``loky.cpu_count()``, twice that for command adapters.
        name: In thread names, logs and events; ``thread_name_prefix`` is the same.
        thread_name_prefix: See ``name``.
        initializer: Called once in each worker (callable adapter only).
        initargs: Its arguments.
        mp_context: loky's or a ``spawn`` context (callable adapter only).
        max_tasks_per_child: Answered requests after which a worker is replaced, >= 1.
        max_queue_size: ``submit`` accepts at most ``max_workers + max_queue_size`` unsettled requests; None: any
            number.
        queue_full: "raise" (``QueueFull``) or "block" (wait for room).
        queue_timeout: Seconds a request may wait for a worker, start-up included; None: no limit.
        timeout: Seconds a command may run once it is its worker's oldest request; None: no limit.
        affinity: Default for sessions: "strict", "hint" or "fail_fast".
        config: Everything else.
        sessions: The store for users' session data; None: one in memory.

    Raises:
        TypeError, ValueError: A bad parameter, named in the message; raised here.
        WorkerStartError: The adapter's program or script is not there; raised here.
    """

    def __init__(
        self,
        adapter: Adapter | int | None = None,
        max_workers: int | None = None,
        *,
        name: str | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        mp_context: Any = None,
        max_tasks_per_child: int | None = None,
        max_queue_size: int | None = None,
        queue_full: str = "raise",
        queue_timeout: float | None = None,
        timeout: float | None = None,
        affinity: str = "strict",
        config: PoolConfig | None = None,
        sessions: SessionStore | None = None,
    ) -> None:
        if isinstance(adapter, int) and not isinstance(adapter, bool):
            if max_workers is not None:
                raise TypeError(f"max_workers was given twice: {adapter!r} and {max_workers!r}")
            adapter, max_workers = None, adapter
        adapter = _checks.check_adapter(adapter, initializer, initargs, mp_context)
        config = _checks.check_config(config, max_tasks_per_child)
        size = _checks.check_size(max_workers, adapter)
        least = _checks.check_least(config, adapter, size)
        _checks.check_queue(max_queue_size, queue_full)
        _checks.check_affinity(affinity)
        self._max_workers = size
        self._name = _checks.check_name(name, thread_name_prefix)
        self._adapter = adapter
        self._config = config
        if sessions is not None and not isinstance(sessions, SessionStore):
            raise TypeError(f"sessions must be a SessionStore or None, not {sessions!r}")
        # LOCK: protects the making of `_sessions`; held while a store is made, which calls nobody.
        self._sessions_lock = threading.Lock()
        self._sessions = sessions
        self._preparation = (
            _callables.Preparation(adapter.initializer, adapter.initargs, adapter.mp_context)
            if isinstance(adapter, CallableAdapter)
            else None
        )
        self._options = CallOptions(
            timeout=check_timeout("timeout", timeout),
            queue_timeout=check_timeout("queue_timeout", queue_timeout),
        )
        encoder = Encoder(adapter, config)
        parts = start_pool(
            adapter, config, self._name, self._preparation, size=size, least=least, max_queue_size=max_queue_size
        )
        try:
            self._manager, self._ledger, self._pid = parts.manager, parts.ledger, os.getpid()
            self._intake = Intake(self._name, encoder, parts.ledger, affinity, queue_full == "block", parts.lender)
            # The pool holds no reference to its intake: one that nobody holds is closed, and finishes its work.
            self._finalizer = weakref.finalize(self._intake, _lifetime.close, parts.inbox, parts.ledger)
            self._finalizer.atexit = False
        except BaseException:
            _lifetime.close(parts.inbox, parts.ledger)
            raise

    # Single calls -----------------------------------------------------------------------------------

    def submit(self, command: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> SnakepitFuture:
        """Schedule a command or a callable.

        ``submit(command, args={}, /, *, session=None, timeout=, queue_timeout=, priority=0)`` or
        ``submit(fn, /, *args, **kwargs)``, where all arguments belong to ``fn``.

        Args:
            command: A command's name, or a callable (callable adapter only).
            args: For a command, at most one JSON value.
            kwargs: For a command: ``session`` (id), ``timeout`` and ``queue_timeout`` (seconds > 0, None for no
                limit, left out for the pool's), ``priority`` (int; larger runs sooner).

        Arrays and other objects that pickle their memory as buffers (pickle protocol 5) are not copied when they are
        submitted: they are read when the call is sent, so do not change them before the result is there; submit a
        copy otherwise.

        Returns:
            A ``concurrent.futures.Future``, with ``pid`` and ``cancel(running=True)``.

        Raises:
            EncodeError: The args cannot be sent; raised here.
            UnknownCommand, InvalidArguments: By the adapter's check; raised here.
            QueueFull: The pool is saturated; raised here.
            RuntimeError: The pool is shut down; raised here.
            PoolBroken: The pool is broken; raised here.
            TypeError, ValueError: A bad parameter; raised here.
        """
        return self._intake.submit(command, args, kwargs, self._options)

    def execute(self, command: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do the same as ``submit`` and return the result, or raise the future's exception.

        Raises:
            RuntimeError: Called on a thread of the pool, where it would deadlock; raised here.
        """
        return self._intake.execute(command, args, kwargs, self._options)

    # Batches ----------------------------------------------------------------------------------------

    def map(  # type: ignore[override]  # a command is a str
        self,
        command: str | Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Run a command or callable over every item and return an iterator over the results, in order.

        Args:
            command: A command's name (then one iterable of args), or a callable.
            iterables: Read at once, unless ``buffersize`` is given.
            timeout: Seconds from this call until the last result; then ``TimeoutError`` from the iterator.
            chunksize: Items that travel together, >= 1; None: 1 for callables, and for commands as many as take some
                milliseconds; a worker that dies fails those that it has not answered.  1 keeps them apart.
            buffersize: Most items that are out at a time, >= 1; an endless iterable works then.
            options: For commands: ``session``, ``item_timeout`` (seconds one item may run), ``queue_timeout``,
                ``priority``.  For callables without chunks too: ``return_exceptions`` (an item's exception stands at
                its place instead of ending the iteration).

        Returns:
            An iterator; closing it cancels what has not begun.
        """
        mapper = Mapper(self._intake, self._options)
        return mapper.in_order(command, iterables, timeout, chunksize, buffersize, options)

    def map_unordered(
        self,
        command: str | Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Do the same as ``map``, but return the results as they complete."""
        mapper = Mapper(self._intake, self._options)
        return mapper.as_completed(command, iterables, timeout, chunksize, buffersize, options)

    # Views ------------------------------------------------------------------------------------------

    def options(
        self,
        *,
        session: str | None = None,
        timeout: float | Inherit | None = INHERIT,
        queue_timeout: float | Inherit | None = INHERIT,
        priority: int = 0,
    ) -> OptionsView:
        """Return a view with ``submit``, ``execute``, ``map`` and these settings; how callables get them.

        Args:
            session: Session id, or None.
            timeout: Seconds a request may run, None for no limit, left out for the pool's.
            queue_timeout: Seconds a request may wait, likewise.
            priority: Larger runs sooner.

        Raises:
            TypeError, ValueError: A bad value, named; raised here.
        """
        given = {"session": session, "timeout": timeout, "queue_timeout": queue_timeout, "priority": priority}
        return OptionsView(self, self._options.override(given))

    def session(
        self,
        session_id: str | None = None,
        *,
        ttl_s: float | None = None,
        affinity: str | None = None,
        setup: Iterable[tuple[Any, ...]] = (),
    ) -> SessionView:
        """Return a view of one session, also a context manager that ends it.

        Args:
            session_id: Its id; None makes a new one.
            ttl_s: Idle seconds after which the binding ends, ``math.inf``: never; None: the pool's ``session_ttl_s``.
            affinity: "strict", "hint" or "fail_fast"; None: the pool's.  Fixed by the call that binds.
            setup: ``(command, args)`` pairs, or ``(fn, *args)``, run before the session's first request on each
                worker it is bound to.

        Raises:
            TypeError, ValueError: A bad value, named; raised here.
            EncodeError: A set-up command's args cannot be sent; raised here.
        """
        affinity = self._intake.affinity if affinity is None else _checks.check_affinity(affinity)
        session_id = os.urandom(16).hex() if session_id is None else check_session_id(session_id)
        options = attrs.evolve(
            self._options,
            session=session_id,
            affinity=affinity,
            ttl_s=None if ttl_s is None else check_timeout("ttl_s", ttl_s) or math.inf,
            setup=tuple(self._intake.encoder.setup_step(step, session_id) for step in setup),
        )
        return SessionView(self, options)

    def end_session(self, session_id: str) -> None:
        """End a session's binding after its accepted requests; its worker drops the state.

        Args:
            session_id: Its id; unknown ones are ignored.
        """
        self._manager.request(m.SessionEnded(check_session_id(session_id)), wait=False)

    @property
    def sessions(self) -> SessionStore:
        """The store for users' session data (apart from affinity)."""
        with self._sessions_lock:
            if self._sessions is None:
                config = self._config
                self._sessions = SessionStore(
                    default_ttl_s=config.session_ttl_s, max_sessions=config.max_sessions
                )
            return self._sessions

    @property
    def mp_context(self) -> Any:
        """The context whose locks and queues may be among ``initargs``; None for command adapters."""
        return None if self._preparation is None else self._preparation.context

    # The pool ---------------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return the pool's numbers at this instant."""
        return self._ledger.stats()

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return what is known of each live worker, by slot; empty after the shutdown."""
        return live_workers(self._manager)

    def wait_ready(self, timeout: float | Inherit | None = INHERIT, workers: int = 1) -> None:
        """Start ``workers`` workers if need be and wait until so many are ready.

        Args:
            timeout: Seconds > 0; left out: ``startup_timeout_s``; None: no limit.
            workers: 1 to the pool's size.

        Raises:
            WorkerStartError: None can start: argv, exit code, stderr tail; raised here.
            TimeoutError: Not in time; nothing is broken by that; raised here.
            RuntimeError: The pool is shut down, or this is one of its own threads; raised here.
        """
        _checks.check_int("workers", workers, 1)
        if workers > self._max_workers:
            raise ValueError(f"workers must be 1 to {self._max_workers} (the pool's size), not {workers}")
        limit_s = pick_timeout("timeout", timeout, check_timeout("startup_timeout_s", self._config.startup_timeout_s))
        self._intake.refuse_to_wait("wait_ready()")
        waiter: Future[None] = Future()
        if not self._manager.post(m.WorkersWanted(workers, waiter)):
            raise self._ledger.refusal() or RuntimeError("the pool is shut down")
        try:
            waiter.result(limit_s)
        except TimeoutError:
            if waiter.done():
                raise
            failed = self._manager.ask(lambda scheduler: scheduler.lifecycle.policy.last_error)
            numbers = f"{workers} ready workers were not there within {limit_s} s: {self.stats()}"
            raise TimeoutError(f"{numbers}; {failed}" if failed else numbers) from failed

    def restart_worker(self, worker_id: str) -> None:
        """Drain one worker and replace it; returns when that has begun.

        Args:
            worker_id: As in ``workers()``.

        Raises:
            LookupError: No such worker; raised here.
        """
        known = [info.worker_id for info in self.workers()]
        if worker_id not in known:
            raise LookupError(f"no worker {worker_id!r}; there are: {', '.join(known) or 'none'}")
        self._manager.request(m.RestartRequested(worker_id))

    def recycle(self) -> None:
        """Replace every worker, one at a time, each between requests; heals a broken pool."""
        self._manager.request(m.RecycleRequested())

    # The end ----------------------------------------------------------------------------------------

    def terminate_workers(self) -> None:
        """End every worker at once (TERM, then KILL) and shut down; running requests fail with ``WorkerDied``."""
        self._end_now(kill=False)

    def kill_workers(self) -> None:
        """End every worker at once with KILL and shut down; running requests fail with ``WorkerDied``."""
        self._end_now(kill=True)

    def _end_now(self, *, kill: bool, wait: bool = False) -> None:
        self._shut_door()
        self._manager.request(m.EndRequested(kill))
        if wait:
            self.shutdown()

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Accept no more; finish accepted work; end the workers.  May be called again, from any thread.

        Args:
            wait: Return when no worker is left; on a thread of the pool it acts as False.
            cancel_futures: Cancel what has not begun.
            timeout: Seconds > 0 after which running requests are ended too (``WorkerDied``) and queued ones
                cancelled; None: no limit.
        """
        limit_s = check_timeout("timeout", timeout)
        self._shut_door()
        if cancel_futures:
            # Here and not by the manager: what was queued when this returns must not begin later.
            for request in self._ledger.pending():
                request.future.cancel()
        end_at = None if limit_s is None else monotonic_s() + limit_s
        self._manager.request(m.ShutdownRequested(cancel_futures, end_at), wait=False)
        if wait and not self._ledger.on_own_thread and self._pid == os.getpid():
            self._manager.join()

    def _shut_door(self) -> None:
        self._finalizer.detach()
        self._ledger.refuse(lambda: RuntimeError("cannot schedule new futures after shutdown"), final=True)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Somebody who presses Ctrl-C does not mean "after the queue is empty", and who presses it again means "now".
        hurried = exc_type is not None and issubclass(exc_type, _lifetime.INTERRUPTS)
        hurry = functools.partial(self.shutdown, cancel_futures=True, timeout=self._config.shutdown_grace_s)
        steps = (hurry, functools.partial(self._end_now, kill=True, wait=True))
        interrupt = _lifetime.leave(steps if hurried else (self.shutdown, *steps))
        if interrupt is not None and not hurried:
            raise interrupt

    def __repr__(self) -> str:
        return f"<SnakepitExecutor {self._name!r} {type(self._adapter).__name__} max_workers={self._max_workers}>"

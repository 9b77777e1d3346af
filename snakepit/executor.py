"""What users hold: validates and encodes in the caller's thread, admits, and hands back futures.

Runs on callers' threads; owns nothing that another thread changes.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from types import TracebackType
from typing import Any

import attrs

from . import telemetry
from ._clock import INHERIT, Inherit, check_timeout, monotonic_s, pick_timeout
from ._core import model as m
from ._core.model import PoolStats, Request, WorkerInfo
from ._core.scheduler import Scheduler
from ._inbox import Inbox
from ._pool import lifetime as _lifetime
from ._pool.calls import COMMAND_KEYWORDS, CallOptions, Encoder, check_session_id
from ._pool.future import SnakepitFuture
from ._pool.launch import Launcher
from ._pool.ledger import Ledger
from ._pool.manager import Manager
from ._pool.map import check_chunksize, results_as_completed, results_in_order
from ._pool.queries import describe_worker
from ._pool.views import OptionsView, SessionView
from ._wire import callables as _callables
from .adapters import Adapter, CallableAdapter
from .config import PoolConfig
from .errors import QueueFull
from .sessions import SessionStore

__all__ = ("SnakepitExecutor",)

_AFFINITIES = ("strict", "hint", "fail_fast")


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
        max_queue_size: ``submit`` accepts at most ``max_workers + max_queue_size`` unsettled requests; None: any number.
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
        adapter = _check_adapter(adapter, initializer, initargs, mp_context)
        config = _check_config(config, max_tasks_per_child)
        size = _check_size(max_workers, adapter)
        least = config.min_workers
        if least is None:
            least = 0 if adapter.runs_callables else size
        if least > size:
            raise ValueError(f"min_workers ({least}) must not be above max_workers ({size})")
        if max_queue_size is not None:
            _check_int("max_queue_size", max_queue_size, 0)
        if queue_full not in ("raise", "block"):
            raise ValueError(f"queue_full must be 'raise' or 'block', not {queue_full!r}")
        if affinity not in _AFFINITIES:
            raise ValueError(f"affinity must be one of {', '.join(_AFFINITIES)}, not {affinity!r}")
        self._max_workers = size
        self._name = name if name is not None else thread_name_prefix or "pool"
        if not isinstance(self._name, str):
            raise TypeError(f"name must be a str, not {self._name!r}")
        self._adapter = adapter
        self._config = config
        self._affinity = affinity
        self._block = queue_full == "block"
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
        self._encoder = Encoder(adapter, config)
        self._start(size, least, max_queue_size)

    def _start(self, size: int, least: int, max_queue_size: int | None) -> None:
        launcher = Launcher(self._adapter, self._name, self._preparation)
        inbox = Inbox()
        limit = None if max_queue_size is None else size + max_queue_size
        ledger = Ledger(inbox, limit, self._config.max_queued_bytes)
        try:
            self._manager = Manager(
                scheduler=Scheduler(self._name, size, least, self._config),
                inbox=inbox,
                ledger=ledger,
                launcher=launcher,
                adapter=self._adapter,
                config=self._config,
                name=self._name,
                on_end=_lifetime.forget,
            )
            _lifetime.remember(self._manager, inbox, ledger)
            try:
                self._manager.start()
            except BaseException:
                _lifetime.forget(self._manager)
                raise
        except BaseException:
            inbox.close()
            raise
        self._ledger = ledger
        self._pid = os.getpid()
        # The manager holds no reference to the executor: a dropped one is closed, and finishes its work.
        self._finalizer = weakref.finalize(self, _lifetime.close, inbox, ledger)
        self._finalizer.atexit = False

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
        if isinstance(command, str):
            return self._submit_command(command, args, self._options.override(kwargs), self._block)
        return self._submit_call(command, args, kwargs, self._options, self._block)

    def execute(self, command: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do the same as ``submit`` and return the result, or raise the future's exception.

        Raises:
            RuntimeError: Called on a thread of the pool, where it would deadlock; raised here.
        """
        self._refuse_to_wait("execute()")
        future = self.submit(command, *args, **kwargs)
        try:
            return future.result()
        finally:
            # An exception's traceback must not keep the future, and the future the exception.
            del future

    def _submit_command(
        self, command: str, args: tuple[Any, ...], options: CallOptions, block: bool
    ) -> SnakepitFuture:
        ledger = self._ledger
        ledger.check_open()
        if len(args) > 1:
            raise TypeError(f"submit({command!r}, ...) takes one args value, not {len(args)}")
        content, run_timeout_s = self._encoder.command(command, args[0] if args else {}, options)
        request = self._request(content, command, options, run_timeout_s, content.size_bytes)
        return self._admit(request, block)

    def _submit_call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        block: bool,
        calls: list[tuple[Any, ...]] | None = None,
    ) -> SnakepitFuture:
        ledger = self._ledger
        ledger.check_open()
        lazy = ledger.overfull()
        content, name, error = self._encoder.call(fn, args, kwargs, calls, options.session, lazy)
        size_bytes = len(content.body) if content.body is not None else 0
        request = self._request(content, name, options, options.timeout, size_bytes)
        request.weight = 1 if calls is None else len(calls)
        if error is not None:
            future = SnakepitFuture(ledger)
            ledger.admit_failed(request)
            future.set_exception(error)
            return future
        return self._admit(request, block, lazy_bytes=True)

    def _request(
        self, content: Any, name: str, options: CallOptions, timeout_s: float | None, size_bytes: int
    ) -> Request:
        now = monotonic_s()
        queue_s = options.queue_timeout
        return Request(
            content,
            name,
            session_id=options.session,
            affinity=options.affinity or self._affinity,
            setup=options.setup,
            ttl_s=options.ttl_s,
            priority=options.priority,
            timeout_s=timeout_s,
            queue_deadline=None if queue_s is None else now + queue_s,
            accepted_at=now,
            size_bytes=size_bytes,
        )

    def _admit(self, request: Request, block: bool, *, lazy_bytes: bool = False) -> SnakepitFuture:
        ledger = self._ledger
        future = SnakepitFuture(ledger)
        request.future = future
        future._request = request
        try:
            ledger.admit(
                request,
                block=block and not ledger.on_own_thread,
                deadline=request.queue_deadline,
                lazy_bytes=lazy_bytes,
            )
        except QueueFull:
            telemetry.execute("snakepit.pool.saturated", {}, {"pool": self._name, "command": request.command})
            raise
        return future

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
            chunksize: Items that travel together, >= 1; None: adaptive for commands, 1 for callables.
            buffersize: Most items that are out at a time, >= 1; an endless iterable works then.
            options: For commands: ``session``, ``item_timeout`` (seconds one item may run), ``return_exceptions``
                (an item's exception stands at its place instead of ending the iteration), ``queue_timeout``, ``priority``.

        Returns:
            An iterator; closing it cancels what has not begun.
        """
        submit = self._mapper(command, iterables, chunksize, options)
        every = options.get("return_exceptions", False)
        return results_in_order(submit, iterables, chunksize or 1, buffersize, timeout, every)

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
        submit = self._mapper(command, iterables, chunksize, options)
        every = options.get("return_exceptions", False)
        guard = partial(self._refuse_to_wait, "map_unordered()")
        return results_as_completed(submit, iterables, chunksize or 1, buffersize, timeout, every, guard)

    def _mapper(
        self,
        command: str | Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        chunksize: int | None,
        options: dict[str, Any],
        base: CallOptions | None = None,
    ) -> Callable[[list[tuple[Any, ...]]], list[tuple[Future[Any], bool]]]:
        """Return a function that submits one chunk of items: [(future, it holds a list of results)]."""
        check_chunksize(chunksize)
        base = base or self._options
        if not isinstance(command, str):
            allowed = {"return_exceptions"}
            _refuse_keywords("map", options, allowed)
            return partial(self._submit_call_chunk, command, base, (chunksize or 1) > 1)
        if len(iterables) != 1:
            raise TypeError(f"map({command!r}, ...) takes one iterable of args, not {len(iterables)}")
        _refuse_keywords(
            "map", options, {*COMMAND_KEYWORDS, "item_timeout", "return_exceptions"} - {"timeout"}
        )
        given = {name: value for name, value in options.items() if name in COMMAND_KEYWORDS}
        if "item_timeout" in options:
            given["timeout"] = check_timeout("item_timeout", options["item_timeout"])
        return partial(self._submit_command_chunk, command, base.override(given))

    def _submit_command_chunk(
        self, command: str, options: CallOptions, items: list[tuple[Any, ...]]
    ) -> list[tuple[Future[Any], bool]]:
        chunk = object() if len(items) > 1 else None
        futures: list[tuple[Future[Any], bool]] = []
        for item in items:
            self._ledger.check_open()
            future: Future[Any]
            try:
                content, run_timeout_s = self._encoder.command(command, item[0], options)
            except Exception as error:
                # A bad item fails at its place; the door shut or no room ends the map.
                future = Future()
                future.set_exception(error)
            else:
                request = self._request(content, command, options, run_timeout_s, content.size_bytes)
                request.chunk = chunk
                # Waits for room even where submit() raises: a map is one call, and its input may be endless.
                future = self._admit(request, True)
            futures.append((future, False))
        return futures

    def _submit_call_chunk(
        self, fn: Callable[..., Any], options: CallOptions, chunked: bool, items: list[tuple[Any, ...]]
    ) -> list[tuple[Future[Any], bool]]:
        if not chunked:
            return [(self._submit_call(fn, item, {}, options, True), False) for item in items]
        return [(self._submit_call(fn, (), {}, options, True, calls=items), True)]

    # Views ------------------------------------------------------------------------------------------

    def options(
        self,
        *,
        session: str | None = None,
        timeout: float | None | Inherit = INHERIT,
        queue_timeout: float | None | Inherit = INHERIT,
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
            ttl_s: Idle seconds after which the binding ends; None: the pool's ``session_ttl_s``.
            affinity: "strict", "hint" or "fail_fast"; None: the pool's.  Fixed by the call that binds.
            setup: ``(command, args)`` pairs, or ``(fn, *args)``, run before the session's first request on each
                worker it is bound to.

        Raises:
            TypeError, ValueError: A bad value, named; raised here.
            EncodeError: A set-up command's args cannot be sent; raised here.
        """
        if affinity is not None and affinity not in _AFFINITIES:
            raise ValueError(f"affinity must be one of {', '.join(_AFFINITIES)}, not {affinity!r}")
        session_id = os.urandom(16).hex() if session_id is None else check_session_id(session_id)
        options = attrs.evolve(
            self._options,
            session=session_id,
            affinity=affinity or self._affinity,
            ttl_s=check_timeout("ttl_s", ttl_s),
            setup=tuple(self._encoder.setup_step(step, session_id) for step in setup),
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
        found: tuple[WorkerInfo, ...] | None = self._manager.ask(
            lambda scheduler: tuple(
                describe_worker(worker, monotonic_s())
                for worker in sorted(scheduler.board.workers.by_id.values(), key=lambda w: w.slot.index)
            )
        )
        return tuple(attrs.evolve(info, rss_bytes=info.rss_bytes or _rss(info.pid)) for info in found or ())

    def wait_ready(self, timeout: float | None | Inherit = INHERIT, workers: int = 1) -> None:
        """Start ``workers`` workers if need be and wait until so many are ready.

        Args:
            timeout: Seconds > 0; left out: ``startup_timeout_s``; None: no limit.
            workers: 1 to the pool's size.

        Raises:
            WorkerStartError: None can start: argv, exit code, stderr tail; raised here.
            TimeoutError: Not in time; nothing is broken by that; raised here.
            RuntimeError: The pool is shut down, or this is one of its own threads; raised here.
        """
        _check_int("workers", workers, 1)
        if workers > self._max_workers:
            raise ValueError(f"workers must be 1 to {self._max_workers} (the pool's size), not {workers}")
        limit_s = pick_timeout("timeout", timeout, self._config.startup_timeout_s)
        self._refuse_to_wait("wait_ready()")
        waiter: Future[None] = Future()
        if not self._manager.post(m.WorkersWanted(workers, waiter)):
            raise RuntimeError("the pool is shut down")
        try:
            waiter.result(limit_s)
        except TimeoutError:
            if waiter.done():
                raise
            raise TimeoutError(
                f"{workers} ready workers were not there within {limit_s} s: {self.stats()}"
            ) from None

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

    def _end_now(self, *, kill: bool) -> None:
        self._shut_door()
        self._manager.request(m.EndRequested(kill))

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
        # Somebody who presses Ctrl-C does not mean "after the queue is empty".
        if exc_type is not None and issubclass(exc_type, (KeyboardInterrupt, SystemExit)):
            self.shutdown(cancel_futures=True, timeout=self._config.shutdown_grace_s)
            return
        try:
            self.shutdown()
        except (KeyboardInterrupt, SystemExit):
            self.shutdown(cancel_futures=True, timeout=self._config.shutdown_grace_s)
            raise

    def _refuse_to_wait(self, what: str) -> None:
        if self._ledger.on_own_thread:
            raise RuntimeError(f"would deadlock: {what} on the pool's own thread waits for that thread")

    def __repr__(self) -> str:
        return f"<SnakepitExecutor {self._name!r} {type(self._adapter).__name__} max_workers={self._max_workers}>"


def _refuse_keywords(method: str, given: Mapping[str, Any], allowed: set[str]) -> None:
    for name in given:
        if name not in allowed:
            raise TypeError(
                f"{method}() got an unexpected keyword argument {name!r}; it takes {', '.join(sorted(allowed))}"
            )


def _rss(pid: int | None) -> int | None:
    if pid is None:
        return None
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int >= {least}, not {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"{name} must be an int >= {least}, not {value!r}")


def _check_adapter(
    adapter: object, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], mp_context: Any
) -> Adapter:
    given = initializer is not None or bool(initargs) or mp_context is not None
    if adapter is None:
        return CallableAdapter(initializer, initargs, mp_context)
    if not isinstance(adapter, Adapter):
        hint = f"; did you mean {adapter.__name__}(...)?" if isinstance(adapter, type) else ""
        raise TypeError(
            f"adapter must be an Adapter (PythonAdapter, JavaScriptAdapter, CommandAdapter, CallableAdapter)"
            f" or None, not {adapter!r}{hint}"
        )
    if given:
        raise ValueError(
            f"initializer, initargs and mp_context are for the callable adapter; give them to it,"
            f" not to the executor of a {type(adapter).__name__}"
        )
    return adapter


def _check_config(config: PoolConfig | None, max_tasks_per_child: int | None) -> PoolConfig:
    if config is None:
        config = PoolConfig()
    elif not isinstance(config, PoolConfig):
        raise TypeError(f"config must be a PoolConfig, not {config!r}")
    if max_tasks_per_child is not None:
        _check_int("max_tasks_per_child", max_tasks_per_child, 1)
        config = attrs.evolve(config, max_requests_per_worker=max_tasks_per_child)
    return config


def _check_size(max_workers: int | None, adapter: Adapter) -> int:
    if max_workers is None:
        import loky

        cpus = int(loky.cpu_count())
        return cpus if adapter.runs_callables else 2 * cpus
    _check_int("max_workers", max_workers, 1)
    return max_workers

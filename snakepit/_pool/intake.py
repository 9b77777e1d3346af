"""The way of a call into the pool: encoded, made a request, admitted, handed back as a future.

Runs on callers' threads; owns nothing that another thread changes.  Executors, views and the iterators
of maps hold it, the pool does not: the pool is closed when nobody holds it any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .. import telemetry
from .._clock import monotonic_s
from .._core.model import Request
from ..errors import QueueFull
from .calls import CallOptions, Encoder
from .direct import call, send
from .future import SnakepitFuture
from .interrupts import Deferred
from .ledger import Ledger
from .loans import Lender

__all__ = ("Intake",)


class Intake:
    """Takes the calls of one pool.

    Args:
        pool: The pool's name.
        encoder: Checks and encodes the calls.
        ledger: Admits the requests.
        affinity: For sessions that do not say.
        block: ``submit`` waits for room in a full pool.
        lender: Of workers for calls on callers' own threads.
    """

    def __init__(
        self, pool: str, encoder: Encoder, ledger: Ledger, affinity: str, block: bool, lender: Lender
    ) -> None:
        self.encoder = encoder
        self.ledger = ledger
        self.affinity = affinity
        self._pool = pool
        self._block = block
        self._lender = lender

    def submit(
        self, command: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], base: CallOptions
    ) -> SnakepitFuture:
        """Do what ``SnakepitExecutor.submit`` says, with the settings of ``base``."""
        if not isinstance(command, str):
            return self.submit_call(command, args, kwargs, base, block=self._block)
        request = self._command(command, args, kwargs, base)
        return self._direct(request, send) or self.admit(request, block=self._block)

    def execute(
        self, command: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], base: CallOptions
    ) -> Any:
        """Do the same and wait for the result."""
        self.refuse_to_wait("execute()")
        if isinstance(command, str):
            request = self._command(command, args, kwargs, base)
            lazy_bytes = False
        else:
            request, error = self._call(command, args, kwargs, base, None)
            if error is not None:
                raise error
            lazy_bytes = True
        future = self._direct(request, call) or self.admit(request, block=self._block, lazy_bytes=lazy_bytes)
        try:
            return future.result()
        finally:
            # An exception's traceback must not keep the future, and the future the exception.
            del future

    def _command(
        self, command: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], base: CallOptions
    ) -> Request:
        options = base.override(kwargs)
        self.ledger.check_open()
        if len(args) > 1:
            raise TypeError(f"submit({command!r}, ...) takes one args value, not {len(args)}")
        content, timeout_s = self.encoder.command(command, args[0] if args else {}, options)
        return self.request(content, command, options, timeout_s, content.size_bytes)

    def submit_call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        *,
        block: bool,
        calls: list[tuple[Any, ...]] | None = None,
    ) -> SnakepitFuture:
        """Submit one call of ``fn``, or with ``calls`` one for each of these args, which travel together."""
        request, error = self._call(fn, args, kwargs, options, calls)
        if error is not None:
            future = SnakepitFuture(self.ledger)
            future.set_exception(error)
            return future
        direct = self._direct(request, send) if calls is None else None
        return direct or self.admit(request, block=block, lazy_bytes=True)

    def _call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        calls: list[tuple[Any, ...]] | None,
    ) -> tuple[Request, BaseException | None]:
        """Return the request of a call, and what its pickling raised: then it has been counted, and has failed."""
        ledger = self.ledger
        ledger.check_open()
        content, name, error = self.encoder.call(fn, args, kwargs, calls, options.session, ledger.overfull())
        size_bytes = len(content.body) if content.body is not None else 0
        request = self.request(content, name, options, options.timeout, size_bytes)
        if content.body is None:
            request.encoded_bytes = math.inf
        request.weight = 1 if calls is None else len(calls)
        if error is not None:
            ledger.admit_failed(request)
        return request, error

    def _direct(self, request: Request, way: Callable[[Lender, Request], bool]) -> SnakepitFuture | None:
        """Let this thread send a request, and with ``call`` read its answer, where that is possible at once."""
        if not self._may_be_direct(request):
            return None
        future = SnakepitFuture(self.ledger, request)
        request.future = future
        with Deferred() as safe:
            if not (safe and way(self._lender, request)):
                return None
        return future

    def _may_be_direct(self, request: Request) -> bool:
        return self._lender.has_resting and request.session_id is None and not self.ledger.on_own_thread

    def request(
        self, content: Any, name: str, options: CallOptions, timeout_s: float | None, size_bytes: int
    ) -> Request:
        """Return a request that is accepted now, if it is admitted.

        Args:
            content: What is sent.
            name: The command's or callable's, for messages.
            options: How it is to be treated.
            timeout_s: Seconds it may run, None for no limit.
            size_bytes: Of the encoded content; 0: not encoded yet.
        """
        now = monotonic_s()
        queue_s = options.queue_timeout
        return Request(
            content,
            name,
            session_id=options.session,
            affinity=options.affinity or self.affinity,
            setup=options.setup,
            ttl_s=options.ttl_s,
            priority=options.priority,
            timeout_s=timeout_s,
            queue_deadline=None if queue_s is None else now + queue_s,
            accepted_at=now,
            size_bytes=size_bytes,
        )

    def admit(self, request: Request, *, block: bool, lazy_bytes: bool = False) -> SnakepitFuture:
        """Let a request in and return its future.

        Args:
            request: A new one.
            block: Wait for room, except on a thread of the pool.
            lazy_bytes: The content can be encoded later; its bytes are no reason to refuse it.

        Raises:
            QueueFull, RuntimeError, PoolBroken: As in ``submit``; raised here.
        """
        ledger = self.ledger
        future = SnakepitFuture(ledger, request)
        request.future = future
        try:
            ledger.admit(
                request,
                block=block and not ledger.on_own_thread,
                deadline=request.queue_deadline,
                lazy_bytes=lazy_bytes,
            )
        except QueueFull:
            telemetry.execute("snakepit.pool.saturated", {}, {"pool": self._pool, "command": request.command})
            raise
        return future

    def admit_bulk(self, request: Request) -> None:
        """Let a bulk of items in, waiting for room where there is none, except on a thread of the pool."""
        self.ledger.admit(request, block=not self.ledger.on_own_thread, deadline=None)

    def admit_all(self, requests: list[Request]) -> list[SnakepitFuture]:
        """Let requests in, in order, waiting for room where there is none; return their futures."""
        futures = []
        for request in requests:
            request.future = SnakepitFuture(self.ledger, request)
            futures.append(request.future)
        accepted = self.ledger.admit_all(requests)
        for place in range(accepted, len(requests)):
            futures[place] = self.admit(requests[place], block=True)
        return futures

    def refuse_to_wait(self, what: str) -> None:
        """Raise RuntimeError on a thread of the pool, where ``what`` would wait for itself."""
        if self.ledger.on_own_thread:
            raise RuntimeError(f"would deadlock: {what} on the pool's own thread waits for that thread")

"""The way of a call into the pool: encoded, made a request, admitted, handed back as a future.

Runs on callers' threads; owns nothing that another thread changes.  Executors, views and the iterators
of maps hold it, the pool does not: the pool is closed when nobody holds it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import telemetry
from .._clock import monotonic_s
from .._core.model import Request
from ..errors import QueueFull
from .calls import CallOptions, Encoder
from .future import SnakepitFuture
from .ledger import Ledger

__all__ = ("Intake",)


class Intake:
    """Takes the calls of one pool.

    Args:
        pool: The pool's name.
        encoder: Checks and encodes the calls.
        ledger: Admits the requests.
        affinity: For sessions that do not say.
        block: ``submit`` waits for room in a full pool.
    """

    def __init__(self, pool: str, encoder: Encoder, ledger: Ledger, affinity: str, block: bool) -> None:
        self.encoder = encoder
        self.ledger = ledger
        self.affinity = affinity
        self._pool = pool
        self._block = block

    def submit(
        self, command: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], base: CallOptions
    ) -> SnakepitFuture:
        """Do what ``SnakepitExecutor.submit`` says, with the settings of ``base``."""
        if not isinstance(command, str):
            return self.submit_call(command, args, kwargs, base, block=self._block)
        options = base.override(kwargs)
        self.ledger.check_open()
        if len(args) > 1:
            raise TypeError(f"submit({command!r}, ...) takes one args value, not {len(args)}")
        content, timeout_s = self.encoder.command(command, args[0] if args else {}, options)
        request = self.request(content, command, options, timeout_s, content.size_bytes)
        return self.admit(request, block=self._block)

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
        ledger = self.ledger
        ledger.check_open()
        lazy = ledger.overfull()
        content, name, error = self.encoder.call(fn, args, kwargs, calls, options.session, lazy)
        size_bytes = len(content.body) if content.body is not None else 0
        request = self.request(content, name, options, options.timeout, size_bytes)
        request.weight = 1 if calls is None else len(calls)
        if error is not None:
            future = SnakepitFuture(ledger)
            ledger.admit_failed(request)
            future.set_exception(error)
            return future
        return self.admit(request, block=block, lazy_bytes=True)

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
            telemetry.execute("snakepit.pool.saturated", {}, {"pool": self._pool, "command": request.command})
            raise
        return future

    def refuse_to_wait(self, what: str) -> None:
        """Raise RuntimeError on a thread of the pool, where ``what`` would wait for itself."""
        if self.ledger.on_own_thread:
            raise RuntimeError(f"would deadlock: {what} on the pool's own thread waits for that thread")

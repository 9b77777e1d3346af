"""What a worker's bytes turn out to be: the answers and accidents that a link reports to the manager.

Made by the link on the manager's thread; owned by whoever handles them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from .._core.model import Request, RequestKind, RequestState, Worker
from .._wire import callables as _callables
from .._wire.blocks import recycle
from .._wire.frames import Buffer

__all__ = ("Arrival", "Garbled", "Refused", "Reply", "Shaken", "SteppedOver", "take_answers")


@attrs.frozen(eq=False)
class Shaken:
    """The handshake is valid.

    Attributes:
        announced: What the worker said of itself: language, version, commands; empty at level 0.
    """

    can_claim: bool
    can_end_session: bool
    can_batch: bool = False
    announced: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Refused:
    """The worker answered the handshake with an error; ``fatal`` when its initializer raised."""

    error: BaseException
    fatal: bool = False


@attrs.define(eq=False)
class Reply:
    """The answer to the request that was open longest.

    Attributes:
        request: That request.
        error: What it failed with, or None.
        value: The result, unless ``pickled`` holds it.
        pickled: (kind, body, buffers) of a callable's reply that is not loaded yet, or None.
    """

    request: Request
    error: BaseException | None
    value: Any = None
    pickled: tuple[str, memoryview, Sequence[Buffer]] | None = None

    @property
    def good(self) -> bool:
        """True for a result, as far as can be told before it is loaded."""
        return self.error is None and (self.pickled is None or self.pickled[0] == "result")

    def load(self) -> tuple[Any, BaseException | None]:
        """Return (value, None) or (None, error); a failing unpickle is an error of this request only."""
        if self.pickled is None:
            return self.value, self.error
        kind, body, buffers = self.pickled
        loaded = _callables.load_reply(kind, body, buffers)
        recycle(body)
        return loaded


@attrs.frozen(eq=False)
class SteppedOver:
    """The worker stepped over a request that was taken back."""


@attrs.frozen(eq=False)
class Garbled:
    """The worker broke the protocol, or what it wrote could not be read; nothing after it can be trusted."""

    error: Exception


Arrival = Shaken | Refused | Reply | SteppedOver | Garbled


def take_answers(worker: Worker, arrivals: deque[Arrival]) -> list[Reply]:
    """Take the answers to a worker's oldest requests off the front of ``arrivals``.

    Returns:
        Several only where all of them answer users who still wait: they are one event then.  None: something
        else has arrived, or a late answer.
    """
    replies: list[Reply] = []
    for request in worker.sent:
        arrival = arrivals[0] if arrivals else None
        if type(arrival) is not Reply or arrival.request is not request:
            break
        waits = request.kind is RequestKind.USER and request.state is RequestState.SENT
        if replies and not waits:
            break
        replies.append(arrival)
        arrivals.popleft()
        if not waits:
            break
    return replies

"""What a request of a callable carries until it is sent.

Made on the caller's thread, encoded there or on the manager's.
"""

from __future__ import annotations

from collections.abc import Callable

from .._wire.pickled import Pickled

__all__ = ("CallContent",)


class CallContent:
    """A call of a callable, pickled or (when the queue holds too many bytes) still to be pickled.

    Args:
        kind: "call" or "chunk".
        encode: Makes the pickle.
        body: The pickle, or None until the request is sent.
    """

    __slots__ = ("body", "encode", "kind", "session_id")

    def __init__(
        self,
        kind: str,
        encode: Callable[[], bytes | Pickled],
        body: bytes | Pickled | None,
        session_id: str | None = None,
    ) -> None:
        self.kind = kind
        self.encode = encode
        self.body = body
        self.session_id = session_id

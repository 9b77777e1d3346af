"""Workers that run callables.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

from .._bridges import bridge_path
from .._worker_options import WorkerOptions
from .base import Adapter

__all__ = ("CallableAdapter",)


class CallableAdapter(Adapter):
    """Python workers that run callables, as those of ``ProcessPoolExecutor`` do.

    Args:
        initializer: Called once in each worker before it serves; if it raises, the pool is broken.
        initargs: Its arguments; locks and queues made by ``SnakepitExecutor.mp_context`` may be among them.
        mp_context: loky's context (default) or a ``spawn`` context of multiprocessing.
        output: "inherit" (as in ``ProcessPoolExecutor``) or "log".
        options: See ``WorkerOptions``; the directory is also that of ``os.getcwd()`` in a call, not of ``sys.path``.

    Raises:
        TypeError, ValueError: A bad parameter, a fork or forkserver context included; raised here.
    """

    level = 1
    runs_callables: ClassVar[bool] = True

    def __init__(
        self,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        mp_context: Any = None,
        *,
        output: str = "inherit",
        **options: Unpack[WorkerOptions],
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        self.initializer = initializer
        self.initargs = tuple(initargs)
        self.mp_context = mp_context
        self.output = output
        super().__init__(**options)

    def executable_path(self) -> str:
        """Return the host's own interpreter."""
        return sys.executable

    def script_path(self) -> str | None:
        """Return the Python bridge's file."""
        return str(bridge_path("python/snakepit_bridge.py"))

    def script_args(self) -> Sequence[str]:
        """Return the switch to callables."""
        return ("--callables",)

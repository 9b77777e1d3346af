"""Views of an executor with settings of their own: options, and sessions.

Run on the caller's thread; own nothing but their settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .calls import CallOptions
from .future import SnakepitFuture
from .mapper import Mapper

if TYPE_CHECKING:
    from ..executor import SnakepitExecutor

__all__ = ("OptionsView", "SessionView")


class OptionsView:
    """An executor's ``submit``, ``execute``, ``map`` and ``map_unordered`` with fixed settings."""

    def __init__(self, executor: SnakepitExecutor, options: CallOptions) -> None:
        self._executor = executor
        self._options = options

    def submit(self, command: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> SnakepitFuture:
        """Schedule a command or a callable; see ``SnakepitExecutor.submit``.  Keywords of a command go first."""
        return self._executor._intake.submit(command, args, kwargs, self._options)

    def execute(self, command: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do the same as ``submit`` and return the result."""
        return self._executor._intake.execute(command, args, kwargs, self._options)

    def map(
        self,
        command: str | Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Run over every item, results in order; see ``SnakepitExecutor.map``."""
        mapper = Mapper(self._executor._intake, self._options)
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
        """Run over every item, results as they complete; see ``SnakepitExecutor.map_unordered``."""
        mapper = Mapper(self._executor._intake, self._options)
        return mapper.as_completed(command, iterables, timeout, chunksize, buffersize, options)


class SessionView(OptionsView):
    """One session: its requests share a worker and that worker's ``state``.

    Leaving it as a context manager ends the session, after its accepted requests.
    """

    @property
    def session_id(self) -> str:
        """The session's id."""
        assert self._options.session is not None
        return self._options.session

    id = session_id

    def end(self) -> None:
        """End the session's binding after its accepted requests."""
        self._executor.end_session(self.session_id)

    def __enter__(self) -> SessionView:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

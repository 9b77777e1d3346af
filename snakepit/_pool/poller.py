"""Readiness of descriptors, with as little as possible between the system call and its user.

Runs on the manager's thread; owns the epoll instance (elsewhere: a standard selector).
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import selectors
from typing import Generic, Protocol, TypeVar

from .._clock import LONGEST_WAIT_S
from .._fds import lifted

__all__ = ("Poller", "make_poller")

T = TypeVar("T")


class Poller(Protocol[T]):
    """Tells which descriptors are ready; each is watched for one direction, on behalf of an owner."""

    def watch(self, fd: int, owner: T, *, write: bool = False) -> None:
        """Watch a descriptor for reading (or its end), or for writing."""

    def watch_wake(self, fd: int, owner: T, *, edges: bool) -> bool:
        """Watch an inbox's descriptor; False when it must be made unreadable after each wake-up.

        Args:
            fd: To be watched for reading.
            owner: Told by ``poll``.
            edges: Whether each write to it is an edge.
        """

    @property
    def can_pause(self) -> bool:
        """Whether ``pause`` works, from any thread."""

    def pause(self, fd: int, paused: bool) -> None:
        """Report only the end of the stream of a descriptor that is watched for reading; or all again."""

    def unwatch(self, fd: int) -> None:
        """Watch it no more; unknown ones are ignored, also such that are closed already."""

    def poll(self, timeout_s: float | None) -> list[tuple[T, bool]]:
        """Wait at most so many seconds (None: for ever) and return ``(owner, it is ready to be written)``."""

    def close(self) -> None:
        """Release the instance."""


class _Epoll(Generic[T]):
    # ``selectors`` builds a key and a list per event: about 3 us a turn more (benchmarks/latency.py).
    def __init__(self) -> None:
        self._epoll = select.epoll()
        if self._epoll.fileno() <= 2:
            low = self._epoll
            self._epoll = select.epoll.fromfd(lifted(os.dup(low.fileno())))
            low.close()
        self._owners: dict[int, tuple[T, bool]] = {}

    def watch(self, fd: int, owner: T, *, write: bool = False) -> None:
        self._epoll.register(fd, select.EPOLLOUT if write else select.EPOLLIN)
        self._owners[fd] = (owner, write)

    def watch_wake(self, fd: int, owner: T, *, edges: bool) -> bool:
        if not edges:
            # A pipe that nobody reads would be full one day, and its writes no edges any more.
            self.watch(fd, owner)
            return False
        self._owners[fd] = (owner, False)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        return True

    @property
    def can_pause(self) -> bool:
        return True

    def pause(self, fd: int, paused: bool) -> None:
        # The end of a stream cannot be left out, but told once, not again and again until somebody reads it.
        if fd in self._owners:
            # Unwatched, or all closed, between the question and the answer.
            with contextlib.suppress(OSError, ValueError):
                self._epoll.modify(fd, select.EPOLLET if paused else select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        if self._owners.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                # Closed already, which took it out of the instance.
                return

    def poll(self, timeout_s: float | None) -> list[tuple[T, bool]]:
        # Rounded up to a millisecond: waking early would only mean to wait again.
        limit_s = -1 if timeout_s is None else math.ceil(min(timeout_s, LONGEST_WAIT_S) * 1000) / 1000
        owners = self._owners
        return [owners[fd] for fd, _ in self._epoll.poll(limit_s) if fd in owners]

    def close(self) -> None:
        self._owners.clear()
        self._epoll.close()


class _Selector(Generic[T]):
    def __init__(self) -> None:
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        if getattr(self._selector, "fileno", lambda: 3)() <= 2:
            # A standard stream's number, which a copy inside of the selector cannot replace; poll has none.
            self._selector.close()
            self._selector = selectors.PollSelector()

    def watch(self, fd: int, owner: T, *, write: bool = False) -> None:
        self._selector.register(fd, selectors.EVENT_WRITE if write else selectors.EVENT_READ, (owner, write))

    def watch_wake(self, fd: int, owner: T, *, edges: bool) -> bool:
        self.watch(fd, owner)
        return False

    @property
    def can_pause(self) -> bool:
        return False

    def pause(self, fd: int, paused: bool) -> None:
        raise NotImplementedError("standard selectors are not to be changed by other threads")

    def unwatch(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            return

    def poll(self, timeout_s: float | None) -> list[tuple[T, bool]]:
        limit_s = None if timeout_s is None else min(timeout_s, LONGEST_WAIT_S)
        return [key.data for key, _ in self._selector.select(limit_s)]

    def close(self) -> None:
        self._selector.close()


def make_poller() -> Poller[T]:
    """Return the best poller that the system has."""
    return _Epoll() if hasattr(select, "epoll") else _Selector()

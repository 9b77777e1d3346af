"""The locks of a session store, and what keeps them and its files sane when the process forks.

Runs on the threads of the store's callers; owns the list of things to stop before a fork.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol

from ..errors import SessionError

__all__ = ("ForkAware", "Mutex", "Turns", "watch_forks")


class ForkAware(Protocol):
    """Something with a lock that must be free, and a file that must be closed, when the process forks."""

    def _before_fork(self) -> None:
        """Stop: no other thread is inside from now on."""

    def _after_fork(self, *, child: bool) -> None:
        """Go on, in the parent or in the child."""


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_stopped: list[ForkAware] = []

# LOCK: one fork at a time, since each one takes the mutexes of all backends, in no particular order;
# it is taken before any of them.
_fork_lock = threading.RLock()


def watch_forks(thing: ForkAware) -> None:
    """Have ``thing`` stopped and started around every fork, for as long as it exists."""
    with _fork_lock:
        _fork_aware.add(thing)


def _before_fork() -> None:
    _fork_lock.acquire()
    _stopped[:] = _fork_aware
    for thing in _stopped:
        thing._before_fork()


def _after_fork(*, child: bool) -> None:
    for thing in _stopped:
        thing._after_fork(child=child)
    _stopped.clear()
    _fork_lock.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(child=False),
    after_in_child=lambda: _after_fork(child=True),
)


class Mutex:
    """A lock that says so when its own thread comes again (from a clock, a finalizer, a signal handler)."""

    def __init__(self) -> None:
        # LOCK: protects the rows or the connection; held while calling out to nothing but the store's
        # clock.  It nests for the fork hooks only; __enter__ refuses everybody else.
        self.lock = threading.RLock()
        self.inside = False

    def __enter__(self) -> Any:
        self.lock.acquire()
        if self.inside:
            self.lock.release()
            raise SessionError("the session store was called from inside one of its own transactions")
        self.inside = True

    def __exit__(self, *exc: object) -> None:
        self.inside = False
        self.lock.release()


class Turns:
    """Lets one thread at a time update a session, and refuses to wait where that could never end."""

    def __init__(self) -> None:
        # LOCK: protects both tables; held for look-ups only, never during a callback.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._holder: dict[str, int] = {}  # {session_id: thread}
        self._wanted: dict[int, str] = {}  # {waiting thread: session_id}
        watch_forks(self)

    def turn(self, session_id: str) -> Turn:
        """Return a block that is entered when nobody else updates the session, and keeps others from it.

        Raises:
            SessionError: The thread, or one that waits for it, updates the session already; raised when entered.
        """
        return Turn(self, session_id)

    def take(self, session_id: str) -> None:
        """Enter the block of ``turn``."""
        me = threading.get_ident()
        with self._lock:
            while session_id in self._holder:
                self._refuse_circle(session_id, me)
                self._wanted[me] = session_id
                try:
                    self._changed.wait()
                finally:
                    del self._wanted[me]
            self._holder[session_id] = me

    def give_back(self, session_id: str) -> None:
        """Leave the block of ``turn``."""
        with self._lock:
            del self._holder[session_id]
            if self._wanted:
                self._changed.notify_all()

    def _refuse_circle(self, session_id: str, me: int) -> None:
        # INVARIANT: whoever holds and waits was refused if that closed a circle, so this walk ends.
        wanted: str | None = session_id
        while wanted is not None:
            thread = self._holder.get(wanted)
            if thread == me:
                raise SessionError(
                    f"an update callback waits for itself: session {session_id!r} cannot be updated before"
                    f" the callback of session {wanted!r} on this thread has returned"
                )
            wanted = None if thread is None else self._wanted.get(thread)

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _after_fork(self, *, child: bool) -> None:
        self._lock.release()
        if child:  # of all threads only this one has come along; a callback may be what forked
            me = threading.get_ident()
            self._changed = threading.Condition(self._lock)
            self._holder = {key: thread for key, thread in self._holder.items() if thread == me}
            self._wanted = {}


class Turn:
    """The block of one update; made by `Turns.turn`."""

    __slots__ = ("_session_id", "_turns")

    def __init__(self, turns: Turns, session_id: str) -> None:
        self._turns = turns
        self._session_id = session_id

    def __enter__(self) -> None:
        self._turns.take(self._session_id)

    def __exit__(self, *exc: object) -> None:
        self._turns.give_back(self._session_id)

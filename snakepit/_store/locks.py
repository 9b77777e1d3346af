"""The locks of a session store, and what keeps them and its files sane when the process forks.

Runs on the threads of the store's callers; owns the list of things to stop before a fork.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from .._threads import is_owned
from ..errors import SessionError

__all__ = ("INSIDE", "ForkAware", "Lock", "Turns", "watch_forks")

T = TypeVar("T")

# A signal handler may raise between any two steps of the main thread (Ctrl-C does).  So nothing here is a context
# manager of our own: its __exit__ might never begin.  `with` enters and leaves a lock of the interpreter's own in
# one step each (tests/integration/test_store_interrupts.py).
Lock = threading.RLock

INSIDE: Final = "the session store was called from inside one of its own transactions"


# Forks --------------------------------------------------------------------------------------------------


class ForkAware(Protocol):
    """Something with a lock that must be free, and perhaps a file that must be closed, when the process forks."""

    lock: Lock

    def _stop(self) -> None:
        """Close what a child must not have; the lock is held.  Again is harmless."""

    def _go_on(self, *, child: bool) -> None:
        """Go on in the parent or in the child, while the lock is held still.  Again is harmless."""


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()

# LOCK: one fork at a time, since each one takes the locks of all things, in no particular order; it is taken before
# any of them.
_fork_lock = Lock()
# INVARIANT: the locks that the fork at hand has taken or is about to take, and the things that were stopped for it.
_taken: list[Lock] = []
_stopped: list[ForkAware] = []


def watch_forks(thing: ForkAware) -> None:
    """Have ``thing`` stopped and started around every fork, for as long as it exists."""
    with _fork_lock:
        _fork_aware.add(thing)


def _before_fork() -> None:
    problem = _hold(_fork_lock)
    for thing in list(_fork_aware):
        if thing not in _stopped:
            _stopped.append(thing)
        # A thread that forks inside a transaction of its own goes on with it, in the parent.
        if thing.lock in _taken or not is_owned(thing.lock):
            problem = _hold(thing.lock) or problem
            try:
                thing._stop()
            except Exception as error:
                problem = error
    if problem is not None:
        # The interpreter reports it and forks all the same, so everything had to be stopped first.
        raise problem


def _hold(lock: Lock) -> BaseException | None:
    """Take a lock for the fork; return what a signal handler has raised meanwhile."""
    raised: BaseException | None = None
    if lock not in _taken:
        _taken.append(lock)
    while not is_owned(lock):
        try:
            lock.acquire()
        except BaseException as error:
            raised = error
    return raised


def _after_fork(*, child: bool) -> None:
    for thing in _stopped:
        thing._go_on(child=child)
    _stopped.clear()
    while _taken:
        if is_owned(_taken[-1]):
            _taken[-1].release()
        _taken.pop()


# RACE: 1. Ctrl-C, 2. a hook begins: its first step raises, and the interpreter reports that and leaves the hook out.
# So each comes twice, and finds nothing to do the second time
# (tests/integration/test_store_interrupts.py::test_ctrl_c_around_a_fork).
for _ in range(2):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=functools.partial(_after_fork, child=False),
        after_in_child=functools.partial(_after_fork, child=True),
    )


# Updates ------------------------------------------------------------------------------------------------


class Turns:
    """Lets one thread at a time update a session, and refuses to wait where that could never end."""

    def __init__(self) -> None:
        # LOCK: protects both tables; held for look-ups only, never during a callback.
        self.lock = Lock()
        self._changed = threading.Condition(self.lock)
        self._holder: dict[str, int] = {}  # {session_id: thread}
        self._wanted: dict[int, str] = {}  # {waiting thread: session_id}
        watch_forks(self)

    def run(self, session_id: str, body: Callable[[], T]) -> T:
        """Call ``body`` when nobody else updates the session, keep others from it meanwhile, and return its result.

        Raises:
            SessionError: The thread, or one that waits for it, updates the session already; raised here.
        """
        me = threading.get_ident()
        if self._holder.get(session_id) == me:
            self._refuse_circle(session_id, me)
        try:
            self._take(session_id, me)
            return body()
        finally:
            # RACE: 1. Ctrl-C, 2. the first step of the function raises it, and nothing is given back
            # (tests/integration/test_store_interrupts.py::test_ctrl_c_between_any_two_steps).
            try:
                self._give_back(session_id, me)
            except BaseException:
                self._give_back(session_id, me)
                raise

    def _take(self, session_id: str, me: int) -> None:
        with self.lock:
            while session_id in self._holder:
                self._refuse_circle(session_id, me)
                self._wanted[me] = session_id
                try:
                    self._changed.wait()
                finally:
                    del self._wanted[me]
            self._holder[session_id] = me

    def _give_back(self, session_id: str, me: int) -> None:
        with self.lock:
            # Not taken by a thread that was refused, or interrupted while it waited.
            if self._holder.get(session_id) == me:
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

    def _stop(self) -> None:
        return

    def _go_on(self, *, child: bool) -> None:
        if child:  # of all threads only this one has come along; a callback may be what forked
            me = threading.get_ident()
            self._changed = threading.Condition(self.lock)
            self._holder = {key: thread for key, thread in self._holder.items() if thread == me}
            self._wanted = {}

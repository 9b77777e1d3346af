"""Posts from any thread to one thread that drains them, and the wake-up of its select.

Posting is safe from every thread and never blocks; draining belongs to the owner's thread.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from typing import Any

from ._fds import lifted

__all__ = ("Inbox",)

_ONE = (1).to_bytes(8, sys.byteorder)
"""What a write adds to an eventfd, in the machine's own order: another one would soon fill it."""


class Inbox:
    """A queue with a descriptor that becomes readable when the owner sleeps and something is posted.

    Attributes:
        lock: Protects the queue and whatever its owner ties to the same instant (admission, counters).
        edges: Whether each write is an edge, so that an owner who watches for edges need not read.
    """

    # LOCK: `lock` protects `_items`, `_asleep`, `_waking` and the ledger; it is never held while calling out.
    # The wake-up is written after its release: the owner wakes at once and wants the lock.
    # RACE: 1. a thread holds the lock and allocates, 2. the collector finds an executor in a cycle there,
    # 3. its finalizer closes the pool, on the same thread.  Hence reentrant
    # (tests/integration/test_gc_and_exit.py::test_executor_collected_while_its_lock_is_held).
    # INVARIANT: `_asleep` is True from `may_sleep` until the owner's wake-up is written, or its `drain`; so a
    # burst of posts makes one system call, and none while the owner is at work.
    # RACE: 1. a post finds the owner asleep, 2. Ctrl-C raises in the posting thread before it has written.  Only
    # a write that was done ends `_asleep`: the next post, such as that of a shutdown, wakes the owner for both
    # (tests/unit/test_wake_up.py::test_ctrl_c_in_a_post_loses_no_later_wake_up).
    # INVARIANT: the descriptors stay open while `_waking` posters may still write to them.
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._items: deque[Any] = deque()
        self._asleep = False
        self._nap = 0
        self._waking = 0
        self._closed = False
        self.edges = hasattr(os, "eventfd")
        self.fd = self._write_fd = -1
        if self.edges:
            self.fd = self._write_fd = lifted(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        else:
            self.fd, self._write_fd = map(lifted, os.pipe())
            os.set_blocking(self.fd, False)
            os.set_blocking(self._write_fd, False)

    def post(self, item: object) -> bool:
        """Add an item and wake the owner if it sleeps; False when the owner is gone."""
        with self.lock:
            if self._closed:
                return False
            wake = self.post_locked(item)
        if wake:
            self.wake()
        return True

    def post_locked(self, item: object) -> bool:
        """Add an item with the lock held; True when ``wake`` must be called after its release."""
        self._items.append(item)
        if not self._asleep:
            return False
        self._waking += 1
        return True

    @property
    def has_posts(self) -> bool:
        """True while something waits for the owner; ask with the lock held."""
        return bool(self._items)

    def wake(self) -> None:
        """Wake the owner; once for each True of ``post_locked``, without the lock."""
        nap = self._nap
        written = False
        try:
            self._write()
            written = True
        finally:
            with self.lock:
                # RACE: 1. the owner wakes of this write, or of something else, 2. it sleeps again, 3. this.  The
                # write belongs to the nap that was read before it, and says nothing about a later one
                # (tests/unit/test_wake_up.py::test_every_interleaving_wakes_the_owner).
                if written and nap == self._nap:
                    self._asleep = False
                self._waking -= 1
                if self._closed and not self._waking:
                    self._close_fds()

    def _write(self) -> None:
        try:
            os.write(self._write_fd, _ONE)
        except BlockingIOError:
            # Full: that wakes who watches the level.  For who watches for edges, room is made for another.
            self.clear_wake()
            os.write(self._write_fd, _ONE)

    def may_sleep(self) -> bool:
        """THREAD: owner.  Return True when nothing is posted; from then on a post wakes the descriptor."""
        with self.lock:
            self._asleep = not self._items
            self._nap += 1
            return self._asleep

    def drain(self) -> deque[Any]:
        """THREAD: owner.  Take everything that was posted, in order."""
        with self.lock:
            self._asleep = False
            items, self._items = self._items, deque()
        return items

    def clear_wake(self) -> None:
        """Make the descriptor unreadable again; for an owner who does not watch for edges."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            return

    def close(self) -> deque[Any]:
        """Release the descriptors and return what was posted last; later posts are refused."""
        with self.lock:
            self._closed = True
            self._asleep = False
            items, self._items = self._items, deque()
            if not self._waking:
                self._close_fds()
        return items

    def _close_fds(self) -> None:
        fds, self.fd, self._write_fd = {self.fd, self._write_fd}, -1, -1
        for fd in fds - {-1}:
            os.close(fd)

    def __del__(self) -> None:
        # A poster that Ctrl-C has cut short before its write is still counted, and nobody else closes them then.
        self._close_fds()

    def replace_lock(self) -> None:
        """THREAD: the only one of a forked child.  The lock may be held by a thread that is gone."""
        self.lock = threading.RLock()
        self._waking = 0

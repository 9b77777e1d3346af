"""The conversations with all live workers, and which of their descriptors are watched.

THREAD: manager.  Owns the links and the poller.
"""

from __future__ import annotations

from collections.abc import Iterator

from .._core import model as m
from .._supervision import reports as r
from ..adapters import Adapter
from ..config import PoolConfig
from .channel import Channel
from .link import Link
from .poller import Poller, make_poller

__all__ = ("Links", "unreachable")


class Links:
    """Links by worker, each watched for what its worker writes and, while something waits, for room to write."""

    def __init__(self) -> None:
        self._by_worker: dict[str, Link] = {}
        self._poller: Poller[Link | None] = make_poller()

    def watch_wake(self, fd: int, *, edges: bool) -> bool:
        """Watch the inbox's descriptor; False when it must be made unreadable after each wake-up."""
        return self._poller.watch_wake(fd, None, edges=edges)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._by_worker.values()))

    def __contains__(self, link: Link) -> bool:
        return self._by_worker.get(link.worker_id) is link

    def get(self, worker_id: str) -> Link | None:
        """Return a worker's link, or None when it has none (any more)."""
        return self._by_worker.get(worker_id)

    def open(self, event: r.Spawned, adapter: Adapter, config: PoolConfig) -> Link:
        """Return a new worker's link, from now on watched.

        Raises:
            OSError, MemoryError: The system can watch no more descriptors; raised here, the worker's are closed.
        """
        channel = Channel(event.request_fd, event.reply_fd, event.claim_read_fd, event.claim_write_fd)
        try:
            link = Link(
                event.worker_id, channel, level=adapter.level, callables=adapter.runs_callables, config=config
            )
            link.pid = event.pid
            self._poller.watch(channel.reply_fd, link)
        except BaseException:
            channel.close()
            raise
        self._by_worker[link.worker_id] = link
        return link

    def remove(self, worker_id: str) -> None:
        """Close a worker's link, if it has one."""
        link = self._by_worker.pop(worker_id, None)
        if link is not None:
            self.stop_reading(link)
            if link.watched_fd is not None:
                self._poller.unwatch(link.watched_fd)
                link.watched_fd = None
            if link.away is None:
                link.channel.close()

    def poll(self, timeout_s: float | None) -> list[tuple[Link | None, bool]]:
        """Wait and return ``(link, it is ready to be written)``; None for the inbox."""
        return self._poller.poll(timeout_s)

    def watch_writes(self, link: Link) -> None:
        """Watch for room to write exactly while something waits to be written."""
        watched = link.watched_fd
        wanted = link.channel.request_fd if link.channel.wants_write else None
        if watched == wanted:
            return
        if watched is not None:
            self._poller.unwatch(watched)
        if wanted is not None:
            self._poller.watch(wanted, link, write=True)
        link.watched_fd = wanted

    @property
    def can_pause(self) -> bool:
        """Whether ``pause`` works."""
        return self._poller.can_pause

    def pause(self, link: Link, paused: bool) -> None:
        """Any thread: leave what a worker writes unread, but for its end, or read it again."""
        self._poller.pause(link.channel.reply_fd, paused)

    def stop_reading(self, link: Link) -> None:
        """Watch no more for what the worker writes."""
        self._poller.unwatch(link.channel.reply_fd)

    def close(self) -> None:
        """Close every link and the poller."""
        for worker_id in list(self._by_worker):
            self.remove(worker_id)
        self._poller.close()

    def abandon(self) -> None:
        """THREAD: the only one of a forked child.  Close every descriptor and watch none."""
        # Closed, never unwatched: the epoll instance is shared with the parent.
        for link in self._by_worker.values():
            link.channel.close()
        self._by_worker.clear()
        self._poller.close()


def unreachable(link: Link) -> m.PipeClosed | m.Misbehaved:
    """Return what the scheduler is told of a worker that cannot be written to."""
    if link.channel.error is None:
        # It reads no more.  Its exit should follow, as after the end of its replies.
        return m.PipeClosed(link.worker_id)
    return m.Misbehaved(link.worker_id, link.lost())

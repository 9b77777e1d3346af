"""No order of a post's and a sleeper's steps loses a wake-up; neither does Ctrl-C in the middle of a post."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snakepit import _inbox
from snakepit._inbox import Inbox
from snakepit._pool import poller as _poller
from snakepit._pool.poller import Poller, make_poller

WAIT_S = 10.0
KINDS = ("eventfd, edges", "pipe, epoll", "eventfd, selectors", "pipe, selectors")


def make(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Inbox, Poller[None], bool]:
    """Return an inbox, a poller that watches it, and whether it is watched for edges."""
    with monkeypatch.context() as patch:
        if kind.startswith("pipe"):
            patch.delattr(os, "eventfd")
        box = Inbox()
        if kind.endswith("selectors"):
            patch.delattr(select, "epoll")
        watcher: Poller[None] = make_poller()
    edges = watcher.watch_wake(box.fd, None, edges=box.edges)
    assert (kind == "eventfd, edges") is edges
    return box, watcher, edges


def has_event(watcher: Any) -> bool:
    """Say whether a poll would return at once, without taking the event."""
    inner = watcher._epoll if isinstance(watcher, _poller._Epoll) else watcher._selector
    return bool(select.select([inner.fileno()], [], [], 0)[0])


# Every order ----------------------------------------------------------------------------------------


class Actor:
    """A thread that takes one step at a time, when it is told to."""

    def __init__(self, play: Callable[[Actor], None]) -> None:
        self.at = "start"
        self.done = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._play = play
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._play(self)
        finally:
            self.done = True
            self._stopped.release()

    def pause(self, where: str) -> None:
        """Called by the thread: wait here for the next step."""
        self.at = where
        self._stopped.release()
        self._go.acquire()

    def step(self) -> None:
        """Let it go on to its next pause, or to its end."""
        self._go.release()
        assert self._stopped.acquire(timeout=WAIT_S), f"stuck after {self.at}"
        if self.done:
            self._thread.join(WAIT_S)


class PausingLock:
    """The inbox's lock; its actor pauses before it takes it."""

    def __init__(self, current: list[Actor]) -> None:
        self._lock = threading.RLock()
        self._current = current

    def __enter__(self) -> None:
        self._current[0].pause("lock")
        self._lock.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__(*exc)  # type: ignore[arg-type]


class Stage:
    """Two posters and one owner on one inbox; one schedule is played at a time.

    Args:
        kind: Of inbox and poller.
        owner_clears_first: As the watchdog's loop does; the manager's drains first.
    """

    def __init__(self, kind: str, owner_clears_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box, self.watcher, self._edges = make(kind, monkeypatch)
        self._clears_first = owner_clears_first
        self._current: list[Actor] = []
        self._naps: dict[Actor, int] = {}
        self._phase = ""
        self.box.lock = PausingLock(self._current)  # type: ignore[assignment]
        write = self.box._write

        def pausing_write() -> None:
            actor = self._current[0]
            self._naps[actor] = self.box._nap
            actor.pause("write")
            write()
            actor.pause("written")

        monkeypatch.setattr(self.box, "_write", pausing_write)
        self.got: list[Any] = []
        self.timer_left = 1
        self.owner = Actor(self._own)
        self.actors = [self.owner, *(Actor(lambda _, n=n: self._post(n)) for n in range(2))]  # type: ignore[misc]

    def _post(self, number: int) -> None:
        assert self.box.post(number)

    def _own(self, actor: Actor) -> None:
        while len(self.got) < 2:
            self._phase = "awake"
            if self.box.may_sleep():
                actor.pause("sleep")
            woken = bool(self.watcher.poll(0))
            if woken and self._clears_first:
                self.box.clear_wake()
            self._phase = f"woken {woken}"
            self.got += self.box.drain()
            if woken and not self._clears_first and not self._edges:
                self._phase = "drained"
                actor.pause("clear")
                self.box.clear_wake()

    def state(self) -> tuple[object, ...]:
        """Return all that decides what may happen from here."""
        box = self.box
        actors = tuple((actor.at, actor.done, self._naps.get(actor, -1) == box._nap) for actor in self.actors)
        flags = (box._asleep, box._waking, tuple(box._items), tuple(self.got), has_event(self.watcher))
        return actors, flags, self._phase, self.timer_left

    def choices(self) -> list[int]:
        """Return who may take the next step; a sleeping owner when something wakes it, or once by a timer."""
        return [
            number
            for number, actor in enumerate(self.actors)
            if not actor.done
            and (actor is not self.owner or actor.at != "sleep" or has_event(self.watcher) or self.timer_left)
        ]

    def step(self, number: int) -> None:
        """Let one of them take its next step."""
        actor = self.actors[number]
        if actor is self.owner and actor.at == "sleep" and not has_event(self.watcher):
            self.timer_left = 0
        self._current[:] = [actor]
        actor.step()

    def end(self) -> None:
        """Let everyone who is left go on and release what was taken."""
        for actor in self.actors:
            while not actor.done:
                self.got += [None] * 2
                self._current[:] = [actor]
                actor.step()
        self.box.lock = threading.RLock()
        self.watcher.close()
        self.box.close()


def schedules(make_stage: Callable[[], Stage], *, use_timer: bool) -> Iterator[tuple[list[int], Stage]]:
    """Take every step from every state that can be reached, and yield where nobody can go on."""
    todo: list[list[int]] = [[]]
    seen = set()
    while todo:
        prefix = todo.pop()
        stage = make_stage()
        stage.timer_left = int(use_timer)
        played: list[int] = []
        while choices := stage.choices():
            if len(played) < len(prefix):
                chosen = prefix[len(played)]
            else:
                if stage.state() in seen:
                    break
                seen.add(stage.state())
                chosen, *others = choices
                todo += [[*played, other] for other in others]
            stage.step(chosen)
            played.append(chosen)
        else:
            yield played, stage
        stage.end()
    assert len(seen) > 100


@pytest.mark.parametrize("use_timer", [False, True], ids=["", "timer"])
@pytest.mark.parametrize(
    ("kind", "clears_first"),
    [*((kind, False) for kind in KINDS), *((kind, True) for kind in KINDS[1:])],
    ids=lambda value: value if isinstance(value, str) else ("watchdog" if value else "manager"),
)
def test_every_interleaving_wakes_the_owner(
    kind: str, clears_first: bool, use_timer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two posts against an owner that sleeps whenever it may, in every order: it ends with both items."""
    ends = 0

    for played, stage in schedules(lambda: Stage(kind, clears_first, monkeypatch), use_timer=use_timer):
        ends += 1
        assert stage.owner.done, f"asleep for ever after the steps {played}, with {stage.box._items}"
        assert [0, 1] == sorted(stage.got[:2])

    assert ends > 0


# In the middle of a post ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_in_a_post_loses_no_later_wake_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A post that KeyboardInterrupt ends before its write: the next one wakes the owner for both."""
    box, watcher, _ = make(kind, monkeypatch)
    assert box.may_sleep()

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "write", interrupt)
        box.post("first")
    quiet = watcher.poll(0)
    box.post("second")

    assert ([], [(None, False)]) == (quiet, watcher.poll(0))
    assert ["first", "second"] == list(box.drain())
    watcher.close()
    box.close()
    assert (-1, -1) == (box.fd, box._write_fd)


def test_a_post_cut_short_before_it_is_counted_out_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who found the owner asleep and never came to wake it keeps the descriptors open only while it lives."""
    box, watcher, _ = make(KINDS[0], monkeypatch)
    assert box.may_sleep()
    with box.lock:
        assert box.post_locked("first")
    fd = box.fd
    watcher.close()
    box.close()
    assert fd == box.fd

    del box

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# A descriptor that takes no more --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_descriptor_still_wakes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the wake-up cannot be written for want of room, a sleeping owner wakes all the same."""
    box, watcher, edges = make(kind, monkeypatch)
    full = b"\xff" * 8 if box.edges else b"x" * 65536
    if box.edges:
        full = (2**64 - 2).to_bytes(8, _inbox.sys.byteorder)
    os.write(box._write_fd, full)
    watcher.poll(0)
    if not edges:
        assert has_event(watcher)
    assert box.may_sleep()

    box.post(1)

    assert [(None, False)] == watcher.poll(0)
    watcher.close()
    box.close()


@pytest.mark.parametrize("kind", KINDS)
def test_wake_ups_do_not_fill_the_descriptor(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 turns of posting and sleeping: each post wakes."""
    box, watcher, edges = make(kind, monkeypatch)

    for number in range(20_000):
        assert box.may_sleep()
        box.post(number)
        assert [(None, False)] == watcher.poll(0), number
        assert [number] == list(box.drain())
        if not edges:
            box.clear_wake()

    watcher.close()
    box.close()

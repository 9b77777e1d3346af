"""The inbox: posts from many threads, one owner, no lost wake-up, no blocked poster."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from snakepit._inbox import Inbox


@pytest.fixture(params=["eventfd", "pipe"])
def inbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    """Return an inbox of each kind."""
    if request.param == "pipe":
        monkeypatch.delattr(os, "eventfd", raising=False)
    box = Inbox()
    yield box
    box.close()


def is_readable(box: Inbox) -> bool:
    """Say whether the owner's select would return."""
    return bool(select.select([box.fd], [], [], 0)[0])


def test_items_come_in_order(inbox: Inbox) -> None:
    """What was posted is drained once, in order."""
    assert [True] * 3 == [inbox.post(n) for n in range(3)]

    assert [0, 1, 2] == list(inbox.drain())
    assert [] == list(inbox.drain())


def test_only_a_sleeping_owner_is_woken(inbox: Inbox) -> None:
    """A post wakes an owner that is about to sleep, and costs no system call otherwise."""
    inbox.post(1)
    assert not is_readable(inbox)
    assert not inbox.may_sleep()

    inbox.drain()
    assert inbox.may_sleep()
    inbox.post(2)

    assert is_readable(inbox)
    inbox.clear_wake()
    assert not is_readable(inbox)
    inbox.clear_wake()


def test_a_burst_wakes_once(inbox: Inbox) -> None:
    """100,000 posts to an owner that does not look return at once; the wake-up pipe cannot fill (F26)."""
    assert inbox.may_sleep()

    for n in range(100_000):
        inbox.post(n)

    assert 100_000 == len(inbox.drain())
    inbox.clear_wake()
    assert not is_readable(inbox)


def test_a_full_wake_up_descriptor_is_no_error(inbox: Inbox) -> None:
    """Posters do not block on a wake-up descriptor that takes no more."""
    full = b"\xfe" + b"\xff" * 7 if inbox.fd == inbox._write_fd else b"x" * 65536
    try:
        for _ in range(40):
            os.write(inbox._write_fd, full)
    except BlockingIOError:
        pass
    assert inbox.may_sleep()

    assert inbox.post(1)

    assert [1] == list(inbox.drain())


def test_closed(inbox: Inbox) -> None:
    """Closing gives what was left and refuses later posts; it may be repeated."""
    inbox.post(1)

    assert [1] == list(inbox.close())
    assert not inbox.post(2)
    assert [] == list(inbox.close())


def test_no_wake_up_is_lost() -> None:
    """Several posters against an owner that sleeps whenever it may: everything arrives."""
    inbox = Inbox()
    posters, each = 4, 2000
    got: list[int] = []

    def own() -> None:
        while len(got) < posters * each:
            if inbox.may_sleep():
                assert select.select([inbox.fd], [], [], 10)[0], "a wake-up was lost"
                inbox.clear_wake()
            got.extend(inbox.drain())

    def post(number: int) -> None:
        for n in range(each):
            inbox.post(number * each + n)

    threads = [
        threading.Thread(target=own),
        *(threading.Thread(target=post, args=(n,)) for n in range(posters)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    inbox.close()

    assert list(range(posters * each)) == sorted(got)
    for number in range(posters):
        mine = [n for n in got if n // each == number]
        assert sorted(mine) == mine


def test_closing_beside_posters() -> None:
    """Posts that race the close are accepted or refused; no poster meets a closed descriptor."""
    for _ in range(50):
        inbox = Inbox()
        errors: list[BaseException] = []

        def post(box: Inbox = inbox, errors: list[BaseException] = errors) -> None:
            try:
                while box.post(1):
                    box.may_sleep()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=post) for _ in range(3)]
        for thread in threads:
            thread.start()
        inbox.close()
        for thread in threads:
            thread.join(10)

        assert [] == errors
        assert (-1, -1) == (inbox.fd, inbox._write_fd)

"""The session store, on each of its backends."""

from __future__ import annotations

import array
import collections
import decimal
import math
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from snakepit._store import locks as _session_locks
from snakepit._store import sqlite as _session_sqlite
from snakepit.errors import SessionError, SessionExists, SessionNotFound, SessionQuotaExceeded
from snakepit.sessions import MemoryBackend, Session, SessionStore, SQLiteBackend

BOUND_S = 20
ROOT = Path(__file__).resolve().parents[2]


class FakeClock:
    """Wall-clock seconds that move when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


MakeStore = Callable[..., SessionStore]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, path: Path, clock: FakeClock) -> Iterator[MakeStore]:
    """Return a function that makes a store on the backend under test; all are closed afterwards."""
    made: list[SessionStore] = []

    def make(**options: Any) -> SessionStore:
        backend = MemoryBackend() if request.param == "memory" else SQLiteBackend(path)
        made.append(SessionStore(backend, clock=clock, **options))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> SessionStore:
    return make_store()


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S
    )


# Sessions -----------------------------------------------------------------------------------------------


def test_create_and_get(store: SessionStore, clock: FakeClock) -> None:
    """A session comes back as it was made."""
    created = store.create("a", ttl_s=60, metadata={"user": "Ada"})

    expected = Session(
        id="a",
        created_at=clock.now,
        last_accessed_at=clock.now,
        ttl_s=60.0,
        metadata={"user": "Ada"},
        data={},
        programs={},
    )
    assert expected == created
    assert expected == store.get("a")


def test_create_twice(store: SessionStore) -> None:
    """A second create of an id is refused and leaves the first alone."""
    store.create("a", metadata={"n": 1})

    with pytest.raises(SessionExists, match="'a'"):
        store.create("a", metadata={"n": 2})

    assert {"n": 1} == store.get("a").metadata


def test_racing_creates_have_one_winner(store: SessionStore) -> None:
    """Of 16 threads that create the same ids, one wins each; the others get SessionExists (F36)."""
    start = threading.Barrier(16)

    def work(number: int) -> list[str]:
        start.wait(BOUND_S)
        won = []
        for turn in range(10):
            try:
                store.create(f"s{turn}", metadata={"by": number})
            except SessionExists:
                continue
            won.append(f"s{turn}")
        return won

    with ThreadPoolExecutor(16) as threads:
        wins = [done.result(BOUND_S) for done in [threads.submit(work, number) for number in range(16)]]

    assert sorted(f"s{turn}" for turn in range(10)) == sorted(name for names in wins for name in names)
    for number, names in enumerate(wins):
        assert [number] * len(names) == [store.get(name).metadata["by"] for name in names]


def test_a_missing_session(store: SessionStore) -> None:
    """What does not exist is SessionNotFound, a KeyError, or the answer False."""
    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.update("a", dict),
        lambda: store.store_program("a", "p", 1),
        lambda: store.get_program("a", "p"),
        lambda: store.update_program("a", "p", dict),
    ]

    for call in calls:
        with pytest.raises(SessionNotFound, match="no session 'a'"):
            call()
        with pytest.raises(KeyError):
            call()

    assert (False, False, False) == (store.exists("a"), store.delete("a"), store.delete_program("a", "p"))


def test_delete(store: SessionStore) -> None:
    """A deleted session is gone with its programs, and its id is free."""
    store.create("a", metadata={"n": 1})
    store.update("a", lambda data: {"x": 1})
    store.store_program("a", "p", 1)

    assert store.delete("a") is True

    assert not store.exists("a")
    assert store.create("a") == store.get("a")
    assert ({}, {}, {}) == (store.get("a").metadata, store.get("a").data, store.get("a").programs)


def test_ids_len_iteration_and_in(store: SessionStore) -> None:
    """The store is a collection of ids, in the order of creation."""
    for name in ("b", "a", "c"):
        store.create(name)
    store.delete("b")
    store.create("b")

    assert ("a", "c", "b") == store.ids() == tuple(store)
    assert 3 == len(store)
    assert [True, False, False, False, False] == [name in store for name in ("a", "x", "", 7, "\ud800")]


def test_iteration_survives_changes(store: SessionStore) -> None:
    """Deleting while iterating is allowed."""
    for name in "abc":
        store.create(name)

    for name in store:
        store.delete(name)

    assert 0 == len(store)


@pytest.mark.parametrize(
    ("bad", "error"),
    [("", ValueError), ("\ud800", ValueError), (7, TypeError), (None, TypeError), (b"a", TypeError)],
)
def test_bad_ids(store: SessionStore, bad: Any, error: type[Exception]) -> None:
    """An id that is no text, or empty, is refused by every method, naming it (F40)."""
    calls: list[Callable[[], object]] = [
        lambda: store.create(bad),
        lambda: store.get(bad),
        lambda: store.update(bad, dict),
        lambda: store.delete(bad),
        lambda: store.exists(bad),
        lambda: store.store_program(bad, "p", 1),
        lambda: store.store_program("a", bad, 1),
        lambda: store.get_program(bad, "p"),
        lambda: store.get_program("a", bad),
        lambda: store.update_program("a", bad, dict),
        lambda: store.delete_program("a", bad),
        lambda: store.store_global_program(bad, 1),
        lambda: store.get_global_program(bad),
        lambda: store.delete_global_program(bad),
    ]

    for call in calls:
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert "_id" in str(caught.value)
        assert repr(bad) in str(caught.value)


def test_ids_with_odd_characters(store: SessionStore) -> None:
    """Ids are compared character by character, and come back as plain text."""

    class Named(str):
        pass

    odd = ["a", "A", "a\0b", "a\0c", "%", "é", "e\u0301", " "]
    for name in odd:
        store.create(Named(name))

    assert tuple(odd) == store.ids()
    assert {str} == {type(name) for name in store.ids()}


@pytest.mark.parametrize("bad", [0, -1, 0.0, math.nan, -math.inf])
def test_ttl_out_of_range(store: SessionStore, bad: float) -> None:
    """A ttl that is not above zero is a ValueError naming it."""
    with pytest.raises(ValueError, match=f"ttl_s .*{bad!r}"):
        store.create("a", ttl_s=bad)
    with pytest.raises(ValueError, match=f"ttl_s .*{bad!r}"):
        store.store_global_program("p", 1, ttl_s=bad)
    with pytest.raises(ValueError, match=f"default_ttl_s .*{bad!r}"):
        SessionStore(default_ttl_s=bad)

    assert () == store.ids()


@pytest.mark.parametrize("bad", [True, "60", [1]])
def test_ttl_of_a_wrong_type(store: SessionStore, bad: Any) -> None:
    """A ttl that is no number (bool included) is a TypeError."""
    with pytest.raises(TypeError, match="ttl_s"):
        store.create("a", ttl_s=bad)
    with pytest.raises(TypeError, match="default_ttl_s"):
        SessionStore(default_ttl_s=bad)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_sessions": 0}, ValueError),
        ({"max_sessions": -3}, ValueError),
        ({"max_sessions": True}, TypeError),
        ({"max_sessions": 1.5}, TypeError),
        ({"clock": 5}, TypeError),
        ({"default_ttl_s": None}, TypeError),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], path: Path) -> None:
    """Bad options are refused by the constructor and by ``open``, naming the parameter."""
    (name,) = options

    with pytest.raises(error, match=name):
        SessionStore(**options)
    with pytest.raises(error, match=name):
        SessionStore.open(path, **options)


def test_bad_metadata(store: SessionStore) -> None:
    """Metadata is a mapping."""
    with pytest.raises(TypeError, match="metadata"):
        store.create("a", metadata=[("k", 1)])  # type: ignore[arg-type]

    assert () == store.ids()


# Expiry -------------------------------------------------------------------------------------------------


def test_an_expired_session_is_gone_everywhere(store: SessionStore, clock: FakeClock) -> None:
    """At the end of its ttl a session is gone for every method, and no method revives it (F37)."""
    store.create("a", ttl_s=10)
    store.store_program("a", "p", 1)
    store.create("b", ttl_s=11)

    clock.advance(10)

    for call in (
        lambda: store.get("a"),
        lambda: store.get_program("a", "p"),
        lambda: store.update("a", dict),
    ):
        with pytest.raises(SessionNotFound):
            call()
    assert (False, False, False) == (store.exists("a"), "a" in store, store.delete_program("a", "p"))
    assert ("b",) == store.ids() == tuple(store)
    assert 1 == len(store)
    assert (1, 0) == (store.stats().sessions, store.stats().programs)


def test_the_sweep_counts_what_it_removes(store: SessionStore, clock: FakeClock) -> None:
    """``cleanup_expired`` returns the number of sessions and global programs it removed (F37)."""
    for name in ("a", "b", "c"):
        store.create(name, ttl_s=10)
    store.create("d", ttl_s=20)
    store.store_global_program("p", 1, ttl_s=10)
    store.store_global_program("q", 1)

    clock.advance(10)
    store.exists("a")

    assert 4 == store.cleanup_expired()
    assert 0 == store.cleanup_expired()
    assert 4 == store.stats().expired_total
    assert ("d",) == store.ids()
    assert 1 == store.get_global_program("q")


@pytest.mark.parametrize(
    "touch",
    [
        lambda store: store.get("a"),
        lambda store: store.update("a", lambda data: None),
        lambda store: store.store_program("a", "q", 1),
        lambda store: store.get_program("a", "p"),
        lambda store: store.update_program("a", "p", lambda program: program),
        lambda store: store.delete_program("a", "p"),
    ],
)
def test_use_starts_the_idle_time_anew(
    store: SessionStore, clock: FakeClock, touch: Callable[[SessionStore], object]
) -> None:
    """Whatever reads or changes a session keeps it for another ttl."""
    store.create("a", ttl_s=10)
    store.store_program("a", "p", 1)
    clock.advance(9)

    touch(store)
    clock.advance(9)

    assert store.exists("a")
    assert clock.now - 9 == store.get("a").last_accessed_at + -9


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.exists("a"),
        lambda store: store.ids(),
        lambda store: store.stats(),
        lambda store: store.delete_program("a", "missing"),
    ],
)
def test_a_look_does_not_start_the_idle_time_anew(
    store: SessionStore, clock: FakeClock, look: Callable[[SessionStore], object]
) -> None:
    """Looking from outside keeps nothing alive."""
    store.create("a", ttl_s=10)
    clock.advance(9)

    look(store)
    clock.advance(1)

    assert not store.exists("a")


def test_a_failed_use_does_not_start_the_idle_time_anew(store: SessionStore, clock: FakeClock) -> None:
    """A missing program and a raising callback leave the session's times alone."""
    store.create("a", ttl_s=10)
    clock.advance(9)

    with pytest.raises(SessionNotFound, match="no program 'p' in session 'a'"):
        store.get_program("a", "p")
    with pytest.raises(ZeroDivisionError):
        store.update("a", lambda data: {"x": 1 / 0})
    clock.advance(1)

    assert not store.exists("a")


def test_default_and_endless_ttl(make_store: MakeStore, clock: FakeClock) -> None:
    """Without a ttl the store's default holds; ``math.inf``, and what rounds to it, never expires."""
    store = make_store(default_ttl_s=5)
    store.create("default")
    store.create("endless", ttl_s=math.inf)
    store.create("huge", ttl_s=10**400)

    clock.advance(5)
    after_default = store.ids()
    clock.advance(1e12)

    assert ("endless", "huge") == after_default == store.ids()
    assert math.inf == store.get("endless").ttl_s


def test_the_id_of_an_expired_session_is_free(store: SessionStore, clock: FakeClock) -> None:
    """An expired session that was never swept does not stand in the way, and leaves nothing behind."""
    store.create("a", ttl_s=10, metadata={"n": 1})
    store.create("b")
    store.store_program("a", "p", 1)
    clock.advance(10)

    store.create("a", metadata={"n": 2})

    assert ({"n": 2}, {}) == (store.get("a").metadata, store.get("a").programs)
    assert ("b", "a") == store.ids()
    assert 1 == store.stats().expired_total


@pytest.mark.parametrize("quota", [None, 1000])
def test_what_has_expired_is_swept_without_being_asked(
    make_store: MakeStore, clock: FakeClock, quota: int | None
) -> None:
    """Nobody calls ``cleanup_expired``, and what has expired takes no room beyond a minute of new sessions (F38)."""
    store = make_store(default_ttl_s=10, max_sessions=quota)
    largest = 0
    for n in range(600):
        store.create(f"session {n}")
        clock.advance(5)
        largest = max(largest, store._backend.transact(lambda table: table.sizes()[0], write=False))

    assert largest <= 60 // 5 + 3
    assert store.stats().expired_total >= 580


def test_a_clock_that_was_set_back_does_not_put_off_the_sweep(make_store: MakeStore, clock: FakeClock) -> None:
    """The next ``create`` sweeps when the time of the last sweep lies in the future."""
    store = make_store(default_ttl_s=10)
    store.create("late")
    clock.advance(-900)
    store.create("early", ttl_s=1)
    clock.advance(5)
    store.cleanup_expired()
    store.create("expires", ttl_s=1)
    clock.advance(60)

    store.create("next")

    assert 2 == store.stats().expired_total


def test_delete_of_an_expired_session(store: SessionStore, clock: FakeClock) -> None:
    """Deleting what has expired finds nothing, yet counts it as expired."""
    store.create("a", ttl_s=10)
    store.store_global_program("p", 1, ttl_s=10)
    clock.advance(10)

    assert (False, False) == (store.delete("a"), store.delete_global_program("p"))

    assert 2 == store.stats().expired_total
    assert 0 == store.cleanup_expired()


def test_a_session_that_expires_during_its_update(store: SessionStore, clock: FakeClock) -> None:
    """A callback that takes longer than the ttl does not revive its session."""
    store.create("a", ttl_s=10)

    with pytest.raises(SessionNotFound):
        store.update("a", lambda data: clock.advance(10))

    assert not store.exists("a")


# Quota --------------------------------------------------------------------------------------------------


def test_quota(make_store: MakeStore) -> None:
    """With a quota of two the third create is refused, until one is gone (T28)."""
    store = make_store(max_sessions=2)
    store.create("a")
    store.create("b")

    with pytest.raises(SessionQuotaExceeded, match=r"'c'.* 2 "):
        store.create("c")
    with pytest.raises(SessionExists):
        store.create("a")
    refused = store.ids()
    store.delete("a")
    store.create("c")

    assert ("a", "b") == refused
    assert ("b", "c") == store.ids()


def test_the_quota_counts_no_expired_sessions(make_store: MakeStore, clock: FakeClock) -> None:
    """Where the quota is reached, expired sessions are swept first."""
    store = make_store(max_sessions=2)
    store.create("a", ttl_s=10)
    store.create("b", ttl_s=20)
    clock.advance(10)

    store.create("c")
    with pytest.raises(SessionQuotaExceeded):
        store.create("d")

    assert ("b", "c") == store.ids()
    assert 1 == store.stats().expired_total


def test_quota_of_global_programs(make_store: MakeStore, clock: FakeClock) -> None:
    """Global programs have the same quota; storing one again needs no room."""
    store = make_store(max_sessions=2)
    store.create("a")
    store.store_global_program("p", 1, ttl_s=10)
    store.store_global_program("q", 1)

    store.store_global_program("q", 2)
    with pytest.raises(SessionQuotaExceeded, match="'r'"):
        store.store_global_program("r", 1)
    clock.advance(10)
    store.store_global_program("r", 1)

    assert (2, 1) == (store.get_global_program("q"), store.get_global_program("r"))


def test_no_quota(make_store: MakeStore) -> None:
    """``max_sessions=None`` is no limit."""
    store = make_store(max_sessions=None)

    for number in range(20):
        store.create(f"s{number}")

    assert 20 == len(store)
    assert store.stats().max_sessions is None


def test_racing_creates_keep_the_quota(make_store: MakeStore) -> None:
    """Threads that create different ids never exceed the quota together."""
    store = make_store(max_sessions=5)
    start = threading.Barrier(8)

    def work(number: int) -> int:
        start.wait(BOUND_S)
        refused = 0
        for turn in range(5):
            try:
                store.create(f"{number}-{turn}")
            except SessionQuotaExceeded:
                refused += 1
        return refused

    with ThreadPoolExecutor(8) as threads:
        refused = [done.result(BOUND_S) for done in [threads.submit(work, number) for number in range(8)]]

    assert 5 == len(store)
    assert 8 * 5 - 5 == sum(refused)


# Updates ------------------------------------------------------------------------------------------------


def test_update_by_result_and_in_place(store: SessionStore) -> None:
    """A callback returns the new data, or changes its copy and returns None."""
    store.create("a", metadata={"m": 1})

    first = store.update("a", lambda data: {**data, "x": 1})
    second = store.update("a", lambda data: data.update(y=[2]))

    assert {"x": 1} == first.data
    assert {"x": 1, "y": [2]} == second.data
    assert second == store.get("a")
    assert {"m": 1} == second.metadata


def test_a_raising_update_changes_nothing(store: SessionStore) -> None:
    """The callback's exception reaches the caller itself; what it did to its copy is dropped (F39, T28)."""
    store.create("a")
    store.update("a", lambda data: {"x": [1]})
    error = RuntimeError("callback is broken")

    def change(data: dict[str, Any]) -> None:
        data["x"].append(2)
        raise error

    with pytest.raises(RuntimeError) as caught:
        store.update("a", change)

    assert error is caught.value
    assert {"x": [1]} == store.get("a").data
    assert {"x": [1], "y": 2} == store.update("a", lambda data: {**data, "y": 2}).data


@pytest.mark.parametrize("result", [7, [1], "data"])
def test_an_update_to_something_else_than_a_dict(store: SessionStore, result: Any) -> None:
    """Data is a dict; any other result is a TypeError and changes nothing."""
    store.create("a")

    with pytest.raises(TypeError, match=r"'a'.*dict or None"):
        store.update("a", lambda data: result)

    assert {} == store.get("a").data


def test_update_wants_a_callable(store: SessionStore) -> None:
    """What cannot be called is refused before anything else."""
    with pytest.raises(TypeError, match="callable"):
        store.update("a", {"x": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        store.update_program("a", "p", None)  # type: ignore[arg-type]


def test_a_slow_update_keeps_nobody_else_waiting(store: SessionStore) -> None:
    """While a callback runs, other sessions are read and written, and its own is read as it was (F39)."""
    store.create("slow", metadata={"m": 1})
    store.create("other")
    inside, leave = threading.Event(), threading.Event()

    def change(data: dict[str, Any]) -> dict[str, Any]:
        inside.set()
        assert leave.wait(BOUND_S)
        return {"done": True}

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(store.update, "slow", change)
        assert inside.wait(BOUND_S)
        try:
            meanwhile = [
                store.get("slow").data,
                store.update("other", lambda data: {"x": 1}).data,
                store.create("new").data,
                store.ids(),
                store.stats().sessions,
                store.cleanup_expired(),
            ]
            store.store_program("slow", "p", 1)
        finally:
            leave.set()
        result = slow.result(BOUND_S)

    assert [{}, {"x": 1}, {}, ("slow", "other", "new"), 3, 0] == meanwhile
    assert {"done": True} == result.data == store.get("slow").data
    assert {"p": 1} == result.programs


def test_updates_of_one_session_never_mix(store: SessionStore) -> None:
    """Concurrent updates of one session each see the result of the one before; each runs once."""
    store.create("a")
    runs: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            store.update("a", lambda data: runs.append(number) or {"n": data.get("n", 0) + 1})

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, number) for number in range(8)]:
            done.result(BOUND_S)

    assert {"n": 160} == store.get("a").data
    assert 160 == len(runs)


def test_an_update_of_the_same_session_inside_its_callback(store: SessionStore) -> None:
    """A callback that would wait for itself gets a SessionError; the session can be updated afterwards."""
    store.create("a")
    store.store_program("a", "p", 1)

    for nested in (
        lambda: store.update("a", lambda data: {"n": 1}),
        lambda: store.update_program("a", "p", lambda program: 2),
    ):
        with pytest.raises(SessionError, match=r"'a'.*callback"):
            store.update("a", lambda data, nested=nested: nested().data)

    assert {} == store.get("a").data
    assert {"n": 2} == store.update("a", lambda data: {"n": 2}).data


def test_a_callback_may_use_the_store(store: SessionStore) -> None:
    """Inside a callback every other use of the store works, an update of another session included."""
    store.create("a")
    store.create("b")

    def change(data: dict[str, Any]) -> dict[str, Any]:
        store.store_program("a", "p", 1)
        store.update("b", lambda data: {"from": "a"})
        return {"b": store.get("b").data, "a": store.get("a").programs}

    session = store.update("a", change)

    assert {"b": {"from": "a"}, "a": {"p": 1}} == session.data


def test_callbacks_that_wait_for_each_other(store: SessionStore) -> None:
    """Of two callbacks that each update the other's session, one is refused and the other goes on."""
    store.create("a")
    store.create("b")
    both = threading.Barrier(2)

    def cross(own: str, other: str) -> str:
        def change(data: dict[str, Any]) -> dict[str, Any]:
            both.wait(BOUND_S)
            store.update(other, lambda data: {**data, "visited_by": own})
            return {**data, "done": True}

        try:
            store.update(own, change)
        except SessionError:
            return "refused"
        return "done"

    with ThreadPoolExecutor(2) as threads:
        pair = threads.submit(cross, "a", "b"), threads.submit(cross, "b", "a")
        outcomes = sorted(done.result(BOUND_S) for done in pair)

    assert ["done", "refused"] == outcomes


def test_an_update_starts_again_when_the_row_changed_meanwhile(store: SessionStore) -> None:
    """A program stored while its update ran is not lost: the callback runs again on the new value."""
    store.create("a")
    store.store_program("a", "p", {"n": 1})
    seen: list[Any] = []

    def change(program: dict[str, int]) -> dict[str, int]:
        seen.append(program)
        if len(seen) == 1:
            store.store_program("a", "p", {"n": 10})
        return {"n": program["n"] + 1}

    result = store.update_program("a", "p", change)

    assert [{"n": 1}, {"n": 10}] == seen
    assert {"n": 11} == result == store.get_program("a", "p")


def test_an_update_of_a_session_made_anew(store: SessionStore) -> None:
    """An update does not write the old session's data into a new one of the same id."""
    store.create("a")
    store.update("a", lambda data: {"old": True})
    seen: list[Any] = []

    def change(data: dict[str, Any]) -> dict[str, Any]:
        seen.append(data)
        if len(seen) == 1:
            store.delete("a")
            store.create("a")
        return {**data, "n": 1}

    store.update("a", change)

    assert [{"old": True}, {}] == seen
    assert {"n": 1} == store.get("a").data


def test_an_update_that_never_gets_its_change_in(store: SessionStore) -> None:
    """An update whose row is changed every time gives up with a SessionError."""
    store.create("a")
    store.store_program("a", "p", 0)

    with pytest.raises(SessionError, match="changed by others"):
        store.update_program("a", "p", lambda program: store.store_program("a", "p", program + 1))

    assert 50 == store.get_program("a", "p")


def test_an_update_of_what_its_callback_deletes(store: SessionStore) -> None:
    """A session or program deleted during its update stays deleted."""
    store.create("a")
    store.store_program("a", "p", 1)

    with pytest.raises(SessionNotFound, match="no program"):
        store.update_program("a", "p", lambda program: store.delete_program("a", "p"))
    with pytest.raises(SessionNotFound, match="no session"):
        store.update("a", lambda data: store.delete("a") and None)

    assert () == store.ids()


# Programs and values ------------------------------------------------------------------------------------


def test_programs(store: SessionStore) -> None:
    """Programs are stored, replaced, read, changed and deleted by id, apart for each session."""
    store.create("a")
    store.create("b")
    store.store_program("a", "p", {"model": "x"})
    store.store_program("a", "q", 1)
    store.store_program("b", "p", 2)

    store.store_program("a", "p", {"model": "y"})
    changed = store.update_program("a", "p", lambda program: {**program, "runs": 1})
    in_place = store.update_program("a", "p", lambda program: program.update(runs=2))

    assert {"model": "y", "runs": 1} == changed
    assert {"model": "y", "runs": 2} == in_place == store.get_program("a", "p")
    assert ["p", "q"] == list(store.get("a").programs)
    assert (True, False) == (store.delete_program("a", "p"), store.delete_program("a", "p"))
    assert ({"q": 1}, 2) == (store.get("a").programs, store.get_program("b", "p"))


def test_none_is_a_value(store: SessionStore) -> None:
    """A stored None comes back as None; only what is missing raises (F43)."""
    store.create("a", metadata={"k": None})
    store.store_program("a", "p", None)
    store.store_global_program("g", None)

    assert {"k": None} == store.get("a").metadata
    assert store.get_program("a", "p") is None
    assert store.get_global_program("g") is None
    assert store.update_program("a", "p", lambda program: None) is None
    assert {"p": None} == store.get("a").programs
    assert (True, True) == (store.delete_program("a", "p"), store.delete_global_program("g"))


def test_a_raising_program_update_changes_nothing(store: SessionStore) -> None:
    """The program is as before, and so is the session."""
    store.create("a")
    store.store_program("a", "p", {"x": 1})

    def change(program: dict[str, Any]) -> None:
        program["x"] = 2
        raise RuntimeError("callback is broken")

    with pytest.raises(RuntimeError, match="callback is broken"):
        store.update_program("a", "p", change)

    assert {"x": 1} == store.get_program("a", "p")


def test_global_programs(store: SessionStore, clock: FakeClock) -> None:
    """Global programs belong to no session, and expire when they have gone unread for their ttl."""
    store.store_global_program("p", {"v": 1}, ttl_s=10)
    clock.advance(9)
    store.get_global_program("p")
    clock.advance(9)

    alive = store.get_global_program("p")
    clock.advance(10)

    assert {"v": 1} == alive
    with pytest.raises(SessionNotFound, match="no global program 'p'"):
        store.get_global_program("p")
    with pytest.raises(KeyError):
        store.get_global_program("never")
    assert () == store.ids()
    assert store.delete_global_program("never") is False


def test_what_is_stored_is_a_copy(store: SessionStore) -> None:
    """Changing what went in or came out changes nothing in the store."""
    metadata, program, data = {"m": [1]}, {"p": [1]}, {"d": [1]}
    created = store.create("a", metadata=metadata)
    store.store_program("a", "p", program)
    store.store_global_program("g", program)
    updated = store.update("a", lambda old: data)

    for value in (metadata["m"], program["p"], data["d"], created.metadata["m"], updated.data["d"]):
        value.append(2)
    store.get("a").programs["p"]["p"].append(2)
    store.get_program("a", "p")["p"].append(2)
    store.get_global_program("g")["p"].append(2)

    session = store.get("a")
    assert ({"m": [1]}, {"d": [1]}, {"p": {"p": [1]}}) == (session.metadata, session.data, session.programs)
    assert {"p": [1]} == store.get_global_program("g")


def test_stats(store: SessionStore, clock: FakeClock) -> None:
    """The numbers are those of what has not expired."""
    store.create("a")
    store.create("b", ttl_s=10)
    for owner, name in (("a", "p"), ("a", "q"), ("b", "p")):
        store.store_program(owner, name, 1)
    store.store_global_program("g", 1)
    before = store.stats()
    clock.advance(10)

    after = store.stats()

    assert (2, 3, 1, 0) == (before.sessions, before.programs, before.global_programs, before.expired_total)
    assert (1, 2, 1, 0) == (after.sessions, after.programs, after.global_programs, after.expired_total)
    assert 10_000 == after.max_sessions
    assert after.backend in ("memory", "sqlite")
    assert (after.size_bytes is None) == (after.backend == "memory")


def test_closed(store: SessionStore) -> None:
    """After close every method says so; closing again is harmless."""
    store.create("a")
    with store as entered:
        assert store is entered

    store.close()

    for call in (
        lambda: store.create("b"),
        store.ids,
        store.stats,
        lambda: store.get("a"),
        lambda: len(store),
    ):
        with pytest.raises(SessionError, match="closed"):
            call()


def test_a_clock_that_uses_the_store(make_store: MakeStore, clock: FakeClock) -> None:
    """A call from inside a transaction of the same thread is refused instead of waiting for itself."""
    store = make_store()
    store.create("a")
    stores = [store]
    clock.advance(1)
    nested = SessionStore(
        store._backend, clock=lambda: float(len(stores.pop().ids())) if stores else clock.now
    )

    with pytest.raises(SessionError, match="inside"):
        nested.get("a")

    assert 1_001.0 == nested.get("a").last_accessed_at


def test_values_that_memory_refuses() -> None:
    """Memory keeps whatever can be copied; the rest is a ValueError that says where."""
    store = SessionStore()
    store.create("a", metadata={"set": {1}, "f": len})

    with pytest.raises(ValueError, match=r"^/programs/p: cannot be stored"):
        store.store_program("a", "p", threading.Lock())

    assert {"set": {1}, "f": len} == store.get("a").metadata
    assert {} == store.get("a").programs


def _circle() -> list[Any]:
    circle: list[Any] = [{"n": 1}]
    circle.append(circle)
    return circle


def test_memory_keeps_what_deepcopy_keeps() -> None:
    """Types, shared parts and cycles come back as they were, of small and of large values."""
    shared = ["shared"]
    values: list[Any] = [
        {"twice": (shared, shared), "set": {1, frozenset((2,))}, "bytes": b"\0", "wide": 1 << 99, "none": None},
        [bytearray(b"b"), 1j, range(3), len, SessionStore, decimal.Decimal("1.5"), array.array("i", [1])],
        collections.OrderedDict(a=1),
        (Celsius(3), [Celsius(4)]),
        "text",
        nested_list(200),
    ]
    store = SessionStore()
    store.create("a")

    for value in values:
        store.store_program("a", "p", value)
        got = store.get_program("a", "p")
        assert value == got
        assert (repr(value), type(value)) == (repr(got), type(got))
    for pair in ([shared, shared], (shared, shared), {"one": shared, "two": (shared,)}.values()):
        store.store_program("a", "p", list(pair))
        one, two = store.get_program("a", "p")
        assert one is (two[0] if type(two) is tuple else two)
        assert one is not shared
    store.store_program("a", "circle", _circle())
    circle = store.get_program("a", "circle")
    assert circle[1] is circle
    with pytest.raises(ValueError, match=r"^/programs/p: cannot be stored"):
        store.store_program("a", "p", memoryview(b"b"))


def test_no_version_is_used_twice_after_a_fork() -> None:
    """Parent and child give different versions to the rows that they change in a file they share."""
    script = """
import os
from snakepit._store.records import new_version
first = new_version()
read_fd, write_fd = os.pipe()
pid = os.fork()
own = {new_version() for _ in range(1000)}
if pid == 0:
    os.write(write_fd, repr(own).encode())
    os._exit(0)
os.close(write_fd)
with open(read_fd) as file:
    theirs = eval(file.read())
os.waitpid(pid, 0)
print(len(own), len(theirs), len(own & theirs), first in own, min(own) > 0, max(theirs) < 2**63)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=BOUND_S, cwd=ROOT)

    assert ("1000 1000 0 False True True\n", "") == (done.stdout, done.stderr)


# The SQLite file ----------------------------------------------------------------------------------------


class Celsius(int):
    """A number whose type JSON would forget."""


def nested_list(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [0, math.nan]}, "/programs/p/a/1: nan is not JSON"),
        (-math.inf, "/programs/p: -inf is not JSON"),
        ({"a/b~c": {1: 2}}, "/programs/p/a~1b~0c: key 1 is int; JSON keys are str"),
        ({"x": {1, 2}}, "/programs/p/x: builtins.set is not a JSON type"),
        ([b"raw"], "/programs/p/0: builtins.bytes is not a JSON type"),
        ([Celsius(3)], "test_sessions.Celsius is not a JSON type"),
        (nested_list(257), "nested deeper than 256 levels"),
        ([1 << 20_000], "/programs/p/0: an int of 20001 bits has too many digits"),
    ],
)
def test_values_that_json_would_change(path: Path, value: Any, message: str) -> None:
    """A SQLite file refuses what JSON cannot carry exactly, names the place, and stores nothing."""
    with SessionStore.open(path) as store:
        store.create("a")
        store.store_program("a", "p", "before")

        with pytest.raises(ValueError) as caught:
            store.store_program("a", "p", value)

        assert message in str(caught.value)
        assert "before" == store.get_program("a", "p")


def test_every_way_in_checks_its_values(path: Path) -> None:
    """Metadata, data, programs and global programs are checked alike, before anything is written."""
    with SessionStore.open(path) as store:
        store.create("a")
        store.store_program("a", "p", 1)
        calls: list[tuple[str, Callable[[], object]]] = [
            ("/metadata/x", lambda: store.create("b", metadata={"x": {1}})),
            ("/data/x", lambda: store.update("a", lambda data: {"x": {1}})),
            ("/programs/p", lambda: store.update_program("a", "p", lambda program: {1})),
            ("/global_programs/p", lambda: store.store_global_program("p", {1})),
        ]

        for place, call in calls:
            with pytest.raises(ValueError, match=f"^{place}: "):
                call()

        stats = store.stats()
        assert (1, 1, 0) == (stats.sessions, stats.programs, stats.global_programs)
        assert (1, {}) == (store.get_program("a", "p"), store.get("a").data)


def test_values_that_json_keeps(path: Path) -> None:
    """Everything JSON can carry comes back exactly; only tuples come back as lists."""
    value = {
        "": [None, True, False, 0, -1, 1 << 70, 3.5, -0.0, 5e-324, 1.7976931348623157e308],
        "text \ud800 \0 é": {"\ud800": "\udfff\n"},
        "empty": [{}, []],
        "deep": nested_list(250),
        "big": 10**1000,
    }
    with SessionStore.open(path) as store:
        store.store_global_program("p", value)
        store.store_global_program("t", (1, (2,)))

        kept = store.get_global_program("p")

        assert value == kept
        assert [str(number) for number in value[""]] == [str(number) for number in kept[""]]
        assert [1, [2]] == store.get_global_program("t")


def test_a_file_survives_a_restart(path: Path, clock: FakeClock) -> None:
    """Sessions, programs and the rest of their ttl are there when the file is opened again (F43)."""
    with SessionStore.open(path, clock=clock) as store:
        store.create("a", ttl_s=10, metadata={"m": 1})
        store.create("endless", ttl_s=math.inf)
        store.update("a", lambda data: {"d": 1})
        store.store_program("a", "p", None)
        store.store_global_program("g", [1], ttl_s=10)
        expected = store.get("a")
    clock.advance(9)

    with SessionStore.open(str(path), clock=clock) as store:
        seen = store.ids(), store.get_global_program("g")
        kept = store.get("a")
        clock.advance(10)
        later = store.ids()

    assert (("a", "endless"), [1]) == seen
    assert expected.created_at == kept.created_at
    assert (expected.metadata, expected.data, expected.programs) == (kept.metadata, kept.data, kept.programs)
    assert ("endless",) == later


def test_what_was_acknowledged_survives_sigkill(path: Path) -> None:
    """Every write that had returned before a SIGKILL is in the file afterwards."""
    script = """
import itertools, sys
from snakepit.sessions import SessionStore
store = SessionStore.open(sys.argv[1], max_sessions=None)
store.create("counter")
for n in itertools.count():
    store.create(f"s{n}", metadata={"n": n})
    store.store_program(f"s{n}", "p", {"n": n})
    store.update("counter", lambda data: {"n": n})
    print(n, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        acknowledged = [writer.stdout.readline() for _ in range(25)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.stdout.readlines()
        status = writer.wait(BOUND_S)
    last = len([line for line in acknowledged if line.endswith(b"\n")]) - 1

    with SessionStore.open(path, max_sessions=None) as store:
        metadata = [store.get(f"s{n}").metadata for n in range(last + 1)]
        programs = [store.get_program(f"s{n}", "p") for n in range(last + 1)]
        counter = store.get("counter").data["n"]

    assert -signal.SIGKILL == status
    assert last >= 24
    assert [{"n": n} for n in range(last + 1)] == metadata == programs
    assert counter in (last, last + 1)


def test_two_processes_share_a_file(path: Path) -> None:
    """Updates of one session by two processes at once are all kept."""
    script = """
import sys
from snakepit.errors import SessionExists
from snakepit.sessions import SessionStore
with SessionStore.open(sys.argv[1]) as store:
    try:
        store.create("shared")
    except SessionExists:
        pass
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(40):
        store.update("shared", lambda data: {"n": data.get("n", 0) + 1})
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    ready = [process.stdout.readline() for process in processes if process.stdout is not None]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=BOUND_S)

    with SessionStore.open(path) as store:
        data = store.get("shared").data

    assert [b"ready\n"] * 2 == ready
    assert [0, 0] == [process.returncode for process in processes]
    assert {"n": 80} == data


def test_two_stores_on_one_file(path: Path) -> None:
    """Two stores of one process on one file see each other's changes, and the first create wins."""
    with SessionStore.open(path) as one, SessionStore.open(path) as two:
        one.create("a")
        two.update("a", lambda data: {"x": 1})

        with pytest.raises(SessionExists):
            two.create("a")

        assert {"x": 1} == one.get("a").data


def test_a_store_serves_parent_and_child_after_a_fork(path: Path) -> None:
    """After a fork, even in the middle of other threads' use, parent and child both go on with the file."""
    script = """
import os, sys, threading, warnings
from snakepit.sessions import SessionStore
warnings.simplefilter("ignore", DeprecationWarning)
store, memory = SessionStore.open(sys.argv[1]), SessionStore()
for s in (store, memory):
    s.create("a")
    s.create("mine")
inside, leave = threading.Event(), threading.Event()
def hold(data):
    inside.set()
    leave.wait(20)
    return {"by": "thread"}
thread = threading.Thread(target=store.update, args=("a", hold))
thread.start()
inside.wait(20)
def fork(data):
    pid = os.fork()
    if pid == 0:
        store.update("a", lambda data: {"by": "child"})
        memory.update("a", lambda data: {"by": "child"})
        store.create("child")
        store.close()
        return {"by": "child"}
    assert os.waitpid(pid, 0)[1] == 0
    return {"by": "parent"}
session = memory.update("mine", fork)
if session.data["by"] == "child":
    os._exit(0)
leave.set()
thread.join(20)
store.create("parent")
print(store.ids(), store.get("a").data, memory.ids(), session.data, memory.get("a").data)
store.close()
"""

    done = run_script(script, str(path))

    expected = "('a', 'mine', 'child', 'parent') {'by': 'thread'} ('a', 'mine') {'by': 'parent'} {}\n"
    assert ("", expected) == (done.stderr, done.stdout)


def test_other_threads_wait_for_a_fork(make_store: MakeStore) -> None:
    """Between the hooks of a fork no other thread gets into a store; afterwards all goes on."""
    store = make_store()
    store.create("a")
    started = threading.Event()

    def work() -> dict[str, Any]:
        started.set()
        return store.update("a", lambda data: {"n": 1}).data

    with ThreadPoolExecutor(1) as threads:
        _session_locks._before_fork()
        try:
            done = threads.submit(work)
            assert started.wait(BOUND_S)
            during = done.done()
        finally:
            _session_locks._after_fork(child=False)
        after = done.result(BOUND_S)

    assert (False, {"n": 1}) == (during, after)


def test_a_child_forgets_the_updates_of_other_threads(make_store: MakeStore) -> None:
    """In a child only the forking thread exists: its own update goes on, those of others block nobody."""
    store = make_store()
    store.create("mine")
    store.create("theirs")
    turns = store._turns
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert leave.wait(BOUND_S)

    def fork() -> set[str]:
        _session_locks._before_fork()
        _session_locks._after_fork(child=True)
        return set(turns._holder)

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(turns.run, "theirs", hold)
        assert inside.wait(BOUND_S)
        try:
            held = turns.run("mine", fork)
            updated = store.update("theirs", lambda data: {"n": 1}).data
        finally:
            leave.set()
        holding.result(BOUND_S)

    assert {"mine"} == held
    assert {"n": 1} == updated


@pytest.mark.parametrize(("durable", "expected"), [(True, [2, 1, 2]), (False, [1, 1, 1])])
def test_what_waits_for_the_disk(path: Path, durable: bool, expected: list[int]) -> None:
    """Only a durable backend commits with synchronous=FULL (2), and a time of access with NORMAL (1) all the same."""
    backend = SQLiteBackend(path, durable=durable)
    levels: list[int] = []

    def pragma(name: str) -> Any:
        assert backend._connection is not None
        return backend._connection.execute(f"PRAGMA {name}").fetchone()[0]

    for worth_it in (True, False, True):
        levels.append(backend.transact(lambda _: pragma("synchronous"), write=True, durable=worth_it))
    mode = backend.transact(lambda _: pragma("journal_mode"), write=False)
    backend.close()

    assert (expected, "wal") == (levels, mode)


@pytest.mark.parametrize("bad", [1, None, "full"])
def test_durable_is_a_bool(path: Path, bad: Any) -> None:
    """Whether a write waits for the disk is True or False, and nothing is made for anything else."""
    with pytest.raises(TypeError, match=f"durable must be True or False, not {bad!r}"):
        SessionStore.open(path, durable=bad)

    assert not path.exists()


def test_a_fork_during_a_transaction(path: Path) -> None:
    """A fork hook that comes while its own thread is in a transaction leaves the connection alone."""
    backend = SQLiteBackend(path)

    def fork() -> tuple[object, object]:
        before = backend._connection
        _session_locks._before_fork()
        during = backend._connection
        _session_locks._after_fork(child=False)
        return before, during

    connection, kept = backend.transact(lambda _: fork(), write=True)
    _, closed = fork()
    backend.close()

    assert connection is kept is not None
    assert closed is None


def test_a_new_file_is_private(path: Path) -> None:
    """The file and what SQLite puts beside it can be read by their owner only, whatever the umask."""
    before = os.umask(0)
    try:
        with SessionStore.open(path) as store:
            store.create("a")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)

    assert {"sessions.db", "sessions.db-wal", "sessions.db-shm"} == set(modes)
    assert {0o600} == set(modes.values())


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "fifo"])
def test_odd_files_are_refused(path: Path, kind: str) -> None:
    """Symbolic links and what is no regular file are refused by name; a link's target is not made."""
    target = path.with_name("target.db")
    if kind == "link":
        SessionStore.open(target).close()
    if kind.endswith("link"):
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)

    with pytest.raises(SessionError, match=f"{path}: refused"):
        SessionStore.open(path)

    assert (kind == "link") == target.exists()


@pytest.mark.parametrize(
    "content", [b"this is no database " * 100, b"SQLite format 3\0" + bytes(range(256)) * 40]
)
def test_a_damaged_file(path: Path, content: bytes) -> None:
    """A file that SQLite cannot read is a SessionError naming it, and stays as it is."""
    path.write_bytes(content)

    with pytest.raises(SessionError, match=str(path)) as caught:
        SessionStore.open(path)

    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert content == path.read_bytes()


def test_a_file_damaged_later(path: Path) -> None:
    """A value that is no JSON any more is a SessionError naming the file."""
    with SessionStore.open(path) as store:
        store.store_global_program("p", 1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET value = '{'")
    connection.close()

    with (
        SessionStore.open(path) as store,
        pytest.raises(SessionError, match="a stored value is damaged"),
    ):
        store.get_global_program("p")


def test_a_database_of_something_else(path: Path) -> None:
    """Another program's SQLite file is refused and stays as it is."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    content = path.read_bytes()

    with pytest.raises(SessionError, match=f"{path}: .*customers"):
        SessionStore.open(path)

    assert content == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


def test_a_file_of_a_newer_version(path: Path) -> None:
    """A schema that this version does not know is refused, naming both versions."""
    SessionStore.open(path).close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE snakepit_schema SET version = 7")
    connection.close()

    with pytest.raises(SessionError, match=rf"{path}: schema version \[7\].* 1$"):
        SessionStore.open(path)


def test_a_file_that_another_process_begins_at_the_same_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds the schema made between look and transaction leaves it alone."""
    enter = _session_sqlite._enter_wal_mode

    def enter_late(connection: sqlite3.Connection) -> None:
        monkeypatch.undo()
        with SessionStore.open(path) as other:
            other.create("theirs")
        enter(connection)

    monkeypatch.setattr(_session_sqlite, "_enter_wal_mode", enter_late)

    with SessionStore.open(path) as store:
        assert ("theirs",) == store.ids()


def test_waiting_for_the_write_ahead_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file that others hold is tried again, for a bounded time."""

    class Busy:
        def __init__(self, refusals: int) -> None:
            self.refusals = refusals

        def execute(self, statement: str) -> None:
            self.refusals -= 1
            if self.refusals >= 0:
                raise sqlite3.OperationalError("database is locked")

    patient, hopeless = Busy(2), Busy(1_000)
    naps: list[float] = []
    monkeypatch.setattr(_session_sqlite.time, "sleep", naps.append)
    ticks = iter([0.0, 1.0, 2.0, 100.0, 200.0])
    monkeypatch.setattr(_session_sqlite.time, "monotonic", lambda: next(ticks))

    _session_sqlite._enter_wal_mode(patient)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.OperationalError):
        _session_sqlite._enter_wal_mode(hopeless)  # type: ignore[arg-type]

    assert -1 == patient.refusals
    assert 2 == len(naps)


def test_a_file_that_is_locked_for_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that another process does not let through ends with a SessionError naming the file."""
    monkeypatch.setattr(_session_sqlite, "_BUSY_TIMEOUT_S", 0.01)
    with SessionStore.open(path) as store:
        store.create("a")
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")

        with pytest.raises(SessionError, match=f"{path}: .*locked"):
            store.create("b")
        readable = store.ids()
        blocker.execute("ROLLBACK")
        blocker.close()
        store.create("b")

        assert ("a",) == readable
        assert ("a", "b") == store.ids()


def test_a_transaction_that_fails_is_undone(path: Path) -> None:
    """What a transaction changed before it raised is not in the file."""

    class Weary(FakeClock):
        def __call__(self) -> float:
            raise OverflowError("the clock is broken")

    with SessionStore.open(path) as store:
        store.create("a")
        broken = SessionStore(store._backend, clock=Weary())

        with pytest.raises(OverflowError):
            broken.delete("a")

        assert ("a",) == store.ids()


def test_an_interrupted_transaction_is_undone_by_the_next(path: Path) -> None:
    """A transaction that an interrupt left open does not stop the next one, and counts for nothing."""
    with SessionStore.open(path) as store:
        store.create("a")
        connection = store._backend._connection  # type: ignore[attr-defined]
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM records")

        store.create("b")

        assert ("a", "b") == store.ids()


def test_a_file_that_is_gone(path: Path) -> None:
    """A file removed under the store is not silently made anew when it has to be opened again."""
    with SessionStore.open(path) as store:
        store.create("a")
        store._backend._stop()  # type: ignore[attr-defined]
        path.unlink()

        with pytest.raises(SessionError, match=f"{path}: the file is gone"):
            store.ids()

    assert not path.exists()


@pytest.mark.parametrize(("bad", "error"), [("", ValueError), (b"x.db", TypeError), (7, TypeError)])
def test_bad_paths(bad: Any, error: type[Exception]) -> None:
    """A path is text and not empty."""
    with pytest.raises(error):
        SessionStore.open(bad)


def test_a_path_is_only_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that mean something to SQLite are files, and a relative one stays where it was."""
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    for name in (":memory:", "file:x?mode=memory"):
        with SessionStore.open(name) as store:
            monkeypatch.chdir(elsewhere)
            store.create("a")
            store._backend._stop()  # type: ignore[attr-defined]
            assert ("a",) == store.ids()
        monkeypatch.chdir(tmp_path)

        assert (tmp_path / name).is_file()
    assert [] == list(elsewhere.iterdir())


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    """A file that cannot be made is the operating system's own error."""
    with pytest.raises(FileNotFoundError):
        SessionStore.open(tmp_path / "missing" / "x.db")


# Against a model ----------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d"])
VALUES = st.none() | st.integers() | st.lists(st.text(max_size=3), max_size=2)


class StoreMachine(RuleBasedStateMachine):
    """Drives a store and a plain dict alike; ``{id: [data, programs, last access, ttl]}``."""

    backend: ClassVar[str]
    quota = 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.directory = tempfile.TemporaryDirectory()
        backend = (
            MemoryBackend()
            if self.backend == "memory"
            else SQLiteBackend(os.path.join(self.directory.name, "model.db"))
        )
        self.store = SessionStore(backend, default_ttl_s=20, max_sessions=self.quota, clock=self.clock)
        self.sessions: dict[str, list[Any]] = {}
        self.globals: dict[str, list[Any]] = {}
        self.removed = 0
        self.swept_at = -math.inf

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def live(self, table: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: entry for name, entry in table.items() if entry[-2] + entry[-1] > self.clock.now}

    def sweep(self) -> int:
        before = len(self.sessions) + len(self.globals)
        self.sessions, self.globals = self.live(self.sessions), self.live(self.globals)
        swept = before - len(self.sessions) - len(self.globals)
        self.removed += swept
        return swept

    def make_room(self, table: dict[str, list[Any]]) -> None:
        if len(table) >= self.quota or self.clock.now >= self.swept_at + 60:
            self.sweep()
            self.swept_at = self.clock.now

    @rule(seconds=st.sampled_from([0.5, 3, 10, 25]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(name=NAMES, ttl_s=st.sampled_from([None, 5, math.inf]))
    def create(self, name: str, ttl_s: float | None) -> None:
        expected: type[Exception] | None = None
        if name in self.live(self.sessions):
            expected = SessionExists
        else:
            self.removed += self.sessions.pop(name, None) is not None
            self.make_room(self.sessions)
            if len(self.sessions) >= self.quota:
                expected = SessionQuotaExceeded

        if expected is not None:
            with pytest.raises(expected):
                self.store.create(name, ttl_s=ttl_s)
            return
        self.store.create(name, ttl_s=ttl_s)
        self.sessions[name] = [{}, {}, self.clock.now, 20 if ttl_s is None else ttl_s]

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        entry = self.live(self.sessions).get(name)
        if entry is None:
            with pytest.raises(SessionNotFound):
                self.store.get(name)
            return
        session = self.store.get(name)
        entry[2] = self.clock.now
        assert entry == [session.data, session.programs, session.last_accessed_at, session.ttl_s]

    @rule(name=NAMES, key=NAMES, value=VALUES, fails=st.booleans())
    def update(self, name: str, key: str, value: Any, fails: bool) -> None:
        entry = self.live(self.sessions).get(name)

        def change(data: dict[str, Any]) -> None:
            data[key] = value
            if fails:
                raise ZeroDivisionError

        if entry is None or fails:
            with pytest.raises(SessionNotFound if entry is None else ZeroDivisionError):
                self.store.update(name, change)
            return
        entry[0] = {**entry[0], key: value}
        entry[2] = self.clock.now
        assert entry[0] == self.store.update(name, change).data

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        expected = name in self.live(self.sessions)
        self.removed += name in self.sessions and not expected
        self.sessions.pop(name, None)

        assert expected == self.store.delete(name)

    @rule(name=NAMES, program=NAMES, value=VALUES)
    def store_program(self, name: str, program: str, value: Any) -> None:
        entry = self.live(self.sessions).get(name)
        if entry is None:
            with pytest.raises(SessionNotFound):
                self.store.store_program(name, program, value)
            return
        self.store.store_program(name, program, value)
        entry[1][program] = value
        entry[2] = self.clock.now

    @rule(name=NAMES, program=NAMES)
    def get_program(self, name: str, program: str) -> None:
        entry = self.live(self.sessions).get(name)
        if entry is None or program not in entry[1]:
            with pytest.raises(SessionNotFound):
                self.store.get_program(name, program)
            return
        entry[2] = self.clock.now
        assert entry[1][program] == self.store.get_program(name, program)

    @rule(name=NAMES, program=NAMES)
    def delete_program(self, name: str, program: str) -> None:
        entry = self.live(self.sessions).get(name)
        expected = entry is not None and program in entry[1]
        if entry is not None and expected:
            del entry[1][program]
            entry[2] = self.clock.now

        assert expected == self.store.delete_program(name, program)

    @rule(program=NAMES, value=VALUES, ttl_s=st.sampled_from([None, 5]))
    def store_global_program(self, program: str, value: Any, ttl_s: float | None) -> None:
        if program not in self.globals:
            self.make_room(self.globals)
        if program not in self.globals and len(self.globals) >= self.quota:
            with pytest.raises(SessionQuotaExceeded):
                self.store.store_global_program(program, value, ttl_s=ttl_s)
            return
        self.store.store_global_program(program, value, ttl_s=ttl_s)
        self.globals[program] = [value, self.clock.now, ttl_s or 20]

    @rule(program=NAMES)
    def get_global_program(self, program: str) -> None:
        entry = self.live(self.globals).get(program)
        if entry is None:
            with pytest.raises(SessionNotFound):
                self.store.get_global_program(program)
            return
        entry[1] = self.clock.now
        assert entry[0] == self.store.get_global_program(program)

    @rule()
    def cleanup(self) -> None:
        expected = self.sweep()

        assert expected == self.store.cleanup_expired()

    @invariant()
    def agrees(self) -> None:
        live = self.live(self.sessions)
        assert tuple(live) == self.store.ids()
        stats = self.store.stats()
        programs = sum(len(entry[1]) for entry in live.values())
        assert (len(live), programs, len(self.live(self.globals)), self.removed) == (
            stats.sessions,
            stats.programs,
            stats.global_programs,
            stats.expired_total,
        )


class MemoryMachine(StoreMachine):
    backend = "memory"


class SQLiteMachine(StoreMachine):
    backend = "sqlite"


def settings(examples: int) -> hypothesis.settings:
    # print_blob: a failure prints what reproduces it
    return hypothesis.settings(
        max_examples=examples, stateful_step_count=30, deadline=None, print_blob=True, database=None
    )


TestMemoryAgainstModel = MemoryMachine.TestCase
TestMemoryAgainstModel.settings = settings(40)
TestSQLiteAgainstModel = SQLiteMachine.TestCase
TestSQLiteAgainstModel.settings = settings(15)


def test_random_use_by_many_threads(make_store: MakeStore) -> None:
    """Under random concurrent use every count stays exact and no unexpected error appears."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    store = make_store(max_sessions=None)
    names = [f"s{number}" for number in range(4)]

    def work(number: int) -> int:
        rng = random.Random(seed + number)
        added = 0
        for _ in range(40):
            name = rng.choice(names)
            choice = rng.randrange(4)
            try:
                if choice == 0:
                    store.create(name)
                elif choice == 1:
                    store.update(name, lambda data: {"n": data.get("n", 0) + 1})
                    added += 1
                elif choice == 2:
                    store.store_program(name, str(number), number)
                else:
                    assert store.get_program(name, str(number)) == number
            except (SessionExists, SessionNotFound):
                continue
        return added

    with ThreadPoolExecutor(6) as threads:
        added = [done.result(BOUND_S) for done in [threads.submit(work, number) for number in range(6)]]

    assert sum(added) == sum(store.get(name).data.get("n", 0) for name in store), f"seed {seed}"

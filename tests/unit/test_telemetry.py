"""Events and their handlers."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
import timeit
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snakepit import telemetry

REQUEST = "snakepit.worker.request"
FAILED = "snakepit.telemetry.handler_failed"
SLOW = "snakepit.pool.callback_slow"
BOUND_S = 20
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def empty_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin without handlers, and put those of the process back afterwards."""
    monkeypatch.setattr(telemetry, "_table", {})


class Recorder:
    """A handler that keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = []

    def __call__(self, event: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self.calls.append((event, measurements, metadata))


def fail(event: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    raise RuntimeError("handler is broken")


def ids(event: str) -> list[str]:
    return [handler_id for handler_id, _ in telemetry.handlers(event)]


def test_a_handler_receives_the_event() -> None:
    """A handler gets the event's name, measurements and metadata, and no other event."""
    recorder = Recorder()
    telemetry.attach("one", REQUEST, recorder)

    telemetry.execute(REQUEST, {"duration_s": 1.5}, {"command": "ping"})
    telemetry.execute("snakepit.pool.broken", {}, {"pool": "p"})

    assert [(REQUEST, {"duration_s": 1.5}, {"command": "ping"})] == recorder.calls


def test_handlers_run_in_order_of_attachment() -> None:
    """Handlers of one event are listed and called in the order they were attached."""
    order: list[str] = []
    first, second = lambda *_: order.append("first"), lambda *_: order.append("second")
    telemetry.attach("b", REQUEST, first)
    telemetry.attach("a", REQUEST, second)

    telemetry.execute(REQUEST, {}, {})

    assert (("b", first), ("a", second)) == telemetry.handlers(REQUEST)
    assert ["first", "second"] == order


def test_attach_many_and_detach() -> None:
    """One handler on several events, named twice or once, is detached from all of them at once."""
    recorder = Recorder()
    telemetry.attach_many("many", [REQUEST, SLOW, REQUEST], recorder)
    telemetry.execute(REQUEST, {}, {})
    telemetry.execute(SLOW, {}, {})

    was_attached = telemetry.detach("many")
    telemetry.execute(REQUEST, {}, {})

    assert was_attached
    assert [REQUEST, SLOW] == [event for event, _, _ in recorder.calls]
    assert () == telemetry.handlers(REQUEST) == telemetry.handlers(SLOW)


def test_detach_of_a_stranger() -> None:
    """Detaching what is not attached is no error and says so."""
    telemetry.attach("kept", REQUEST, Recorder())

    assert telemetry.detach("gone") is False
    assert ["kept"] == ids(REQUEST)


def test_enabled() -> None:
    """``enabled`` is true while an event has a handler."""
    before = telemetry.enabled(REQUEST)
    telemetry.attach("one", REQUEST, Recorder())
    during = telemetry.enabled(REQUEST)
    telemetry.detach("one")

    assert (False, True, False) == (before, during, telemetry.enabled(REQUEST))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("x", "snakepit.worker.requests", fail), ValueError, ["'snakepit.worker.requests'", f"{REQUEST!r}"]),
        (("x", "", fail), ValueError, ["''", "nearest"]),
        (("x", b"snakepit.worker.request", fail), TypeError, ["b'snakepit.worker.request'", "bytes"]),
        (("", REQUEST, fail), ValueError, ["handler_id", "empty"]),
        ((7, REQUEST, fail), TypeError, ["handler_id", "7", "int"]),
        (("x", REQUEST, "fail"), TypeError, ["'x'", "callable", "'fail'"]),
        (("taken", REQUEST, fail), ValueError, ["'taken'", "already"]),
        (("taken", SLOW, fail), ValueError, ["'taken'", "already"]),
    ],
)
def test_attach_refuses(arguments: tuple[Any, Any, Any], error: type[Exception], words: list[str]) -> None:
    """A bad event, id or handler is refused with its name, and nothing is attached."""
    telemetry.attach("taken", REQUEST, Recorder())

    with pytest.raises(error) as caught:
        telemetry.attach(*arguments)

    assert [] == [word for word in words if word not in str(caught.value)]
    assert ["taken"] == ids(REQUEST)


def test_attach_many_refuses_no_events_and_a_bare_name() -> None:
    """``attach_many`` wants at least one event, in an iterable that is no str."""
    with pytest.raises(ValueError, match="no event"):
        telemetry.attach_many("x", [], fail)
    with pytest.raises(TypeError, match="use attach"):
        telemetry.attach_many("x", REQUEST, fail)


def test_attach_many_is_all_or_none() -> None:
    """One unknown event among several leaves all of them alone."""
    with pytest.raises(ValueError, match="unknown event"):
        telemetry.attach_many("x", [REQUEST, "snakepit.nothing"], fail)

    assert () == telemetry.handlers(REQUEST)


def test_handlers_of_an_unknown_event() -> None:
    """``handlers`` refuses a name that is no event."""
    with pytest.raises(ValueError, match="unknown event"):
        telemetry.handlers("snakepit.nothing")


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3)])
def test_a_raising_handler_is_detached_logged_and_reported(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that raises is detached from all its events; the others run; log and event say who."""

    def bad(*_: object) -> None:
        raise error

    before, after, failures = Recorder(), Recorder(), Recorder()
    telemetry.attach("before", REQUEST, before)
    telemetry.attach_many("bad", [REQUEST, SLOW], bad)
    telemetry.attach("after", REQUEST, after)
    telemetry.attach("watch", FAILED, failures)

    with caplog.at_level(logging.WARNING, "snakepit.telemetry"):
        telemetry.execute(REQUEST, {}, {})

    assert ["before", "after"] == ids(REQUEST)
    assert [] == ids(SLOW)
    assert 1 == len(before.calls) == len(after.calls)
    assert [(FAILED, {}, {"handler_id": "bad", "event": REQUEST, "error": error})] == failures.calls
    (record,) = caplog.records
    assert "'bad'" in record.getMessage()
    assert record.exc_info is not None
    assert error is record.exc_info[1]


def test_a_handler_of_handler_failed_that_fails_is_only_detached(caplog: pytest.LogCaptureFixture) -> None:
    """A failure while a failure is reported is logged and detached, and reported no further."""
    good = Recorder()
    telemetry.attach("bad", REQUEST, fail)
    telemetry.attach("worse", FAILED, fail)
    telemetry.attach("good", FAILED, good)

    telemetry.execute(REQUEST, {}, {})

    assert ["good"] == ids(FAILED)
    assert ["bad"] == [metadata["handler_id"] for _, _, metadata in good.calls]
    assert 2 == len(caplog.records)


def test_keyboard_interrupt_goes_through() -> None:
    """Ctrl-C inside a handler is not the handler's failure."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    telemetry.attach("one", REQUEST, interrupted)

    with pytest.raises(KeyboardInterrupt):
        telemetry.execute(REQUEST, {}, {})

    assert ["one"] == ids(REQUEST)


def test_a_slow_handler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that takes long is named by ``callback_slow``; a quick one and that event's own are not."""
    ticks = iter([0.0, 0.01, 10.0, 13.0, 20.0, 29.0])
    monkeypatch.setattr(telemetry, "_now_s", lambda: next(ticks))
    recorder = Recorder()
    telemetry.attach("quick", REQUEST, Recorder())
    telemetry.attach("slow", REQUEST, Recorder())
    telemetry.attach("watch", SLOW, recorder)

    telemetry.execute(REQUEST, {}, {})

    assert [(SLOW, {"duration_s": 3.0}, {"pool": None, "kind": "handler", "name": "slow"})] == recorder.calls
    assert [] == list(ticks)


def test_attach_and_detach_from_inside_a_handler() -> None:
    """A handler may detach itself and attach another; the change holds from the next emission on."""
    later = Recorder()

    def once(*_: object) -> None:
        telemetry.detach("once")
        telemetry.attach("later", REQUEST, later)

    telemetry.attach("once", REQUEST, once)

    telemetry.execute(REQUEST, {}, {"n": 1})
    telemetry.execute(REQUEST, {}, {"n": 2})

    assert [2] == [metadata["n"] for _, _, metadata in later.calls]
    assert ["later"] == ids(REQUEST)


def test_a_handler_failing_on_two_threads_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two threads inside the same failing handler make one report."""
    both = threading.Barrier(2)

    def bad(*_: object) -> None:
        both.wait(BOUND_S)
        raise RuntimeError("broken")

    failures = Recorder()
    telemetry.attach("bad", REQUEST, bad)
    telemetry.attach("watch", FAILED, failures)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(telemetry.execute, REQUEST, {}, {}) for _ in range(2)]:
            done.result(BOUND_S)

    assert 1 == len(failures.calls) == len(caplog.records)


def test_a_failure_does_not_detach_a_namesake() -> None:
    """An id that was attached anew while the old handler failed keeps its new handler."""

    def replaced(*_: object) -> None:
        telemetry.detach("name")
        telemetry.attach("name", REQUEST, Recorder())
        raise RuntimeError("broken")

    telemetry.attach("name", REQUEST, replaced)

    telemetry.execute(REQUEST, {}, {})

    assert ["name"] == ids(REQUEST)


def test_a_finalizer_may_detach_in_the_middle_of_attach() -> None:
    """A detach that interrupts an attach on the same thread is not undone by it, and does not deadlock."""

    class Interrupting(str):
        def __eq__(self, other: object) -> bool:
            telemetry.detach("other")
            return False

        __hash__ = str.__hash__

    telemetry.attach("other", REQUEST, Recorder())

    telemetry.attach(Interrupting("new"), REQUEST, Recorder())

    assert 1 == len(telemetry.handlers(REQUEST))
    assert "other" != str(telemetry.handlers(REQUEST)[0][0])


def test_attach_and_detach_from_many_threads() -> None:
    """No attachment and no detachment of concurrent threads is lost."""
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(BOUND_S)
        for turn in range(50):
            telemetry.attach(f"{number}-{turn}", REQUEST, Recorder())
            telemetry.execute(REQUEST, {}, {})
            if turn % 2:
                telemetry.detach(f"{number}-{turn}")

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, number) for number in range(8)]:
            done.result(BOUND_S)

    assert {f"{number}-{turn}" for number in range(8) for turn in range(0, 50, 2)} == set(ids(REQUEST))


def test_nobody_listening_costs_one_lookup() -> None:
    """Without handlers, ``execute`` costs about as much as a function with a single dict look-up."""
    table: dict[str, int] = {}

    def lookup(event: str, measurements: object, metadata: object) -> None:
        if table.get(event) is None:
            return

    def cost(function: Any) -> float:
        return min(timeit.repeat(lambda: function(REQUEST, None, None), number=5_000, repeat=10))

    assert cost(telemetry.execute) < 4 * cost(lookup)


def test_the_lock_does_not_outlive_a_fork() -> None:
    """A child forked while another thread held the table's lock can attach and detach."""
    script = """
import os, threading, warnings
from snakepit import telemetry
warnings.simplefilter("ignore", DeprecationWarning)
held, release = threading.Event(), threading.Event()
def hold():
    with telemetry._lock:
        held.set()
        release.wait(20)
thread = threading.Thread(target=hold)
thread.start()
held.wait(20)
pid = os.fork()
if pid == 0:
    telemetry.attach("child", "snakepit.pool.broken", print)
    os._exit(0 if telemetry.detach("child") else 1)
release.set()
thread.join(20)
print(os.waitpid(pid, 0)[1])
"""

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S
    )

    assert ("0\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_the_docstring_shows_the_shape_of_each_event() -> None:
    """The module's docstring has exactly the events and keys of ``EVENTS``."""
    text = str(telemetry.__doc__)
    entries = re.split(r"^``(snakepit\.[a-z_.]+)``:", text, flags=re.MULTILINE)
    documented = {}
    for event, entry in zip(entries[1::2], entries[2::2], strict=True):
        measurements, metadata = re.findall(r"(?:measurements|metadata) ``\{(.*?)\}``", entry, re.DOTALL) or (
            "",
            "",
        )
        documented[event] = telemetry.Event(
            tuple(re.findall(r'"(\w+)":', measurements)), tuple(re.findall(r'"(\w+)":', metadata))
        )

    assert dict(telemetry.EVENTS) == documented

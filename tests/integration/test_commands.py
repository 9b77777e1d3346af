"""Values arrive exactly as sent, both ways and at any size; futures behave as the standard ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, as_completed, wait
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, adapter, balance, handler_pool

from snakepit import CommandError, JavaScriptAdapter, PythonAdapter, SnakepitExecutor

from gates import Gate


@pytest.fixture(scope="module")
def pool() -> Iterator[SnakepitExecutor]:
    """Return a pool that the tests of this file share."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        yield ex


@pytest.mark.parametrize(
    "value",
    [
        False,
        True,
        0,
        -1,
        1.5,
        -0.0,
        1e308,
        5e-324,
        2**53 + 1,
        2**64,
        -(2**200),
        10**4000,
        "",
        '\0\x1f\u2028\U0001f600"\\',
        None,
        [],
        {},
        [None, [False, [0, [""]]]],
        {"": {"a/b~c": None}},
        b"",
        b"\x00\xff\x80raw",
        {"mixed": [b"one", "two", {"three": b""}]},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_values_arrive_as_sent(pool: SnakepitExecutor, value: Any) -> None:
    """A value comes back equal and of the same type, and falsy args are not replaced by defaults."""
    result = pool.execute("give", {"value": value})

    assert value == result
    assert repr(value) == repr(result)


@pytest.mark.parametrize("args", [False, 0, "", 0.0])
def test_falsy_args_are_one_positional(pool: SnakepitExecutor, args: Any) -> None:
    """A scalar is the one positional argument, a falsy one as well."""
    assert repr(args) == repr(pool.execute("give", args))


def test_args_take_their_documented_shapes(pool: SnakepitExecutor) -> None:
    """An object gives keywords, an array positionals, null none, and leaving args out an empty object."""
    assert 7 == pool.execute("run", [7])
    assert 7 == pool.execute("run", (7,))
    assert 7 == pool.execute("run", {"value": 7})
    assert pool.execute("run", None) is None
    assert pool.execute("run") is None
    assert {} == pool.execute("echo")["echoed"]
    assert pool.execute("echo", None)["echoed"] is None


@pytest.mark.parametrize("kind", ["python", "javascript"])
def test_builtin_commands_of_both_languages(kind: str, node: str) -> None:
    """The same calls have the same answers in Python and JavaScript workers."""
    chosen = PythonAdapter() if kind == "python" else JavaScriptAdapter(node=node)
    with handler_pool(1, adapter=chosen) as ex:
        echoed = ex.execute("echo", {"text": "hi", "none": None})
        computed = ex.execute("compute", {"operation": "multiply", "a": 6, "b": 7})
        error = ex.submit("compute", {"operation": "divide", "a": 1, "b": 0}).exception(LIMIT_S)

        assert ("ok", {"text": "hi", "none": None}) == (echoed["status"], echoed["echoed"])
        assert ("ok", "multiply", 42) == (computed["status"], computed["operation"], computed["result"])
        assert isinstance(error, CommandError)
        assert "ok" == ex.execute("ping")["status"]


def test_a_handlers_exception_is_the_futures(pool: SnakepitExecutor) -> None:
    """Class name, message and traceback arrive, and the worker lives."""
    error = pool.submit("fail", {"text": "no such page"}).exception(LIMIT_S)

    assert isinstance(error, CommandError)
    assert ("handler_error", "RuntimeError", "no such page") == (error.code, error.type, error.message)
    assert "in fail" in (error.remote_traceback or "")
    assert "in fail" in str(error.__cause__)
    assert 0 == pool.stats().restarts


@pytest.mark.parametrize("as_bytes", [False, True], ids=["text", "attachment"])
def test_large_values_cross_in_both_directions(as_bytes: bool) -> None:
    """2 x 48 MiB echoed at once: neither side waits for the other for ever (F97)."""
    values: list[Any] = [bytes([97 + n]) * (48 << 20) for n in range(2)]
    if not as_bytes:
        values = [value.decode() for value in values]
    with handler_pool(2) as ex:
        futures = [ex.submit("give", {"value": value}) for value in values]

        assert [True, True] == [
            future.result(90) == value for future, value in zip(futures, values, strict=True)
        ]


def test_bytes_beyond_a_frame_travel_in_parts() -> None:
    """An attachment above max_frame_bytes is cut, and put together again."""
    data = bytes(range(256)) * (72 << 12)
    with handler_pool(1) as ex:
        assert len(data) == ex.submit("size", {"data": data}).result(60)
        assert data[::-1] == ex.submit("reversed_bytes", {"data": data}).result(60)


def test_futures_work_with_the_standard_functions(pool: SnakepitExecutor, gate: Gate) -> None:
    """wait, as_completed and asyncio take the futures as their own."""
    held = pool.submit("hold", {"gate": gate.path, "value": "held"})
    quick = pool.submit("run", {"value": "quick"})

    done, not_done = wait([held, quick], timeout=LIMIT_S, return_when=FIRST_COMPLETED)
    gate.open()

    assert ({quick}, {held}) == (done, not_done)
    assert [quick, held] == sorted(as_completed([held, quick], timeout=LIMIT_S), key=lambda f: f is held)

    async def ask() -> list[Any]:
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(pool, "run", {"value": 1})
        return [await first, await asyncio.wrap_future(pool.submit("run", {"value": 2}))]

    assert [1, 2] == asyncio.run(ask())


def test_a_cancelled_asyncio_wrapper_cancels_the_request(gate: Gate) -> None:
    """Cancelling the wrapper of a queued request cancels the request, which never runs (F30)."""
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        queued = ex.submit("run", {"value": 1})

        async def give_up() -> None:
            asyncio.wrap_future(queued).cancel()

        asyncio.run(give_up())
        gate.open()
        running.result(LIMIT_S)

        assert queued.cancelled()
        assert (1, 2) == (ex.stats().cancelled, balance(ex.stats()))


# Callbacks ------------------------------------------------------------------------------------------


def test_submit_inside_a_done_callback_uses_the_freed_worker() -> None:
    """A callback may submit; the worker that has just answered takes the request."""
    second: list[Any] = []
    ready = threading.Event()
    with handler_pool(1) as ex:

        def follow(future: Any) -> None:
            second.append(ex.submit("run", {"value": future.result() + 1}))
            ready.set()

        first = ex.submit("run", {"value": 1})
        first.add_done_callback(follow)

        assert ready.wait(LIMIT_S)
        assert 2 == second[0].result(LIMIT_S)
        assert first.pid == second[0].pid


def test_waiting_on_the_pools_thread_would_deadlock() -> None:
    """Each waiting call raises RuntimeError there; the others work; shutdown(wait=True) returns at once."""
    outcomes: dict[str, BaseException | None] = {}
    done = threading.Event()
    ex = handler_pool(1)

    def call_back(_: object) -> None:
        pending = ex.submit("run", {"value": "later"})
        calls = {
            "result": lambda: pending.result(),
            "exception": lambda: pending.exception(timeout=60),
            "execute": lambda: ex.execute("run"),
            "view": lambda: ex.session("s").execute("run"),
            "map": lambda: list(ex.map("run", [{}])),
            "unordered": lambda: list(ex.map_unordered("run", [{}])),
            "wait_ready": lambda: ex.wait_ready(),
            "stats": lambda: ex.stats(),
            "workers": lambda: ex.workers(),
            "recycle": lambda: ex.recycle(),
            "end_session": lambda: ex.end_session("s"),
            "shutdown": lambda: ex.shutdown(wait=True),
        }
        for name, call in calls.items():
            try:
                call()
                outcomes[name] = None
            except RuntimeError as error:
                outcomes[name] = error
        done.set()

    ex.submit("run").add_done_callback(call_back)
    assert done.wait(LIMIT_S)
    ex.shutdown()

    refused = {name for name, error in outcomes.items() if error is not None}
    assert {"result", "exception", "execute", "view", "map", "unordered", "wait_ready"} == refused
    assert all("would deadlock" in str(error) for error in outcomes.values() if error is not None)


def test_a_raising_callback_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a done-callback, also a SystemExit, is logged and the pool goes on."""
    with handler_pool(1) as ex:
        for error in (ValueError("callback"), SystemExit(3), KeyboardInterrupt()):
            future = ex.submit("run", {"value": 1})

            def call_back(_: object, error: BaseException = error) -> None:
                raise error

            future.add_done_callback(call_back)
            assert 1 == future.result(LIMIT_S)

        assert 2 == ex.execute("run", {"value": 2})
    assert "callback" in caplog.text


def test_output_lines_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With output="log" every line a worker prints or logs is a record of snakepit.worker."""
    with caplog.at_level("DEBUG", "snakepit.worker"), handler_pool(1) as ex:
        ex.execute("shout", {"text": "line \x1b[31mred"})

    text = "\n".join(record.getMessage() for record in caplog.records if record.name == "snakepit.worker")
    assert "line " in text
    assert "stderr line " in text
    assert "logged line " in text
    assert "\x1b" not in text


def test_output_inherit_goes_to_the_hosts_own(capfd: pytest.CaptureFixture[str]) -> None:
    """With output="inherit" stdout appears on stdout and stderr on stderr."""
    with handler_pool(1, adapter=adapter(output="inherit")) as ex:
        ex.execute("shout", {"text": "hello"})

    captured = capfd.readouterr()
    assert "hello\n" == captured.out
    assert "stderr hello\n" in captured.err

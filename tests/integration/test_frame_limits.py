"""Limits of frames: the host's own, and the smaller one that a worker may have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config

from snakepit import CommandAdapter, EncodeError, PythonAdapter, SnakepitExecutor, WorkerStartError
from snakepit._core import dispatcher
from snakepit._core.model import Worker

NARROW = str(Path(__file__).resolve().parent / "workers" / "narrow.py")


def narrow_pool(limit: Any, *, start_args: Any = None, **changes: Any) -> SnakepitExecutor:
    """Return a pool of one worker that announces this limit."""
    adapter = CommandAdapter(
        [sys.executable, "-I", "-S", NARROW], level=1, env={"NARROW_LIMIT": json.dumps(limit)}, start_args=start_args
    )
    return SnakepitExecutor(adapter, 1, config=config(restart_budget=1, **changes))


@pytest.fixture
def handlers(tmp_path: Path) -> str:
    """Return a file with so few handlers that the handshake fits any frame."""
    path = tmp_path / "handlers.py"
    path.write_text("from snakepit_bridge import command\n@command\ndef run(value): return value\n")
    return str(path)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let as many items travel together as may, from the first on."""

    def part_size(worker: Worker, items: int, workers: int) -> int:
        return items if worker.can_batch else 1

    monkeypatch.setattr(dispatcher, "part_size", part_size)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("limit", [1024, 1025, 5000, 200_000])
def test_items_that_travel_together_fit_a_frame(limit: int, handlers: str) -> None:
    """However small the limit is and however many items there are: a worker would end at a longer frame."""
    items = [{"value": "x" * (number % 200)} for number in range(1500)]
    with SnakepitExecutor(PythonAdapter(handlers), 1, config=config(max_frame_bytes=limit)) as ex:
        assert [item["value"] for item in items] == list(ex.map("run", items))
        assert (1500, 0) == (ex.stats().completed, ex.stats().restarts)


@pytest.mark.usefixtures("together")
def test_items_that_alone_fill_a_frame(handlers: str) -> None:
    """What does not fit fails at its place, also behind one that has shown that the command can be sent."""
    items = [{"value": "x" * size} for size in (1, 700, 800, 900, 1000, 1010, 1)]
    with SnakepitExecutor(PythonAdapter(handlers), 1, config=config(max_frame_bytes=1024)) as ex:
        results = list(ex.map("run", items, return_exceptions=True))

        assert [EncodeError if isinstance(r, EncodeError) else len(r) for r in results] == [
            1, 700, EncodeError, EncodeError, EncodeError, EncodeError, 1,
        ]  # fmt: skip
        assert 0 == ex.stats().restarts


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("limit", [1024, 4096])
def test_a_worker_with_a_smaller_limit(limit: int) -> None:
    """Nothing longer is written to it: what is too long fails, for what it is, and all else is served."""
    with narrow_pool(limit) as ex:
        for options in ({}, {"timeout": LIMIT_S}, {"session": "s"}):
            fits = ex.submit("size", {"text": "x" * (limit // 2)}, **options)
            assert [limit // 2, 0] == fits.result(LIMIT_S)
            for size in (limit, 20 * limit, 1 << 20):
                error = ex.submit("size", {"text": "x" * size}, **options).exception(LIMIT_S)
                assert isinstance(error, EncodeError)
                assert f"the limit is {limit} (the worker's max_frame)" in str(error)
        assert [[number, 0] for number in range(300)] == list(
            ex.map("size", [{"text": "x" * number} for number in range(300)])
        )
        for size in (0, 1, limit - 1, limit, limit + 1, 100 * limit):
            assert [0, size] == ex.execute("size", {"data": bytes(size)})
        with ex.session("long" * limit) as view:
            assert isinstance(view.submit("size", {}).exception(LIMIT_S), EncodeError)
        ex.end_session("s")
        ex.execute("seen")

        seen = ex.execute("seen")
        assert limit == seen["longest"], "of an attachment"
        assert (["s"], 0) == (seen["ended"], seen["batches"])
        assert 0 == ex.stats().restarts


@pytest.mark.usefixtures("together")
def test_a_worker_whose_limit_is_above_what_travels_together() -> None:
    """It gets items together as any other."""
    with narrow_pool(1 << 20) as ex:
        items = [{"text": "x" * 1000} for _ in range(600)]
        assert [[1000, 0]] * 600 == list(ex.map("size", items))

        seen = ex.execute("seen")
        assert seen["batches"]
        assert seen["longest"] <= 128 << 10


def test_a_set_up_that_is_too_long_for_the_worker() -> None:
    """The session's first request fails with it, and the worker serves on."""
    with narrow_pool(1024) as ex:
        error = ex.session("s", setup=[("size", {"text": "x" * 2000})]).submit("size").exception(LIMIT_S)

        assert isinstance(error, EncodeError)
        assert [0, 0] == ex.execute("size")


def test_the_limit_begins_after_the_handshake() -> None:
    """The first request tells the limit, and may be longer; a larger one of the worker's changes nothing."""
    with narrow_pool(1 << 26, start_args={"text": "x" * 5000}, max_frame_bytes=1024) as ex:
        assert [700, 0] == ex.execute("size", {"text": "x" * 700})
        assert ex.execute("seen")["longest"] < 1024


@pytest.mark.parametrize("limit", [1023, 0, -1, 2048.0, "2048", True, None, [2048]])
def test_a_limit_that_is_none(limit: Any) -> None:
    """The worker has not started, and the message shows what it said."""
    with narrow_pool(limit) as ex, pytest.raises(WorkerStartError, match="max_frame must be an int >= 1024"):
        ex.wait_ready(LIMIT_S)

"""The pool as the executor of an event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import pytest
from integration import callables_lib as lib

from snakepit import PythonAdapter, SnakepitExecutor
from snakepit.errors import WorkerDied

from gates import Gate

BOUND_S = 20.0


def test_run_in_executor() -> None:
    """`loop.run_in_executor` runs callables, many at once, results and exceptions arrive."""

    async def main(executor: SnakepitExecutor) -> list[object]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, functools.partial(lib.fail_even, n)) for n in range(4)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), BOUND_S)

    with SnakepitExecutor(2) as executor:
        zero, one, two, three = asyncio.run(main(executor))

    assert (1, 3) == (one, three)
    assert [(0,), (2,)] == [error.args for error in (zero, two) if isinstance(error, ValueError)]


def test_wrap_future_of_a_command() -> None:
    """`asyncio.wrap_future` awaits a command's future."""

    async def main(executor: SnakepitExecutor) -> object:
        return await asyncio.wait_for(asyncio.wrap_future(executor.submit("echo", {"a": 1})), BOUND_S)

    with SnakepitExecutor(PythonAdapter(), 1) as executor:
        reply = asyncio.run(main(executor))

    assert isinstance(reply, dict)
    assert {"a": 1} == reply["echoed"]


@pytest.mark.parametrize("how", ["run_in_executor", "wrap_future", "timeout"])
def test_cancelling_reaches_the_queue(make_gate: Callable[[], Gate], how: str) -> None:
    """An awaitable that is cancelled cancels the queued request, which never runs (python/cpython#107505)."""
    first, second = make_gate(), make_gate()

    async def main(executor: SnakepitExecutor) -> int:
        loop = asyncio.get_running_loop()
        held = loop.run_in_executor(executor, lib.held, first.path)
        await loop.run_in_executor(None, first.wait_started)
        if how == "run_in_executor":
            queued: asyncio.Future[object] = loop.run_in_executor(executor, lib.held, second.path)
        else:
            queued = asyncio.wrap_future(executor.submit(lib.held, second.path))
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(queued, 0.01)
        else:
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await queued
        # The loop passes a cancellation on in its next turn.
        await asyncio.sleep(0)
        left = executor.stats().queued
        first.open()
        await asyncio.wait_for(held, BOUND_S)
        await asyncio.wait_for(loop.run_in_executor(executor, lib.add, 1), BOUND_S)
        return left

    with SnakepitExecutor(1) as executor:
        left = asyncio.run(main(executor))

        assert 0 == left
        assert 1 == executor.stats().cancelled
    assert second.nobody_started()


def test_cancelled_task_leaves_a_running_call_alone(gate: Gate) -> None:
    """A call that runs goes on when its awaiter is cancelled, and its worker serves next."""

    async def main(executor: SnakepitExecutor) -> None:
        loop = asyncio.get_running_loop()
        held = loop.run_in_executor(executor, lib.held, gate.path)
        await loop.run_in_executor(None, gate.wait_started)
        held.cancel()
        gate.open()
        assert 2 == await asyncio.wait_for(loop.run_in_executor(executor, lib.add, 1, 1), BOUND_S)

    with SnakepitExecutor(1) as executor:
        asyncio.run(main(executor))

        assert (2, 0) == (executor.stats().completed, executor.stats().restarts)


def test_dead_worker_raises_in_the_awaiter() -> None:
    """What a ProcessPoolExecutor would raise is raised by `await`."""

    async def main(executor: SnakepitExecutor) -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(loop.run_in_executor(executor, lib.act, "os_exit"), BOUND_S)
        assert 1 == await asyncio.wait_for(loop.run_in_executor(executor, lib.add, 1), BOUND_S)

    with SnakepitExecutor(1) as executor:
        asyncio.run(main(executor))


def test_shutdown_while_awaited(gate: Gate) -> None:
    """A cancelling shutdown ends what the loop awaits."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = SnakepitExecutor(1)
        held = loop.run_in_executor(executor, lib.held, gate.path, 3)
        await loop.run_in_executor(None, gate.wait_started)
        queued = loop.run_in_executor(executor, lib.add, 1)
        executor.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(queued, BOUND_S)
        gate.open()
        assert 3 == await asyncio.wait_for(held, BOUND_S)
        await loop.run_in_executor(None, executor.shutdown)

    asyncio.run(main())

"""A broken pool tells each of its callers in an exception of their own, and lets go of them."""

from __future__ import annotations

import gc
import traceback
from pathlib import Path

import pytest
from integration.workers.pools import LIMIT_S, config, saboteur_pool

from snakepit import PoolBroken, SnakepitExecutor, WorkerStartError


def broken_pool() -> SnakepitExecutor:
    """Return a pool whose worker cannot start."""
    return saboteur_pool(env={"SABOTEUR_START": "exit"}, config=config(restart_budget=1))


def frames_of(error: BaseException) -> int:
    """Return how many frames the exception's traceback has."""
    return len(traceback.extract_tb(error.__traceback__))


def waiting_fails(ex: SnakepitExecutor) -> WorkerStartError:
    """Wait for a worker, and return what that raised."""
    with pytest.raises(WorkerStartError) as caught:
        ex.wait_ready(LIMIT_S)
    return caught.value


def test_each_waiter_gets_its_own_error() -> None:
    """Everyone who waits in vain gets the facts in a new exception, whose traceback is theirs alone."""
    with broken_pool() as ex:
        errors = [waiting_fails(ex) for _ in range(3)]

    assert 3 == len({id(error) for error in errors})
    assert 1 == len({frames_of(error) for error in errors})
    assert [7, 7, 7] == [error.exit_code for error in errors]
    assert all("no model file" in error.stderr_tail for error in errors)


def test_each_request_gets_its_own_error() -> None:
    """Requests that a pool takes with it fail with an exception each, with the common cause."""
    with broken_pool() as ex:
        futures = []
        while True:
            try:
                futures.append(ex.submit("do", {"how": "reply"}))
            except PoolBroken:
                break
        errors = [future.exception(LIMIT_S) for future in futures]

    assert {PoolBroken} == {type(error) for error in errors}
    assert len(futures) == len({id(error) for error in errors})
    assert 1 == len({id(error.__cause__) for error in errors if error is not None})


def use_and_drop(ex: SnakepitExecutor) -> None:
    """Meet every error that a broken pool has for its users, and keep none of them."""
    waiting_fails(ex)
    for call in (lambda: ex.execute("do"), lambda: ex.submit("do").result(LIMIT_S)):
        with pytest.raises(PoolBroken):
            call()


def test_a_broken_pool_that_is_dropped_ends(tmp_path: Path) -> None:
    """An executor whose broken pool has told its callers why is collected like every other, and the pool ends."""
    ex = broken_pool()
    manager = ex._manager
    use_and_drop(ex)

    # RACE: 1. the pool hands out its error, 2. a caller raises it, 3. the error holds the caller's frames, and
    # these hold the executor: were it the pool's own object, the executor would live as long as its pool.
    del ex
    gc.collect()

    assert manager.join(LIMIT_S)

"""Several pools in one process: each minds its own workers."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from integration import callables_lib as lib

from snakepit import JavaScriptAdapter, PythonAdapter, SnakepitExecutor
from snakepit.config import PoolConfig
from snakepit.errors import PoolBroken, WorkerDied

from gates import Gate
from leaks import FD_DIRECTORY, wait_until

BOUND_S = 20.0


@pytest.fixture
def pools(node: str) -> Iterator[dict[str, SnakepitExecutor]]:
    """One pool of each kind, all ready."""
    with (
        SnakepitExecutor(1, name="callables") as callables,
        SnakepitExecutor(PythonAdapter(), 1, name="python") as python,
        SnakepitExecutor(JavaScriptAdapter(node=node), 1, name="javascript") as javascript,
    ):
        pools = {"callables": callables, "python": python, "javascript": javascript}
        for pool in pools.values():
            pool.wait_ready(BOUND_S)
        yield pools


def pids_of(pools: dict[str, SnakepitExecutor]) -> dict[str, int | None]:
    """Return the pid of each pool's worker."""
    return {name: pool.workers()[0].pid for name, pool in pools.items()}


def works(name: str, pool: SnakepitExecutor) -> bool:
    """Make one call and return whether its answer is right."""
    if name == "callables":
        return bool(3 == pool.execute(lib.add, 1, 2))
    return bool({"x": name} == pool.execute("echo", {"x": name})["echoed"])


def test_all_kinds_serve_at_once(pools: dict[str, SnakepitExecutor]) -> None:
    """Calls from several threads to several pools get their own answers."""
    answers: dict[str, list[bool]] = {name: [] for name in pools}

    def call(name: str) -> None:
        answers[name] += [works(name, pools[name]) for _ in range(20)]

    threads = [threading.Thread(target=call, args=(name,)) for name in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)

    assert {name: [True] * 20 for name in pools} == answers


@pytest.mark.parametrize("victim", ["callables", "python", "javascript"])
def test_killed_worker_of_one_pool(pools: dict[str, SnakepitExecutor], victim: str) -> None:
    """The pool whose worker was killed replaces it; the others keep theirs."""
    before = pids_of(pools)
    pid = before.pop(victim)
    assert pid is not None

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: pools[victim].stats().restarts == 1, BOUND_S)
    pools[victim].wait_ready(BOUND_S)
    after = pids_of(pools)
    assert pid != after.pop(victim)
    assert before == after
    assert all(works(name, pool) for name, pool in pools.items())


@pytest.mark.parametrize("closed", ["callables", "python", "javascript"])
def test_shutdown_of_one_pool(pools: dict[str, SnakepitExecutor], closed: str) -> None:
    """The others go on with the same workers."""
    before = pids_of(pools)

    pools.pop(closed).shutdown()

    assert {name: pid for name, pid in before.items() if name != closed} == pids_of(pools)
    assert all(works(name, pool) for name, pool in pools.items())


def test_broken_pool_beside_a_healthy_one(gate: Gate) -> None:
    """A pool that cannot start says so under its own name; its neighbour serves meanwhile and afterwards."""
    config = PoolConfig(restart_backoff_s=0.01, restart_backoff_cap_s=0.01, restart_budget=3)
    with (
        SnakepitExecutor(1, name="healthy") as healthy,
        SnakepitExecutor(
            1, name="broken", initializer=lib.act, initargs=("os_exit",), config=config
        ) as broken,
    ):
        held = healthy.submit(lib.held, gate.path, 5)
        gate.wait_started()

        error = broken.submit(lib.add, 1).exception(BOUND_S)

        assert isinstance(error, PoolBroken)
        assert "'broken'" in str(error)
        gate.open()
        assert 5 == held.result(BOUND_S)
        assert 3 == healthy.submit(lib.add, 1, 2).result(BOUND_S)
        assert 0 == healthy.stats().restarts


def test_callback_of_one_pool_may_wait_for_another(gate: Gate) -> None:
    """Only the pool whose thread it is would deadlock."""
    with SnakepitExecutor(1, name="first") as first, SnakepitExecutor(1, name="second") as second:
        seen: list[object] = []
        done = threading.Event()

        def relay(_: object) -> None:
            try:
                seen.append(second.submit(lib.add, 1, 1).result(BOUND_S))
            finally:
                done.set()

        first.submit(lib.held, gate.path).add_done_callback(relay)
        gate.open()

        assert done.wait(BOUND_S)
        assert [2] == seen


def test_crash_in_one_pool_fails_nothing_in_another(gate: Gate) -> None:
    """A call that kills its worker leaves the running call of another pool alone."""
    with SnakepitExecutor(1) as one, SnakepitExecutor(1) as other:
        held = other.submit(lib.held, gate.path, 1)
        gate.wait_started()

        assert isinstance(one.submit(lib.act, "segfault").exception(BOUND_S), WorkerDied)

        gate.open()
        assert 1 == held.result(BOUND_S)


def test_pools_opened_and_closed_in_a_row() -> None:
    """Ten pools leave as many descriptors and threads as one."""

    def use() -> tuple[int, int]:
        with SnakepitExecutor(2) as executor:
            assert [1, 2, 3] == list(executor.map(lib.add, [1, 2, 3]))
        gc.collect()
        return len(os.listdir(FD_DIRECTORY)), threading.active_count()

    first = use()

    assert [first] * 9 == [use() for _ in range(9)]


def test_pools_of_one_name() -> None:
    """Names are for people: two pools may share one."""
    with SnakepitExecutor(1, name="same") as one, SnakepitExecutor(1, name="same") as two:
        pids = {one.submit(lib.pid_of_worker).result(BOUND_S), two.submit(lib.pid_of_worker).result(BOUND_S)}

    assert 2 == len(pids)

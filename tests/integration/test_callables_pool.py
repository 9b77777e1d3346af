"""Workers that run callables: what travels, what breaks on the way, what starts them."""

from __future__ import annotations

import multiprocessing
import threading
import types
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
from integration import callables_lib as lib
from integration import scripts

from snakepit import CallableAdapter, SnakepitExecutor
from snakepit._core.portions import is_light
from snakepit.config import PoolConfig
from snakepit.errors import CommandError, PoolBroken, WorkerDied

from gates import Gate
from leaks import wait_until

BOUND_S = 20.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared() -> Iterator[SnakepitExecutor]:
    """A pool of two workers that the tests of pure behaviour share."""
    with SnakepitExecutor(2, name="shared") as executor:
        executor.wait_ready(BOUND_S, 2)
        yield executor


def outcome(future: Future[Any]) -> tuple[type[BaseException] | None, str]:
    """Return class and text of how a future failed."""
    error = future.exception(BOUND_S)
    return (None if error is None else type(error)), str(error)


# ---------------------------------------------------------------------------------------------- crashes


def test_dead_worker_tells_how_it_ended() -> None:
    """The exception has pid and exit code, and is what callers of a ProcessPoolExecutor catch."""
    with SnakepitExecutor(1) as executor:
        future = executor.submit(lib.act, "os_exit")

        error = future.exception(BOUND_S)

    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error, WorkerDied)
    assert (future.pid, 4, None) == (error.pid, error.exit_code, error.signal)


def test_crash_leaves_the_neighbour_alone(gate: Gate) -> None:
    """When one worker dies, the call that runs in another goes on, and the pool serves."""
    with SnakepitExecutor(2) as executor:
        held = executor.submit(lib.held_pid, gate.path)
        pid = gate.wait_started()[0].pid

        assert isinstance(executor.submit(lib.act, "segfault").exception(BOUND_S), WorkerDied)

        assert 3 == executor.submit(lib.add, 1, 2).result(BOUND_S)
        gate.open()
        assert pid == held.result(BOUND_S)


# ------------------------------------------------------------------------------------------- exceptions


def test_exception_keeps_class_args_and_remote_traceback(shared: SnakepitExecutor) -> None:
    """The exception is the worker's, its cause the text of the traceback there, causes included."""
    error = shared.submit(lib.fail_with_cause).exception(BOUND_S)

    assert isinstance(error, ValueError)
    assert ("no such key", 7) == error.args
    remote = str(error.__cause__)
    assert "in fail_with_cause" in remote
    assert "KeyError: 'missing'" in remote
    assert "direct cause" in remote


def test_exception_with_a_keyword_constructor(shared: SnakepitExecutor) -> None:
    """An exception that knows how to be rebuilt arrives as itself."""
    error = shared.submit(lib.raise_keyword).exception(BOUND_S)

    assert isinstance(error, lib.Keyword)
    assert 5 == error.code


def test_exception_with_attributes(shared: SnakepitExecutor) -> None:
    """Attributes beside `args` travel."""
    error = shared.submit(lib.raise_attributed).exception(BOUND_S)

    assert isinstance(error, lib.Attributed)
    assert {"more": [1, 2]} == error.detail


def test_exception_that_cannot_be_rebuilt(shared: SnakepitExecutor) -> None:
    """It arrives as its description, and the same worker serves next (python/cpython#103061)."""
    future = shared.submit(lib.raise_one_argument)

    error = future.exception(BOUND_S)

    assert isinstance(error, CommandError)
    assert ("OneArgument", "1 and 2") == (error.type, error.message)
    assert "in raise_one_argument" in str(error.remote_traceback)
    assert future.pid in {info.pid for info in shared.workers()}


def test_exception_that_cannot_be_pickled(shared: SnakepitExecutor) -> None:
    """It arrives as its description, with the reason."""
    error = shared.submit(lib.raise_locked).exception(BOUND_S)

    assert isinstance(error, CommandError)
    assert ("Locked", "locked") == (error.type, error.message)
    assert "could not be sent" in str(error.remote_traceback)


def test_result_that_cannot_be_pickled(shared: SnakepitExecutor) -> None:
    """It fails the call with what pickling raised, and the same worker serves next."""
    future = shared.submit(lib.return_lock)

    error = future.exception(BOUND_S)

    assert isinstance(error, TypeError)
    assert "lock" in str(error)
    assert future.pid in {info.pid for info in shared.workers()}


def test_argument_that_cannot_be_pickled(shared: SnakepitExecutor) -> None:
    """It fails the future, as in the standard pool, and starts nothing."""
    future = shared.submit(lib.identity, threading.Lock())

    assert isinstance(future.exception(BOUND_S), TypeError)
    assert future.pid is None


def test_raised_timeout_is_the_functions_own(shared: SnakepitExecutor) -> None:
    """A TimeoutError of the function is no time-out of the waiting."""
    future = shared.submit(lib.fail, TimeoutError("mine"))

    with pytest.raises(TimeoutError, match="mine"):
        future.result(BOUND_S)
    assert "mine" == str(future.exception())


# ------------------------------------------------------------------------------------------ what travels


def test_lambdas_and_closures(shared: SnakepitExecutor) -> None:
    """Functions without a name that can be imported travel by value, with what they close over."""
    base = {"offset": 40}

    def closure(value: int) -> int:
        return base["offset"] + value

    assert 42 == shared.submit(closure, 2).result(BOUND_S)
    assert 9 == shared.submit(lambda x: x * x, 3).result(BOUND_S)
    assert [1, 4] == list(shared.map(lambda x: x * x, [1, 2]))


def test_generator_made_functions_do_not_mix(shared: SnakepitExecutor) -> None:
    """Closures made in a loop keep their own values."""
    futures = [shared.submit(lambda n=n: n * 10) for n in range(5)]

    assert [0, 10, 20, 30, 40] == [future.result(BOUND_S) for future in futures]


def test_nested_classes_and_their_methods(shared: SnakepitExecutor) -> None:
    """Nested classes, bound, static and class methods can be called."""
    inner = lib.Outer.Inner

    assert 14 == shared.submit(inner(7).double).result(BOUND_S)
    assert 9 == shared.submit(inner.triple, 3).result(BOUND_S)
    assert "Outer.Inner" == shared.submit(inner.named).result(BOUND_S)
    assert 5 == shared.submit(inner, 5).result(BOUND_S).value


def test_class_of_a_function_travels_both_ways(shared: SnakepitExecutor) -> None:
    """An instance of a local class can be argument and result; it is of the same class again."""

    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    result = shared.submit(lambda it: type(it)(it.value + 1), Local(1)).result(BOUND_S)

    assert isinstance(result, Local)
    assert 2 == result.value


def test_redefined_function_is_the_new_one(shared: SnakepitExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose name now leads to another travels by value: what was submitted runs."""
    original = lib.redefine
    assert "first 1" == shared.submit(original, 1).result(BOUND_S)

    def redefine(value: int) -> str:
        return f"second {value}"

    redefine.__module__, redefine.__qualname__ = original.__module__, original.__qualname__
    monkeypatch.setattr(lib, "redefine", redefine)

    assert "first 2" == shared.submit(original, 2).result(BOUND_S)


def test_functions_of_a_notebook(shared: SnakepitExecutor) -> None:
    """Functions made by exec, in a module no worker can import, find their globals, and the latest ones."""
    cell = types.ModuleType("notebook_cell")
    exec("factor = 2\ndef scaled(x):\n    return factor * x\n", cell.__dict__)  # noqa: S102
    first = shared.submit(cell.scaled, 5).result(BOUND_S)

    exec("factor = 3", cell.__dict__)  # noqa: S102
    second = shared.submit(cell.scaled, 5).result(BOUND_S)

    assert (10, 15) == (first, second)


MAIN = """
import sys
from dataclasses import dataclass
from snakepit import SnakepitExecutor

@dataclass
class Point:
    x: int

    class Mark:
        pass

def shift(point, by=1):
    return Point(point.x + by)

def fail():
    raise Own("mine")

class Own(Exception):
    pass

COUNT = 5

def count():
    return COUNT, __name__

print("main runs")
executor = SnakepitExecutor(2)
print(executor.submit(shift, Point(1)).result() == Point(2))
print([point.x for point in executor.map(shift, map(Point, range(3)))])
print(executor.submit(Point.Mark).result().__class__ is Point.Mark)
print(executor.submit(count).result())
COUNT = 6
print(executor.submit(count).result())
def count():
    return "redefined"
print(executor.submit(count).result())
try:
    executor.submit(fail).result()
except Own as error:
    print(repr(error))
"""


def test_functions_and_classes_of_main(tmp_path: Path) -> None:
    """A script needs no guard: its functions and classes travel, its body runs once."""
    expected = "main runs\nTrue\n[1, 2, 3]\nTrue\n(5, '__main__')\n(6, '__main__')\nredefined\nOwn('mine')\n"

    assert (0, expected, "") == scripts.text_of(scripts.run(tmp_path, MAIN))


# ----------------------------------------------------------------------------------------------- output

OUTPUT = """
import sys
from snakepit import SnakepitExecutor
from gates import pass_gate

def talk(path):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    sys.stdout.write("no line end")
    sys.stdout.flush()
    pass_gate(path)

with SnakepitExecutor(1) as executor:
    executor.submit(talk, sys.argv[1]).result()
"""


def test_output_appears_as_it_happens(tmp_path: Path, gate: Gate) -> None:
    """What a worker prints is on the host's stdout while the call still runs."""
    host = scripts.start(tmp_path, OUTPUT, gate.path)
    assert host.stdout is not None
    assert host.stderr is not None
    try:
        printed = host.stdout.readline()
        gate.wait_started()
        gate.open()
        out, err = host.stdout.read(), host.stderr.read()
    finally:
        host.kill()
        host.communicate()

    assert "to stdout\n" == printed
    assert "no line end" == out
    assert "to stderr\n" == err


# ----------------------------------------------------------------------------------------------- size


@pytest.mark.timeout(60)
def test_hundred_megabytes_both_ways(shared: SnakepitExecutor) -> None:
    """Arguments and results above the size of a frame arrive whole."""
    data = bytes(100_000_000) + b"\x07"

    length, last = shared.submit(lib.total, data).result(BOUND_S)
    result = shared.submit(lib.block_of, 100_000_001, 9).result(BOUND_S)

    assert (100_000_001, 7) == (length, last)
    assert (100_000_001, 9) == (len(result), result[-1])
    assert 1 == shared.submit(lib.add, 1).result(BOUND_S)


def test_call_above_the_message_limit() -> None:
    """Beyond `max_message_bytes` a call fails before it is sent, a result in the worker, which serves on."""
    with SnakepitExecutor(1, config=PoolConfig(max_frame_bytes=MIB, max_message_bytes=4 * MIB)) as executor:
        too_long = executor.submit(len, bytes(5 * MIB))
        arrives = executor.submit(lib.total, bytes(3 * MIB))
        too_much = executor.submit(bytes, 5 * MIB)
        fits = executor.submit(bytes, 3 * MIB)

        assert "max_message_bytes" in str(too_long.exception(BOUND_S))
        assert "max_message_bytes" in str(too_much.exception(BOUND_S))
        assert (3 * MIB, 0) == arrives.result(BOUND_S)
        assert bytes(3 * MIB) == fits.result(BOUND_S)
        assert too_much.pid == fits.pid


@pytest.mark.parametrize("size", [65_535, 65_536, 200_000, 2 * MIB, 20 * MIB + 1])
def test_arrays_go_and_come_back(shared: SnakepitExecutor, size: int) -> None:
    """The memory of an array arrives whole, can be changed there and here, and is nobody else's."""
    memory = bytearray(bytes(range(251)) * (size // 251 + 1))[:size]
    sent = lib.Array(memory)

    futures = [shared.submit(lib.increment_first, sent) for _ in range(4)]
    arrays = [future.result(BOUND_S) for future in futures]
    arrays[0].memory[1] = 77

    assert 0 == memory[0]
    assert b"\x01\x4d" + memory[2:] == arrays[0].memory
    assert [b"\x01" + memory[1:]] * 3 == [array.memory for array in arrays[1:]]


@pytest.mark.timeout(60)
def test_arrays_of_numpy(shared: SnakepitExecutor) -> None:
    """Arrays arrive with type, shape, order and protection; those of objects, and views with gaps, as ever."""
    import numpy

    numbers = numpy.arange(3_000_000, dtype=numpy.float64)
    protected = numbers.copy()
    protected.flags.writeable = False
    sent = {
        "large": numbers,
        "small": numbers[:10],
        "fortran": numpy.asfortranarray(numbers.reshape(1000, 3000)),
        "gaps": numbers[::2],
        "protected": protected,
        "objects": numpy.array([lambda: 1, "text"], dtype=object),
        "twice": [numbers, numbers],
    }
    got = {name: shared.submit(lib.identity, value).result(BOUND_S) for name, value in sent.items()}

    first, second = got.pop("twice")
    objects = got.pop("objects")
    assert first is second and numpy.array_equal(numbers, first)
    assert (1, "text") == (objects[0](), objects[1])
    for name, value in got.items():
        assert numpy.array_equal(sent[name], value)
        assert (sent[name].dtype, sent[name].flags.writeable) == (value.dtype, value.flags.writeable)
    assert got["fortran"].flags.f_contiguous


def test_a_worker_that_ends_within_a_buffer() -> None:
    """Half a buffer is no reply: its call fails, with the status, and the next one has a new worker."""
    with SnakepitExecutor(1) as executor:
        for size in (1000, 300_000, 30 * MIB):
            failed = executor.submit(lib.end_within_a_buffer, size)
            after = executor.submit(lib.add, size)

            error = failed.exception(BOUND_S)
            assert isinstance(error, WorkerDied)
            assert "3" in str(error)
            assert size == after.result(BOUND_S)


@pytest.mark.timeout(60)
def test_queued_calls_share_their_argument() -> None:
    """Forty queued calls of one array do not cost forty copies in the host, and all are right."""
    data = bytes(20 * MIB) + b"\x05"
    process = psutil.Process()
    with SnakepitExecutor(1, config=PoolConfig(max_queued_bytes=50 * MIB)) as executor:
        executor.submit(lib.add, 1).result(BOUND_S)
        before = process.memory_info().rss

        futures = [executor.submit(lib.total, data) for _ in range(40)]
        most = process.memory_info().rss
        for future in futures:
            assert (20 * MIB + 1, 5) == future.result(BOUND_S)
            most = max(most, process.memory_info().rss)

    # What may wait (50 MiB and the call that crosses it), one in the pipe, one that is pickled now.
    assert most - before < 200 * MIB


def test_calls_that_are_pickled_at_their_turn_are_not_light(gate: Gate) -> None:
    """How large such a call is nobody knows: it is not sent ahead, and so not pickled together with many others."""
    with SnakepitExecutor(1, config=PoolConfig(max_queued_bytes=1)) as executor:
        held = executor.submit(lib.held, gate.path)
        gate.wait_started()
        futures = [executor.submit(lib.add, number) for number in range(3)]
        light = [is_light(request) for request in executor._ledger.pending()]
        gate.open()

        assert [0, 1, 2] == [future.result(BOUND_S) for future in futures]
        held.result(BOUND_S)

    assert [True, True, False, False] == light, "the held one, the first that waits, and what is above the limit"


# ------------------------------------------------------------------------------------------ initializers


def test_initializer_runs_once_in_each_worker(gate: Gate) -> None:
    """Every worker has been initialized before its first call, with the arguments given."""
    with SnakepitExecutor(2, initializer=lib.remember, initargs=(1, {"a": [2]})) as executor:
        held = executor.submit(lib.held, gate.path)
        gate.wait_started()
        other = executor.submit(lib.remembered).result(BOUND_S)
        gate.open()
        held.result(BOUND_S)

    assert (1, {"a": [2]}) == other


def test_initializer_that_is_a_lambda() -> None:
    """It travels by value."""
    with SnakepitExecutor(1, initializer=lambda n: lib.remember(n + 1), initargs=(4,)) as executor:
        assert (5,) == executor.submit(lib.remembered).result(BOUND_S)


@pytest.mark.parametrize("context", ["default", "spawn"])
def test_locks_and_queues_are_shared(gate: Gate, context: str) -> None:
    """Locks, queues and semaphores of the pool's context are the same in all workers and the host."""
    mp_context = None if context == "default" else multiprocessing.get_context("spawn")
    with SnakepitExecutor(2, mp_context=mp_context) as executor:
        shared = executor.mp_context
    lock, queue, semaphore = shared.Lock(), shared.Queue(), shared.Semaphore(0)

    with SnakepitExecutor(
        2, initializer=lib.remember, initargs=(lock, queue, semaphore), mp_context=shared
    ) as executor:
        futures = [executor.submit(lib.use_shared, gate.path) for _ in range(2)]
        inside = gate.wait_started()
        wait_until(lambda: executor.stats().running == 2, what="both calls run")
        alone = gate.nobody_started()
        locked = not lock.acquire(block=False)
        gate.open()
        pids = {future.result(BOUND_S) for future in futures}
        taken = [semaphore.acquire(timeout=BOUND_S) for _ in range(2)]
        put = {queue.get(timeout=BOUND_S) for _ in range(2)}

    queue.close()
    queue.join_thread()
    assert alone
    assert locked
    assert [True, True] == taken
    assert 2 == len(pids)
    assert pids == put
    assert inside[0].pid in put


def test_raising_initializer_breaks_the_pool(gate: Gate) -> None:
    """Pending and later calls fail at once with the reason, as in the standard pool."""
    with SnakepitExecutor(2, initializer=lib.fail_to_initialize_at, initargs=(gate.path,)) as executor:
        pending = [executor.submit(lib.add, n) for n in range(4)]
        gate.wait_started()
        gate.open()

        for future in pending:
            error = future.exception(BOUND_S)
            assert isinstance(error, BrokenProcessPool)
            assert "no model there" in str(error)
        with pytest.raises(PoolBroken, match="no model there"):
            executor.submit(lib.add, 1)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_forking_contexts_are_refused(method: str) -> None:
    """They cannot work here, and the message says why."""
    with pytest.raises(ValueError, match="separate programs"):
        SnakepitExecutor(1, mp_context=multiprocessing.get_context(method))


def test_initializer_that_cannot_be_called() -> None:
    """As in the standard pool."""
    with pytest.raises(TypeError, match="initializer"):
        SnakepitExecutor(1, initializer=5)  # type: ignore[arg-type]


def test_initializer_that_cannot_be_sent() -> None:
    """It is refused in the constructor and not at the first call."""
    with pytest.raises(TypeError, match="initializer and initargs"):
        SnakepitExecutor(1, initializer=lib.remember, initargs=(iter([1]).__reduce__, threading.Lock()))


def test_adapter_with_an_initializer() -> None:
    """The adapter takes what the executor takes."""
    with SnakepitExecutor(CallableAdapter(lib.remember, (8,)), 1) as executor:
        assert (8,) == executor.submit(lib.remembered).result(BOUND_S)


# ------------------------------------------------------------------------------------------ replacement


@pytest.mark.parametrize("tasks", [1, 3])
def test_tasks_per_child_are_exact(tasks: int) -> None:
    """Each worker answers so many calls, no more, no less."""
    with SnakepitExecutor(1, max_tasks_per_child=tasks) as executor:
        pids = [executor.submit(lib.pid_of_worker).result(BOUND_S) for _ in range(2 * tasks)]

    assert [pids[0]] * tasks == pids[:tasks]
    assert [pids[-1]] * tasks == pids[tasks:]
    assert 2 == len(set(pids))


def test_tasks_per_child_of_a_full_queue() -> None:
    """Many more calls than one generation of workers may take are all done, none by a tired worker."""
    with SnakepitExecutor(2, max_tasks_per_child=4) as executor:
        pids = list(executor.map(lib.pid_of_worker, range(20)))

    assert 20 == len(pids)
    assert max(pids.count(pid) for pid in set(pids)) == 4
    assert 5 <= len(set(pids))


@pytest.mark.parametrize("tasks", [0, -1])
def test_tasks_per_child_are_positive(tasks: int) -> None:
    """As in the standard pool."""
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        SnakepitExecutor(1, max_tasks_per_child=tasks)


def test_first_call_of_a_thread_that_ends(gate: Gate) -> None:
    """A pool that is first used in a thread keeps its worker when that thread ends."""
    with SnakepitExecutor(1) as executor:
        pids: list[int] = []
        thread = threading.Thread(
            target=lambda: pids.append(executor.submit(lib.pid_of_worker).result(BOUND_S))
        )
        thread.start()
        thread.join(BOUND_S)

        assert pids == [executor.submit(lib.pid_of_worker).result(BOUND_S)]
        assert 0 == executor.stats().restarts


def test_the_initializers_exception_is_named() -> None:
    """The broken pool says which exception the initializer raised."""
    with SnakepitExecutor(1, initializer=int, initargs=("no number",)) as executor:
        error = executor.submit(pow, 1, 1).exception(BOUND_S)

    assert isinstance(error, PoolBroken)
    assert "ValueError: invalid literal" in str(error)


TRACKERS = """import multiprocessing.resource_tracker, os, stat, sys
import loky.backend.resource_tracker
from snakepit import SnakepitExecutor

MODULES = ("multiprocessing.resource_tracker", "loky.backend.resource_tracker")

def look():
    before = [name in sys.modules for name in MODULES]
    import multiprocessing.resource_tracker
    import loky.backend.resource_tracker
    trackers = [sys.modules[name]._resource_tracker for name in MODULES]
    return before, [stat.S_ISFIFO(os.fstat(tracker._fd).st_mode) for tracker in trackers]

for name in MODULES:
    sys.modules[name]._resource_tracker.ensure_running()
with SnakepitExecutor(1) as pool:
    print(*pool.submit(look).result())
"""


def test_what_was_imported_before_the_preparation_is_prepared_too(tmp_path: Path) -> None:
    """A worker whose interpreter imports multiprocessing as it starts has the host's key, and its own name."""
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing.process, multiprocessing.resource_tracker\n")
    with SnakepitExecutor(CallableAdapter(env={"PYTHONPATH": str(tmp_path)}), 1) as executor:
        name, key = executor.submit(lib.process_name_and_key).result(BOUND_S)

    assert name.startswith("SnakepitWorker-")
    assert bytes(multiprocessing.current_process().authkey) == key


def test_a_tracker_is_joined_when_it_is_needed(tmp_path: Path) -> None:
    """A worker of a host that runs the trackers imports neither, and has the host's once it does."""
    assert (0, "[False, False] [True, True]\n", "") == scripts.text_of(scripts.run(tmp_path, TRACKERS))

"""The contract of ``concurrent.futures``: what works with the standard pools works here, unchanged."""

from __future__ import annotations

import concurrent.futures
import gc
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from typing import Any

import psutil
import pytest
from integration import callables_lib as lib

from snakepit import SnakepitExecutor
from snakepit.config import PoolConfig

from gates import Gate
from leaks import wait_until

BOUND_S = 20.0


@pytest.fixture(scope="module")
def shared() -> Iterator[SnakepitExecutor]:
    """A pool of two workers that the tests of pure behaviour share."""
    with SnakepitExecutor(2, name="shared") as executor:
        executor.wait_ready(BOUND_S, 2)
        yield executor


# ----------------------------------------------------------------------------------------------- submit


def test_int_is_the_number_of_workers() -> None:
    """A first positional int and the keyword mean the same, and `_max_workers` tells it."""
    with SnakepitExecutor(3) as positional, SnakepitExecutor(max_workers=2) as keyword:
        assert 3 == positional._max_workers
        assert 2 == keyword._max_workers


def test_two_positional_sizes_are_refused() -> None:
    """A size given twice is an error that names both."""
    with pytest.raises(TypeError, match="3 and 4"):
        SnakepitExecutor(3, 4)


@pytest.mark.parametrize("size", [0, -1])
def test_size_is_positive(size: int) -> None:
    """A pool of no workers is refused, as by the standard pools."""
    with pytest.raises(ValueError, match="max_workers"):
        SnakepitExecutor(max_workers=size)


def test_default_size() -> None:
    """Without a size the pool has at least one worker, and says how many."""
    with SnakepitExecutor() as executor:
        assert 1 <= executor._max_workers


def test_thread_name_prefix_names_the_threads() -> None:
    """The parameter of ThreadPoolExecutor is accepted and used."""
    with SnakepitExecutor(1, thread_name_prefix="prefix"):
        names = [thread.name for thread in threading.enumerate()]

    assert "snakepit-prefix-manager" in names


def test_submit_returns_a_future(shared: SnakepitExecutor) -> None:
    """The future is a standard one; a call with positional and keyword arguments works."""
    future = shared.submit(pow, 2, exp=5)

    assert isinstance(future, Future)
    assert 32 == future.result(BOUND_S)
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.exception() is None


def test_keywords_of_submit_belong_to_the_function(shared: SnakepitExecutor) -> None:
    """Keywords that mean something for commands reach a callable untouched."""
    keywords = {"session": "s", "timeout": 0, "queue_timeout": -1, "priority": "high", "args": 1, "kwargs": 2}

    future = shared.submit(lib.echo, 1, **keywords)

    assert ((1,), keywords) == future.result(BOUND_S)


def test_self_and_fn_are_ordinary_keywords(shared: SnakepitExecutor) -> None:
    """`self`, `fn` and `command` can be keywords of the function."""
    future = shared.submit(lib.echo, self=1, fn=2, command=3)

    assert ((), {"self": 1, "fn": 2, "command": 3}) == future.result(BOUND_S)


@pytest.mark.parametrize("call", [lambda ex: ex.submit(), lambda ex: ex.submit(fn=pow)])
def test_submit_without_a_function(shared: SnakepitExecutor, call: Callable[[SnakepitExecutor], Any]) -> None:
    """The function is required, and positional."""
    with pytest.raises(TypeError):
        call(shared)


def test_submit_of_what_cannot_be_called(shared: SnakepitExecutor) -> None:
    """What is neither a callable nor a name is refused in the caller."""
    with pytest.raises(TypeError, match="callable"):
        shared.submit(5)  # type: ignore[arg-type]


def test_future_has_the_pid_of_its_worker(shared: SnakepitExecutor) -> None:
    """`future.pid` is the process that ran the call."""
    future = shared.submit(lib.pid_of_worker)

    assert future.result(BOUND_S) == future.pid


def test_methods_take_at_least_the_standard_parameters() -> None:
    """Whoever calls the methods of ProcessPoolExecutor by keyword can call these."""
    for name in ("submit", "map", "shutdown"):
        standard = inspect.signature(getattr(ProcessPoolExecutor, name)).parameters
        ours = inspect.signature(getattr(SnakepitExecutor, name)).parameters
        by_keyword = {p.name for p in standard.values() if p.kind is p.KEYWORD_ONLY}

        assert by_keyword <= set(ours), name


# ------------------------------------------------------------------------------------------------- wait


def test_first_completed(shared: SnakepitExecutor, gate: Gate) -> None:
    """`wait` returns with the first that is done; the held one stays."""
    held = shared.submit(lib.held, gate.path)
    gate.wait_started()
    quick = shared.submit(lib.add, 1, 2)

    done, rest = wait([held, quick], timeout=BOUND_S, return_when=FIRST_COMPLETED)

    assert ({quick}, {held}) == (done, rest)
    gate.open()
    held.result(BOUND_S)


def test_first_exception(shared: SnakepitExecutor, gate: Gate) -> None:
    """`wait` returns with the first failure, not with the first result."""
    held = shared.submit(lib.held, gate.path)
    gate.wait_started()
    good = shared.submit(lib.add, 1)
    bad = shared.submit(lib.fail, ValueError("x"))

    done, rest = wait([held, good, bad], timeout=BOUND_S, return_when=FIRST_EXCEPTION)

    assert ({good, bad}, {held}) == (done, rest)
    gate.open()
    held.result(BOUND_S)


def test_first_exception_counts_cancelled_futures_as_done(shared: SnakepitExecutor) -> None:
    """Futures that were cancelled before `wait` are among the done ones."""
    cancelled: Future[int] = Future()
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()
    good = shared.submit(lib.add, 1)

    done, rest = wait([cancelled, good], timeout=BOUND_S, return_when=FIRST_EXCEPTION)

    assert ({cancelled, good}, set()) == (done, rest)


def test_all_completed(shared: SnakepitExecutor) -> None:
    """`wait` returns when all are done, whatever their end."""
    futures = {shared.submit(lib.fail_even, n) for n in range(8)}

    done, rest = wait(futures, timeout=BOUND_S, return_when=ALL_COMPLETED)

    assert (futures, set()) == (done, rest)
    assert 4 == sum(future.exception() is not None for future in futures)


def test_wait_times_out(shared: SnakepitExecutor, gate: Gate) -> None:
    """`wait` with a time-out returns what is done."""
    held = shared.submit(lib.held, gate.path)
    gate.wait_started()

    done, rest = wait([held], timeout=0.01)

    assert (set(), {held}) == (done, rest)
    gate.open()
    held.result(BOUND_S)


@pytest.mark.parametrize("return_when", [FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED])
def test_wait_sees_queued_futures_cancelled(
    shared: SnakepitExecutor, make_gate: Callable[[], Gate], return_when: str
) -> None:
    """A waiting thread is woken when what it waits for is cancelled while queued."""
    gates = [make_gate(), make_gate()]
    held = [shared.submit(lib.held, gate.path) for gate in gates]
    for gate in gates:
        gate.wait_started()
    queued = shared.submit(lib.add, 1)
    seen: list[set[Any]] = []
    waiter = threading.Thread(
        target=lambda: seen.append(wait([queued], timeout=BOUND_S, return_when=return_when).done)
    )
    waiter.start()

    assert queued.cancel()
    waiter.join(BOUND_S)

    assert [{queued}] == seen
    for gate in gates:
        gate.open()
    wait(held, BOUND_S)


def test_waiting_from_many_threads(shared: SnakepitExecutor) -> None:
    """Several threads wait for the same futures while they are settled."""
    futures = [shared.submit(lib.add, n) for n in range(50)]
    seen: list[int] = []
    threads = [
        threading.Thread(target=lambda: seen.append(len(wait(futures, BOUND_S).done))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)

    assert [50] * 8 == seen


# ---------------------------------------------------------------------------------------- as_completed


def test_as_completed(shared: SnakepitExecutor, gate: Gate) -> None:
    """Futures are yielded as they end, the held one last."""
    held = shared.submit(lib.held, gate.path, "held")
    gate.wait_started()
    quick = [shared.submit(lib.add, n) for n in range(3)]

    order = []
    for future in as_completed([held, *quick], timeout=BOUND_S):
        order.append(future)
        if len(order) == len(quick):
            gate.open()

    assert held is order[-1]
    assert set(quick) == set(order[:-1])


def test_as_completed_with_no_time(shared: SnakepitExecutor, gate: Gate) -> None:
    """A zero time-out yields what is done already, then raises."""
    done = shared.submit(lib.add, 1)
    done.result(BOUND_S)
    held = shared.submit(lib.held, gate.path)
    gate.wait_started()
    yielded = set()

    with pytest.raises(TimeoutError):
        for future in as_completed([done, held], timeout=0):
            yielded.add(future)

    assert {done} == yielded
    gate.open()
    held.result(BOUND_S)


def test_as_completed_yields_duplicates_once(shared: SnakepitExecutor) -> None:
    """A future that is given twice is yielded once."""
    future = shared.submit(lib.add, 1)

    assert [future] == list(as_completed(itertools.repeat(future, 3), timeout=BOUND_S))


def test_as_completed_lets_go_of_what_it_yielded(shared: SnakepitExecutor) -> None:
    """A yielded future is freed when the loop's variable is."""
    futures = [shared.submit(lib.add, n) for n in range(5)]
    references = [weakref.ref(future) for future in futures]
    wait(futures, BOUND_S)

    iterator = as_completed(futures, timeout=BOUND_S)
    futures = []
    for future in iterator:
        gone = weakref.ref(future)
        del future
        wait_until(lambda gone=gone: gone() is None, what="the yielded future is freed")  # type: ignore[misc]

    assert all(reference() is None for reference in references)


def test_as_completed_after_a_cancelling_shutdown(gate: Gate) -> None:
    """What a shutdown cancels is yielded: nothing hangs (python/cpython#87893)."""
    executor = SnakepitExecutor(1)
    held = executor.submit(lib.held, gate.path, 7)
    gate.wait_started()
    queued = [executor.submit(lib.add, n) for n in range(5)]

    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    ended = list(as_completed([held, *queued], timeout=BOUND_S))

    assert 6 == len(ended)
    assert 7 == held.result()
    assert all(future.cancelled() for future in queued)
    executor.shutdown()


def test_future_state_of_a_cancelled_one(shared: SnakepitExecutor, make_gate: Callable[[], Gate]) -> None:
    """A queued future can be cancelled; then it is done, cancelled, raises CancelledError and never runs."""
    gates = [make_gate(), make_gate()]
    held = [shared.submit(lib.held, gate.path) for gate in gates]
    for gate in gates:
        gate.wait_started()
    third = make_gate()
    queued = shared.submit(lib.held, third.path)
    called: list[Any] = []
    queued.add_done_callback(called.append)

    first, second = queued.cancel(), queued.cancel()

    assert (True, True) == (first, second)
    assert queued.cancelled()
    assert queued.done()
    with pytest.raises(CancelledError):
        queued.result()
    with pytest.raises(CancelledError):
        queued.exception()
    assert [queued] == called
    assert not held[0].cancel()
    assert held[0].running()
    for gate in gates:
        gate.open()
    wait(held, BOUND_S)
    shared.submit(lib.add, 1).result(BOUND_S)
    assert third.nobody_started()


def test_done_callbacks(shared: SnakepitExecutor) -> None:
    """Callbacks run in the order added, once, a raising one hurts nobody, a late one runs at once."""
    order: list[str] = []
    ran = threading.Event()
    future = shared.submit(lib.add, 1)
    future.add_done_callback(lambda _: order.append("first"))
    future.add_done_callback(lambda _: 1 // 0)
    future.add_done_callback(lambda _: order.append("second"))
    future.add_done_callback(lambda _: ran.set())

    assert ran.wait(BOUND_S)
    future.add_done_callback(lambda _: order.append("late"))

    assert ["first", "second", "late"] == order


def test_submit_from_a_done_callback(shared: SnakepitExecutor) -> None:
    """A callback may submit; the results of both arrive."""
    inner: Future[Any] = Future()

    def submit_more(future: Future[Any]) -> None:
        shared.submit(lib.add, future.result(), 10).add_done_callback(lambda f: inner.set_result(f.result()))

    shared.submit(lib.add, 1, 1).add_done_callback(submit_more)

    assert 12 == inner.result(BOUND_S)


def test_waiting_in_a_done_callback_is_refused(shared: SnakepitExecutor, gate: Gate) -> None:
    """What would wait for ever on the pool's own thread raises instead."""
    raised: Future[BaseException] = Future()

    def wait_for_the_pool(_: Future[Any]) -> None:
        try:
            shared.submit(lib.add, 1).result()
        except RuntimeError as error:
            raised.set_result(error)

    shared.submit(lib.held, gate.path).add_done_callback(wait_for_the_pool)
    gate.open()

    assert "would deadlock" in str(raised.result(BOUND_S))


# -------------------------------------------------------------------------------------------------- map


@pytest.mark.parametrize("chunksize", [1, 3, 5, 100])
def test_map_keeps_the_order(shared: SnakepitExecutor, chunksize: int) -> None:
    """Results come in the order of the input, whatever travels together."""
    expected = list(map(pow, range(10), range(10)))

    assert expected == list(shared.map(pow, range(10), range(10), chunksize=chunksize))


def test_map_ends_with_the_shortest_input(shared: SnakepitExecutor) -> None:
    """As the built-in."""
    assert [0, 1] == list(shared.map(pow, [0, 1], itertools.repeat(1)))


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_raises_at_the_failing_item(shared: SnakepitExecutor, chunksize: int) -> None:
    """What came before a failing item is yielded, then its exception is raised."""
    results = shared.map(lib.fail_even, [1, 3, 4, 5], chunksize=chunksize)

    assert [1, 3] == [next(results), next(results)]
    with pytest.raises(ValueError, match="4"):
        next(results)


def test_map_times_out(shared: SnakepitExecutor, gate: Gate) -> None:
    """The time-out of `map` counts from the call; what is done before is yielded."""
    results = shared.map(lib.held, [gate.path], timeout=0.05)
    gate.wait_started()

    with pytest.raises(TimeoutError):
        next(results)

    gate.open()


@pytest.mark.parametrize("chunksize", [0, -1])
def test_map_refuses_chunks_of_nothing(shared: SnakepitExecutor, chunksize: int) -> None:
    """As the standard pool."""
    with pytest.raises(ValueError, match="chunksize"):
        list(shared.map(lib.add, range(4), chunksize=chunksize))


def test_map_submits_at_once(gate: Gate) -> None:
    """The work begins with the call, not with the first `next`."""
    with SnakepitExecutor(1) as executor:
        results = executor.map(lib.held, [gate.path], ["value"])
        arrived = gate.wait_started()
        gate.open()

        assert "value" == arrived[0].label
        assert ["value"] == list(results)


def test_closing_a_map_cancels_the_rest(gate: Gate) -> None:
    """A map that is closed half-way leaves nothing queued."""
    with SnakepitExecutor(1) as executor:
        results = executor.map(lib.held, itertools.repeat(gate.path, 5), range(5))
        gate.wait_started()
        gate.release()
        assert 0 == next(results)
        gate.wait_started()

        results.close()  # type: ignore[attr-defined]
        queued = executor.stats().queued
        gate.open()

    assert 0 == queued
    assert 3 == executor.stats().cancelled


def test_map_drops_a_result_once_it_was_yielded(shared: SnakepitExecutor) -> None:
    """A suspended map holds no reference to what it has yielded."""
    results = shared.map(lib.Outer.Inner, range(3))

    first = weakref.ref(next(results))

    wait_until(lambda: first() is None, what="the yielded result is freed")
    assert [2, 4] == [value.double() for value in results]


def test_map_with_a_buffer_reads_no_more_than_that(shared: SnakepitExecutor) -> None:
    """With `buffersize` an endless input works, and is read that far ahead."""
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    results = shared.map(lib.add, numbers(), buffersize=4)

    assert 4 == read
    assert [1, 2, 3] == [next(results) for _ in range(3)]
    assert 7 == read


def test_map_of_nothing(shared: SnakepitExecutor) -> None:
    """An empty input has no results."""
    assert [] == list(shared.map(lib.add, []))


def test_map_after_shutdown() -> None:
    """`map` on a closed pool raises in the call."""
    executor = SnakepitExecutor(1)
    executor.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(lib.add, [1])


def test_unordered_map(shared: SnakepitExecutor) -> None:
    """All results come, in any order."""
    assert set(range(20)) == set(shared.map_unordered(lib.add, range(20), chunksize=3))


# --------------------------------------------------------------------------------------------- shutdown


def test_submit_after_shutdown() -> None:
    """A closed pool refuses with the message of the standard library."""
    executor = SnakepitExecutor(1)
    executor.shutdown()

    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 5)


def test_leaving_the_block_finishes_the_work(gate: Gate) -> None:
    """The `with` statement ends when all accepted work is done."""
    with SnakepitExecutor(2) as executor:
        futures = [executor.submit(lib.add, n) for n in range(20)]

    assert list(range(20)) == [future.result(0) for future in futures]


def test_shutdown_without_waiting_finishes_the_work(gate: Gate) -> None:
    """`shutdown(wait=False)` returns while work runs; the results arrive."""
    executor = SnakepitExecutor(1)
    held = executor.submit(lib.held, gate.path, 1)
    gate.wait_started()
    queued = executor.submit(lib.add, 1, 1)

    executor.shutdown(wait=False)

    assert not held.done()
    gate.open()
    assert [1, 2] == [held.result(BOUND_S), queued.result(BOUND_S)]


def test_shutdown_that_cancels(gate: Gate) -> None:
    """`cancel_futures` cancels what is queued and lets finish what runs."""
    executor = SnakepitExecutor(2)
    held = [executor.submit(lib.held, gate.path, n) for n in range(2)]
    gate.wait_started(2)
    queued = [executor.submit(lib.add, n) for n in range(20)]

    executor.shutdown(wait=False, cancel_futures=True)
    cancelled = [future.cancelled() for future in queued]
    gate.open()
    executor.shutdown()

    assert [True] * 20 == cancelled
    assert [0, 1] == [future.result(0) for future in held]


def test_shutdown_right_after_submit() -> None:
    """Work whose worker has not even started is finished (issue 12364 of CPython)."""
    executor = SnakepitExecutor(2)
    futures = [executor.submit(lib.add, n) for n in range(10)]

    executor.shutdown(wait=False)
    del executor

    assert list(range(10)) == [future.result(BOUND_S) for future in futures]


def test_cancelling_shutdown_with_a_call_that_cannot_be_pickled(gate: Gate) -> None:
    """The combination that leaves CPython 3.11 waiting for ever returns."""
    executor = SnakepitExecutor(1)
    held = executor.submit(lib.held, gate.path)
    gate.wait_started()
    broken = executor.submit(lib.identity, threading.Lock())
    queued = executor.submit(lib.add, 1)

    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    executor.shutdown()

    assert isinstance(broken.exception(0), TypeError)
    assert held.result(0) is None
    assert queued.cancelled()


def test_shutdown_of_an_unused_pool() -> None:
    """A pool that never had work ends at once, and again, and has started no worker."""
    executor = SnakepitExecutor(2)

    assert () == executor.workers()
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)
    with executor:
        pass


def test_shutdown_from_many_threads(gate: Gate) -> None:
    """All callers of `shutdown` return once the pool has ended."""
    executor = SnakepitExecutor(1)
    held = executor.submit(lib.held, gate.path, 5)
    gate.wait_started()
    threads = [threading.Thread(target=executor.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()

    gate.open()
    for thread in threads:
        thread.join(BOUND_S)

    assert not any(thread.is_alive() for thread in threads)
    assert 5 == held.result(0)


def test_shutdown_from_a_done_callback(gate: Gate) -> None:
    """On the pool's own thread `shutdown` does not wait, and the pool ends."""
    executor = SnakepitExecutor(1)
    future = executor.submit(lib.held, gate.path, 1)
    returned = threading.Event()

    def close(_: Future[Any]) -> None:
        executor.shutdown()
        returned.set()

    future.add_done_callback(close)
    gate.open()

    assert returned.wait(BOUND_S)
    executor.shutdown()
    assert 1 == future.result(0)


def test_shutdown_ends_the_workers() -> None:
    """After `shutdown` returned, no worker process exists."""
    executor = SnakepitExecutor(2)
    pids = {future.result(BOUND_S) for future in [executor.submit(lib.pid_of_worker) for _ in range(4)]}

    executor.shutdown()

    assert [] == [pid for pid in pids if psutil.pid_exists(pid)]


def test_exception_in_the_block(gate: Gate) -> None:
    """An ordinary exception in the `with` block passes, after the work is done."""
    with pytest.raises(ZeroDivisionError), SnakepitExecutor(1) as executor:
        future = executor.submit(lib.add, 3)
        raise ZeroDivisionError

    assert 3 == future.result(0)


def test_keyboard_interrupt_in_the_block_ends_what_runs(gate: Gate) -> None:
    """Ctrl-C cancels what is queued and ends what runs after the grace."""
    with (
        pytest.raises(KeyboardInterrupt),
        SnakepitExecutor(1, config=PoolConfig(shutdown_grace_s=0.1)) as executor,
    ):
        held = executor.submit(lib.held, gate.path)
        gate.wait_started()
        queued = executor.submit(lib.add, 1)
        raise KeyboardInterrupt

    assert isinstance(held.exception(0), concurrent.futures.BrokenExecutor)
    assert queued.cancelled()


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_ending_the_workers(gate: Gate, end: str) -> None:
    """`terminate_workers` and `kill_workers` end what runs, and every future."""
    executor = SnakepitExecutor(1)
    held = executor.submit(lib.held, gate.path)
    gate.wait_started()
    queued = executor.submit(lib.add, 1)

    getattr(executor, end)()

    assert isinstance(held.exception(BOUND_S), concurrent.futures.BrokenExecutor)
    done, _ = wait([queued], BOUND_S)
    assert {queued} == done
    with pytest.raises(RuntimeError):
        executor.submit(lib.add, 1)
    executor.shutdown()


# ---------------------------------------------------------------------------------------------- growing


def test_workers_start_on_demand(make_gate: Callable[[], Gate]) -> None:
    """One call starts one worker, a second at the same time another, and idle ones are used again."""
    first, second = make_gate(), make_gate()
    with SnakepitExecutor(4) as executor:
        counts = [len(executor.workers())]
        futures = [executor.submit(lib.held_pid, first.path)]
        first.wait_started()
        counts.append(len(executor.workers()))
        futures.append(executor.submit(lib.held_pid, second.path))
        second.wait_started()
        counts.append(len(executor.workers()))
        first.open()
        second.open()
        pids = {future.result(BOUND_S) for future in futures}
        again = {executor.submit(lib.pid_of_worker).result(BOUND_S) for _ in range(5)}
        counts.append(len(executor.workers()))

    assert [0, 1, 2, 2] == counts
    assert 2 == len(pids)
    assert again <= pids


def test_pool_grows_to_its_size_and_no_further(gate: Gate) -> None:
    """Many calls at once use as many workers as the pool may have."""
    with SnakepitExecutor(2) as executor:
        futures = [executor.submit(lib.held, gate.path, n) for n in range(6)]
        pids = {arrival.pid for arrival in gate.wait_started(2)}
        running = executor.stats().running
        gate.open()
        assert list(range(6)) == [future.result(BOUND_S) for future in futures]
        total = executor.stats().workers

    assert 2 == len(pids) == running == total


# ------------------------------------------------------------------------------------------- references


def test_arguments_and_results_are_freed(shared: SnakepitExecutor) -> None:
    """Once a call is done the pool holds neither its arguments nor its result, even if the future is held."""
    argument = lib.Outer.Inner(1)
    held_argument = weakref.ref(argument)
    future = shared.submit(lib.identity, argument)
    del argument
    result = future.result(BOUND_S)
    held_result = weakref.ref(result)
    del result

    assert held_result() is not None
    wait_until(lambda: held_argument() is None, what="the argument is freed")
    del future
    wait_until(lambda: held_result() is None, what="the result is freed")


def test_failed_call_leaves_no_cycle(shared: SnakepitExecutor) -> None:
    """A future with an exception is freed by counting references alone."""
    gc.disable()
    try:
        future = shared.submit(lib.fail, ValueError("x"))
        wait([future], BOUND_S)
        gone = weakref.ref(future)
        with pytest.raises(ValueError, match="x"):
            future.result()
        del future

        wait_until(lambda: gone() is None, what="the future is freed")
    finally:
        gc.enable()


def test_executor_without_references_is_freed(gate: Gate) -> None:
    """Neither pending work nor the pool's threads keep the executor."""
    executor = SnakepitExecutor(1)
    future = executor.submit(lib.held, gate.path, 9)
    gate.wait_started()
    gone = weakref.ref(executor)

    del executor
    gc.collect()

    assert gone() is None
    gate.open()
    assert 9 == future.result(BOUND_S)

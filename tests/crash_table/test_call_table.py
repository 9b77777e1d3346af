"""A call of a callable that breaks at any place on its way fails alone, with the truth, and the pool goes on."""

from __future__ import annotations

import signal
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from crash_table.calls import CALLS, DEEDS, PLACES, Call
from integration import callables_lib as lib
from integration import scripts
from integration.workers.pools import LIMIT_S

from snakepit import PoolStats, SnakepitExecutor

from leaks import is_gone, wait_until


def test_every_call_is_in_the_table_once() -> None:
    """No combination of a place and a deed is silently left out."""
    assert Counter((place, deed) for place in PLACES for deed in DEEDS) == Counter((c.place, c.deed) for c in CALLS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("origin", ["directly", "from_a_callback"])
@pytest.mark.parametrize("call", [pytest.param(call, id=call.id) for call in CALLS if not call.host_ends])
def test_call(call: Call, origin: str) -> None:
    """The call fails with its own reason, wherever it was submitted; the next is served by the process expected."""
    submitted: Future[Future[Any]] = Future()

    def submit(_: object) -> None:
        try:
            submitted.set_result(ex.submit(call.fn, call.argument))
        except BaseException as raised:
            submitted.set_exception(raised)

    with SnakepitExecutor(1) as ex:
        first = ex.submit(lib.pid_of_worker)
        if origin == "directly":
            submit(None)
        else:
            first.add_done_callback(submit)

        refusal = submitted.exception(LIMIT_S)
        error = submitted.result().exception(LIMIT_S) if refusal is None else refusal
        next_pid = ex.submit(lib.pid_of_worker).result(LIMIT_S)
        stats = ex.stats()

    failed = call.error is not None and not call.refused
    requests = 2 if call.refused else 3
    assert call.refused == (refusal is not None)
    assert call.error is (None if error is None else type(error))
    assert call.text in str(error)
    assert call.pid == ("same" if first.result(0) == next_pid else "new")
    assert stats == PoolStats(
        workers=1,
        available=1,
        requests=requests,
        completed=requests - failed,
        errors=failed,
        restarts=call.pid == "new",
    )
    assert is_gone(next_pid)


HOST = """
import sys
from concurrent.futures import Future
from crash_table.calls import CALLS
from integration import callables_lib as lib
from snakepit import SnakepitExecutor

call = next(call for call in CALLS if call.id == sys.argv[1])
ex = SnakepitExecutor(2)
ex.wait_ready(None, 2)
print(*(worker.pid for worker in ex.workers()), flush=True)
submitted = Future()
if sys.argv[2] == "directly":
    submitted.set_result(ex.submit(call.fn, call.argument))
else:
    first = ex.submit(lib.pid_of_worker)
    first.add_done_callback(lambda _: submitted.set_result(ex.submit(call.fn, call.argument)))
submitted.result().result()
print("still here")
"""


@pytest.mark.parametrize("origin", ["directly", "from_a_callback"])
@pytest.mark.parametrize("call", [pytest.param(call, id=call.id) for call in CALLS if call.host_ends])
def test_what_ends_the_host_leaves_no_worker(call: Call, origin: str, tmp_path: Path) -> None:
    """What happens in the host's own interpreter ends the host; its workers do not outlive it."""
    done = scripts.run(tmp_path, HOST, call.id, origin)

    ended = {"libc_exit": 6, "os_exit": 4, "segfault": -signal.SIGSEGV}[call.deed]
    pids = [int(word) for word in done.stdout.split()]
    assert (ended, 2) == (done.returncode, len(pids))
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid), LIMIT_S, f"worker {pid} is gone")

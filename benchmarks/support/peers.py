"""The contenders, each behind ``submit(fn, *args)`` and ``shutdown()``.

Peers start their workers by ``spawn``: the host has threads, with which a fork is not safe, and forked workers would
hold the other contenders' pipes open.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class PebblePool:
    """pebble's process pool behind ``submit``."""

    def __init__(self, workers: int, method: str = "spawn") -> None:
        from pebble import ProcessPool

        self._pool = ProcessPool(max_workers=workers, context=get_context(method))

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Schedule a call; returns pebble's future."""
        return self._pool.schedule(fn, args=args)

    def shutdown(self) -> None:
        """Finish and end."""
        self._pool.close()
        self._pool.join()


class _MpireFuture:
    __slots__ = ("_result",)

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self, timeout: float | None = None) -> Any:
        return self._result.get(timeout)


class MpirePool:
    """mpire's pool behind ``submit`` and ``map``."""

    def __init__(self, workers: int) -> None:
        from mpire import WorkerPool

        self._pool = WorkerPool(n_jobs=workers, start_method="spawn", keep_alive=True)

    def submit(self, fn: Callable[..., Any], *args: Any) -> _MpireFuture:
        """Schedule a call; returns what has ``result()``."""
        return _MpireFuture(self._pool.apply_async(fn, args))

    def map(self, fn: Callable[..., Any], items: Any, chunksize: int) -> list[Any]:
        """Return the results, in order."""
        results: list[Any] = self._pool.map(fn, items, chunk_size=chunksize)
        return results

    def shutdown(self) -> None:
        """Finish and end."""
        self._pool.stop_and_join()


class RawPipe:
    """One process that echoes frames: the floor under every design with a pipe.

    Args:
        as_json: Both ends encode and decode JSON; else the request is encoded once and echoed as it is.
    """

    def __init__(self, as_json: bool = False) -> None:
        command = [sys.executable, "-S", "-E", str(HERE / "echo_child.py"), *(["json"] if as_json else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._as_json = as_json
        self._frame = b""

    def carry(self, payload: bytes) -> None:
        """Set what ``echo`` sends."""
        self._frame = len(payload).to_bytes(4, "big") + payload

    def echo(self) -> bytes | bytearray:
        """Send the frame and return the answer with its length."""
        self._write(self._frame)
        return self._read()

    def add(self, a: int, b: int) -> int:
        """Have two numbers added, as JSON."""
        body = json.dumps({"id": 1, "command": "add", "args": {"a": a, "b": b}}).encode()
        self._write(len(body).to_bytes(4, "big") + body)
        result: int = json.loads(self._read()[4:])["result"]
        return result

    def send_many(self, a: int, b: int, count: int) -> None:
        """Send so many requests to add two numbers in one write; they and their answers must fit the pipe."""
        frames = []
        for number in range(count):
            body = json.dumps({"id": number, "command": "add", "args": {"a": a, "b": b}}).encode()
            frames.append(len(body).to_bytes(4, "big") + body)
        self._write(b"".join(frames))

    def receive_many(self, count: int) -> list[int]:
        """Return the answers to ``send_many``."""
        results: list[int] = []
        buffer = b""
        while len(results) < count:
            buffer += os.read(self._out, 1 << 16)
            start = 0
            while len(buffer) - start >= 4:
                end = start + 4 + int.from_bytes(buffer[start : start + 4], "big")
                if end > len(buffer):
                    break
                results.append(json.loads(buffer[start + 4 : end])["result"])
                start = end
            buffer = buffer[start:]
        return results

    def _write(self, frame: bytes) -> None:
        with memoryview(frame) as view:
            done = 0
            while done < len(frame):
                done += os.write(self._in, view[done:])

    def _read(self) -> bytes | bytearray:
        first = os.read(self._out, 1 << 16)
        while len(first) < 4:
            first += os.read(self._out, 1 << 16)
        size = 4 + int.from_bytes(first[:4], "big")
        if len(first) == size:
            return first
        whole = bytearray(size)
        done = len(first)
        whole[:done] = first
        with memoryview(whole) as view:
            while done < size:
                count = os.readv(self._out, [view[done:]])
                assert count, "the echo has ended"
                done += count
        return whole

    def shutdown(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def snakepit_callables(workers: int, **options: Any) -> Any:
    """Return snakepit with callables, as a drop-in user has it."""
    from snakepit import SnakepitExecutor

    return SnakepitExecutor(max_workers=workers, **options)


def snakepit_commands(workers: int, **options: Any) -> Any:
    """Return snakepit with commands of a handlers file."""
    from snakepit import PythonAdapter, SnakepitExecutor

    return SnakepitExecutor(PythonAdapter(HERE / "bench_handlers.py"), max_workers=workers, **options)


def loky_pool(workers: int) -> Executor:
    """Return loky's executor (not the reusable one)."""
    from loky import ProcessPoolExecutor as LokyExecutor

    executor: Executor = LokyExecutor(max_workers=workers)
    return executor


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return the standard library's process pool."""
    return ProcessPoolExecutor(workers, get_context("spawn"))


def thread_pool(workers: int) -> ThreadPoolExecutor:
    """Return the standard library's thread pool."""
    return ThreadPoolExecutor(workers)


def warm_up(submit: Callable[[], Any], workers: int) -> None:
    """Have every worker started and asked: some rounds of more calls at once than there are workers."""
    for _ in range(5):
        for future in [submit() for _ in range(10 * workers)]:
            future.result()

"""``snakepit run``: calls of one command in a worker, its results as JSON.

Runs on the main thread; owns the one pool while it lives.
"""

from __future__ import annotations

import base64
import logging
import statistics
import sys
import time
from collections import deque
from typing import Any

import click

from .._pool.calls import check_session_id
from .._pool.future import SnakepitFuture
from .._wire.values import JsonValue
from ..config import PoolConfig
from ..errors import CommandTimeout, EncodeError, PoolBroken, SnakepitError, WorkerDied, WorkerStartError
from ..executor import SnakepitExecutor
from .adapter_words import make_adapter, parse_json
from .terminal import complain, write_json

__all__ = ("run_command",)

FAILED = 1
NOT_STARTED = 3
TIMED_OUT = 124
"""As ``timeout`` of the coreutils."""


def run_command(
    adapter_text: str,
    command: str,
    args_text: str,
    *,
    session: str | None,
    handlers: str | None,
    start_args: str,
    repeat: int | None,
    timeout_s: float | None,
    workers: int,
    level: str | None,
    verbose: bool,
) -> int:
    """Run a command once or ``repeat`` times; results go to stdout, everything else to stderr.

    Args:
        adapter_text: An alias or a command line.
        command: Its name.
        args_text: JSON, or "-" to read it from stdin.
        session: Session id, or None.
        handlers: Handlers file, or None.
        start_args: JSON for its start function.
        repeat: Number of calls, >= 1; None: one, without times.
        timeout_s: Seconds a call may run, > 0; None: no limit.
        workers: Pool size and calls at a time, >= 1.
        level: "0" or "1" for a command line, else None.
        verbose: Show the worker's output and tracebacks.

    Returns:
        The exit status: 0, 1 the command failed, 3 no worker could start, 124 time-out.

    Raises:
        click.UsageError: Bad input; raised here.
    """
    if not command:
        raise click.UsageError("COMMAND must not be empty")
    args = parse_args(args_text)
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        if session is not None:
            check_session_id(session)
        adapter = make_adapter(adapter_text, handlers, level, parse_json(start_args))
        # One failed start is enough: nobody waits here for a worker to recover, nor long after Ctrl-C.
        config = PoolConfig(restart_budget=1, shutdown_grace_s=0.5)
        executor = SnakepitExecutor(adapter, workers, name="run", timeout=timeout_s, config=config)
    except (WorkerStartError, OSError) as error:
        return _complain(error, NOT_STARTED, verbose)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    with executor:
        try:
            executor.wait_ready(None)
            return _call(executor, command, args, session, repeat, workers)
        except CommandTimeout as error:
            return _complain(error, TIMED_OUT, verbose)
        except (WorkerStartError, PoolBroken) as error:
            return _complain(error, NOT_STARTED, verbose)
        except EncodeError as error:
            raise click.UsageError(f"JSON: {error}") from None
        except SnakepitError as error:
            return _complain(error, FAILED, verbose)


def parse_args(text: str) -> JsonValue:
    """Return the JSON value of an argument, or of what stdin has for "-".

    Raises:
        click.UsageError: Not JSON; the message says where; or stdin cannot be read; raised here.
    """
    if text != "-":
        return parse_json(text)
    if sys.stdin is None:
        raise click.UsageError('JSON: "-" means stdin, and stdin is closed')
    try:
        text = sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"JSON: stdin cannot be read: {error}") from None
    return parse_json(text)


def _call(
    executor: SnakepitExecutor,
    command: str,
    args: JsonValue,
    session: str | None,
    repeat: int | None,
    workers: int,
) -> int:
    """Keep ``workers`` calls under way; print each result in the order of the calls."""
    options: dict[str, Any] = {} if session is None else {"session": session}
    taken_s: list[float] = []
    pending: deque[SnakepitFuture] = deque()

    def submit() -> None:
        began_at = time.perf_counter()
        future = executor.submit(command, args, **options)
        future.add_done_callback(lambda _: taken_s.append(time.perf_counter() - began_at))
        pending.append(future)

    indent = 2 if repeat is None and sys.stdout.isatty() else None
    count = repeat or 1
    printed = 0
    began_at = time.perf_counter()
    try:
        for number in range(count + workers):
            if number < count:
                submit()
            if len(pending) > (workers - 1 if number < count else 0):
                write_json(sys.stdout, pending.popleft().result(), indent, _bytes_as_base64)
                printed += 1
    finally:
        elapsed_s = time.perf_counter() - began_at
        for future in pending:
            future.cancel()
        if repeat is not None:
            _print_times(printed, taken_s, elapsed_s)
    return 0


def _bytes_as_base64(value: Any) -> Any:
    """Show the one thing that a result may hold and JSON may not."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} in a result")


def _print_times(count: int, taken_s: list[float], elapsed_s: float) -> None:
    if not count:
        return
    ordered = sorted(taken_s)
    p99_s = ordered[max(0, -(-99 * len(ordered) // 100) - 1)]
    print(
        f"{count} calls: median {1000 * statistics.median(ordered):.3f} ms, p99 {1000 * p99_s:.3f} ms,"
        f" {count / elapsed_s:,.0f} per second",
        file=sys.stderr,
    )


def _complain(error: BaseException, status: int, verbose: bool) -> int:
    """Print an error to stderr and return the exit status."""
    tail = error.stderr_tail if isinstance(error, (WorkerDied, WorkerStartError)) else ""
    cause: BaseException | None = error if verbose else None
    while cause is not None and not getattr(cause, "remote_traceback", None):
        cause = cause.__cause__
    complain(error, tail if tail not in str(error) else None, getattr(cause, "remote_traceback", None))
    return status

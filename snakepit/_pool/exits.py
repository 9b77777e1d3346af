"""What is said of the end of a worker, or of a start that the system refused.

Runs on the manager's thread, owns no state.
"""

from __future__ import annotations

from .._core import model as m
from .._core.model import Worker
from .._core.restarts import RestartPolicy
from .._supervision import reports as r
from .._text import show_argv
from ..errors import WorkerStartError
from .quiet import QuietLogger

__all__ = ("refused_start", "warn_of_exit", "warn_of_garbage")

_log = QuietLogger("snakepit.pool")


def refused_start(argv: tuple[str, ...], reason: BaseException) -> WorkerStartError:
    """Return what a start failed with for which the system made no process."""
    error = WorkerStartError(f"{show_argv(argv)}: {reason}", argv=argv)
    error.__cause__ = reason
    return error


def warn_of_exit(worker: Worker | None, event: r.Exited | r.SpawnFailed, policy: RestartPolicy) -> None:
    """Say why a worker did not start, or how it ended unasked; nothing of an expected end.

    Args:
        worker: As the scheduler knew it before it was told; None when it knew nothing of it.
        event: What the watchdog reported.
        policy: After the scheduler was told.
    """
    if isinstance(event, r.Exited) and event.survivors:
        _log.error("worker %s: processes %s outlived SIGKILL", event.worker_id, event.survivors)
    if worker is None:
        return
    if policy.failures and policy.last_error is worker.start_error:
        # At once, since callers are told only when the last of the attempts has failed.
        _log.warning("%s (failed start %d of %d in a row)", worker.start_error, policy.failures, policy.budget)
    elif isinstance(event, r.Exited) and worker.reason not in m.EXPECTED_EXITS and not event.expected:
        how = m.describe_exit(event.code, event.signal)
        _log.warning("worker %s (pid %d) ended unasked with %s", event.worker_id, event.pid, how)


def warn_of_garbage(worker: Worker, error: BaseException) -> None:
    """Say that a worker broke the protocol while nobody waited for it: no caller's exception tells.

    Args:
        worker: As it is before the scheduler is told.
        error: With the bytes seen.
    """
    silent = worker.state in (m.WorkerState.IDLE, m.WorkerState.CHECKING, m.WorkerState.BUSY)
    if silent and not any(request.kind is m.RequestKind.USER for request in worker.sent):
        _log.warning("%s; it is replaced", error)

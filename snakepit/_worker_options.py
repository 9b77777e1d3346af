"""How the process of a worker is started, whatever it runs: environment, directory, limits, wrapper.

Runs on the caller's thread; owns nothing.  Exported by ``snakepit.adapters``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict

import attrs

from ._limits import check_nice, check_rlimits, check_umask
from ._programs import check_inheritance, check_threads, check_variables

__all__ = ("Limit", "WorkerOptions", "WorkerSpec", "check_options")

Limit = int | tuple[int | None, int | None] | None
"""Of one resource: soft and hard alike, or ``(soft, hard)``; None: unlimited."""


@attrs.frozen
class WorkerSpec:
    """The worker for which an adapter gives an environment or a command line.

    Attributes:
        worker_id: Name of this incarnation.
        slot: Place in the pool, 0 to ``max_workers - 1``; e.g. the number of a GPU.
        incarnation: 1 for the slot's first process, rising.
        pool: The pool's name.
    """

    worker_id: str
    slot: int
    incarnation: int
    pool: str


class WorkerOptions(TypedDict, total=False):
    """How the process of a worker is started: keywords of every adapter, or attributes of its class or instance.

    Attributes:
        env: Environment variables to add; ``environment()`` wins over them, they win over the rest.
        inherit_env: True (default): start from the host's environment.  False: from none of it.  A collection of
            names or patterns, e.g. ``["PATH", "HOME", "LC_*"]``: from these variables alone, ``PATH`` included
            only if it is named.
        threads: Threads of each BLAS and OpenMP pool in a worker, >= 1, as the variables ``OMP_NUM_THREADS``,
            ``OPENBLAS_NUM_THREADS``, ``MKL_NUM_THREADS``, ``BLIS_NUM_THREADS``, ``NUMEXPR_NUM_THREADS``,
            ``VECLIB_MAXIMUM_THREADS`` and ``NUMBA_NUM_THREADS``.  A number wins over the host's variables and
            yields to ``env``.  ``"auto"`` (default): 1, except for what the environment settles; None: sets none.
        cwd: Working directory; None (default): the host's.
        umask: File mode mask, 0 to 0o777; None (default): the host's.
        nice: How much nicer than the host a worker is to other processes, 0 (default) to 19.
        rlimits: Resource limits by the names of ``prlimit``, e.g. ``{"AS": 2 << 30, "NOFILE": (64, 128)}``: one
            number for both, or ``(soft, hard)``; None for no limit.  Linux, with ``prlimit`` of util-linux.
        wrap: Called as ``wrap(argv, worker)`` for each process; see ``Adapter.wrap``.
    """

    env: Mapping[str, str] | None
    inherit_env: bool | Collection[str]
    threads: int | str | None
    cwd: str | os.PathLike[str] | None
    umask: int | None
    nice: int
    rlimits: Mapping[str, Limit] | None
    wrap: Callable[[tuple[str, ...], WorkerSpec], Sequence[str]] | None


def check_options(kind: str, options: Any) -> None:
    """Refuse what no process can be started with.

    Args:
        kind: The adapter's class, for messages.
        options: Has the keys of `WorkerOptions` as attributes.

    Raises:
        TypeError, ValueError: A bad value, named in the message; raised here.
    """
    if options.env is not None:
        check_variables(f"{kind}: env", options.env)
    check_inheritance(f"{kind}: inherit_env", options.inherit_env)
    check_threads(f"{kind}: threads", options.threads)
    check_umask(f"{kind}: umask", options.umask)
    check_nice(f"{kind}: nice", options.nice)
    check_rlimits(f"{kind}: rlimits", options.rlimits)
    if options.cwd is not None and not isinstance(options.cwd, (str, os.PathLike)):
        raise TypeError(f"{kind}: cwd must be a path, not {options.cwd!r} ({type(options.cwd).__name__})")
    if options.cwd is not None and not os.path.isdir(options.cwd):
        raise ValueError(f"{kind}: cwd {os.fspath(options.cwd)!r} is not a directory")
    if not callable(options.wrap):
        raise TypeError(f"{kind}: wrap must be callable with (argv, worker), not {options.wrap!r}")

"""Limits of a process that hold from its first instruction: resource limits, niceness, file mode mask.

They are put on by small programs that become the next one (``nice``, ``prlimit``), as ``setpriv`` does for the
parent-death signal: no code of ours runs between fork and exec, where threads make it unsafe, no shell sees a
word, and the process keeps its pid, its group and its descriptors.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from .errors import WorkerStartError

__all__ = ("RLIMITS", "check_nice", "check_rlimits", "check_umask", "exec_chain", "told")

Pair = tuple[int | None, int | None]
"""Soft and hard limit; None: unlimited."""

RLIMITS = tuple(
    name
    for name in (
        "AS",
        "CORE",
        "CPU",
        "DATA",
        "FSIZE",
        "MEMLOCK",
        "MSGQUEUE",
        "NICE",
        "NOFILE",
        "NPROC",
        "RTPRIO",
        "RTTIME",
        "SIGPENDING",
        "STACK",
    )
    if hasattr(resource, f"RLIMIT_{name}")
)
"""Not RSS and LOCKS: Linux takes them and does nothing."""

_WITHOUT_EFFECT = {"RSS": "AS, or PoolConfig(max_worker_rss_bytes=...)", "LOCKS": "NOFILE"}
_SIGNAL_FIRST = {"CPU": 1, "RTTIME": 1_000_000}
"""Where soft and hard limit are equal, the kernel sends SIGKILL and never SIGXCPU: the hard one is a second later."""
_TOO_LARGE = 1 << 63
_CAP_SYS_RESOURCE = 24
NICEST = 19


def check_rlimits(what: str, rlimits: object) -> dict[str, Pair]:
    """Return ``{name: (soft, hard)}``, or refuse what the system would refuse or ignore.

    Args:
        what: What messages call it.
        rlimits: A mapping of names to a number, None, or a pair of them; or None.

    Raises:
        TypeError: No mapping, or a value of another type; raised here.
        ValueError: An unknown name, a negative value, a soft limit above the hard one, or a hard one that this
            process may not set; raised here.
    """
    if rlimits is None:
        return {}
    if not isinstance(rlimits, Mapping):
        raise TypeError(f"{what} must map names of limits to numbers, e.g. {{'AS': 2 << 30}}, not {rlimits!r}")
    return {name: _check_rlimit(what, name, value) for name, value in rlimits.items()}


def _check_rlimit(what: str, name: object, value: object) -> Pair:
    if not isinstance(name, str) or name not in RLIMITS:
        instead = _WITHOUT_EFFECT.get(name) if isinstance(name, str) else None
        if instead is not None:
            raise ValueError(f"{what}: the system ignores the limit {name!r}; use {instead}")
        raise ValueError(f"{what}: there is no limit {name!r}; there are {', '.join(RLIMITS)}")
    if isinstance(value, tuple) and len(value) != 2:
        raise ValueError(f"{what}: {name} must be a number or (soft, hard), not {value!r}")
    pair = value if isinstance(value, tuple) else (value, value)
    for number in pair:
        if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
            raise TypeError(
                f"{what}: {name} must be an int, None for no limit, or a pair (soft, hard) of them, not {value!r}"
            )
        if number is not None and not 0 <= number < _TOO_LARGE:
            raise ValueError(f"{what}: {name} must be from 0 to {_TOO_LARGE - 1}, or None for no limit, not {value!r}")
    soft, hard = pair
    if hard is not None and (soft is None or soft > hard):
        raise ValueError(
            f"{what}: the soft limit of {name}, {_shown(soft)}, must not be above the hard one, {_shown(hard)}"
        )
    own = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
    most = None if own == resource.RLIM_INFINITY else own
    if most is not None and (hard is None or hard > most) and not _may_raise_limits():
        raise ValueError(
            f"{what}: {name}={_shown(hard)} is above the hard limit of this process, {most}, which only a process"
            f" with the capability CAP_SYS_RESOURCE may raise; give {most} or less, or start this process with more"
        )
    if not isinstance(value, tuple) and hard is not None and name in _SIGNAL_FIRST:
        later = hard + _SIGNAL_FIRST[name]
        hard = later if most is None else max(hard, min(later, most))
    return soft, hard


def _may_raise_limits() -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return os.geteuid() == 0
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return os.geteuid() == 0


def check_nice(what: str, nice: object) -> int:
    """Return how much nicer a process is than the host, or raise TypeError or ValueError."""
    if not isinstance(nice, int) or isinstance(nice, bool):
        raise TypeError(f"{what} must be an int from 0 to {NICEST}, not {nice!r}")
    if not 0 <= nice <= NICEST:
        raise ValueError(
            f"{what} must be from 0 (the host's own priority) to {NICEST} (runs when nobody else wants to), not {nice}"
        )
    return nice


def check_umask(what: str, umask: object) -> int | None:
    """Return the file mode mask, None for the host's, or raise TypeError or ValueError."""
    if umask is None:
        return None
    if not isinstance(umask, int) or isinstance(umask, bool):
        raise TypeError(f"{what} must be an int such as 0o077, or None for the host's, not {umask!r}")
    if not 0 <= umask <= 0o777:
        raise ValueError(f"{what} must be from 0 to 0o777, not {umask:#o} ({umask}; was the 0o left out?)")
    return umask


def exec_chain(kind: str, rlimits: object, nice: object) -> tuple[str, ...]:
    """Return the words to put before a command line, so that its process has these limits.

    Args:
        kind: The adapter's class, for messages.
        rlimits: As `check_rlimits` takes them.
        nice: As `check_nice` takes it.

    Raises:
        TypeError, ValueError: A bad value; raised here.
        WorkerStartError: The system has no program to put a limit on; raised here.
    """
    limits = check_rlimits(f"{kind}: rlimits", rlimits)
    words: list[str] = []
    # The resource limits come last, so that they leave the helpers alone as long as possible.
    if check_nice(f"{kind}: nice", nice):
        words += [_find_tool("nice", f"{kind}: nice={nice}", "coreutils"), "-n", str(nice)]
    if limits:
        words.append(_find_tool("prlimit", f"{kind}: rlimits", "util-linux (Linux only)"))
        words += [f"--{name.lower()}={_shown(soft)}:{_shown(hard)}" for name, (soft, hard) in limits.items()]
    return tuple(words)


def told(kind: str, rlimits: object) -> str:
    """Return the limits for the message of a worker that did not start, e.g. ``"AS=1000000, NOFILE=64"``; or ""."""
    limits = check_rlimits(f"{kind}: rlimits", rlimits)
    return ", ".join(f"{name}={_shown(soft)}" for name, (soft, _) in limits.items())


def _shown(limit: int | None) -> str:
    return "unlimited" if limit is None else str(limit)


def _find_tool(name: str, what: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise WorkerStartError(f"{what} needs the program {name!r}, which is not in PATH: install {package}")
    return os.path.abspath(found)

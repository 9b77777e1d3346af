"""The checks of what an executor is made with; every message names the parameter.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ..adapters import Adapter, CallableAdapter
from ..config import PoolConfig

__all__ = (
    "check_adapter",
    "check_affinity",
    "check_config",
    "check_int",
    "check_least",
    "check_name",
    "check_queue",
    "check_size",
)

_AFFINITIES = ("strict", "hint", "fail_fast")


def check_int(name: str, value: object, least: int) -> None:
    """Raise for anything but an int >= ``least``.

    Raises:
        TypeError, ValueError: Not an int (bool included), or too small; raised here.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int >= {least}, not {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"{name} must be an int >= {least}, not {value!r}")


def check_adapter(
    adapter: object, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], mp_context: Any
) -> Adapter:
    """Return the adapter, a ``CallableAdapter`` of the other parameters for None.

    Raises:
        TypeError: Not an adapter; raised here.
        ValueError: Parameters of a ``CallableAdapter`` beside another adapter; raised here.
    """
    given = initializer is not None or bool(initargs) or mp_context is not None
    if adapter is None:
        return CallableAdapter(initializer, initargs, mp_context)
    if not isinstance(adapter, Adapter):
        hint = f"; did you mean {adapter.__name__}(...)?" if isinstance(adapter, type) else ""
        raise TypeError(
            f"adapter must be an Adapter (PythonAdapter, JavaScriptAdapter, CommandAdapter, CallableAdapter)"
            f" or None, not {adapter!r}{hint}"
        )
    if given:
        raise ValueError(
            f"initializer, initargs and mp_context are for the callable adapter; give them to it,"
            f" not to the executor of a {type(adapter).__name__}"
        )
    return adapter


def check_config(config: PoolConfig | None, max_tasks_per_child: int | None) -> PoolConfig:
    """Return the configuration, the default one for None, with ``max_tasks_per_child`` put in."""
    if config is None:
        config = PoolConfig()
    elif not isinstance(config, PoolConfig):
        raise TypeError(f"config must be a PoolConfig, not {config!r}")
    if max_tasks_per_child is not None:
        check_int("max_tasks_per_child", max_tasks_per_child, 1)
        config = attrs.evolve(config, max_requests_per_worker=max_tasks_per_child)
    return config


def check_size(max_workers: int | None, adapter: Adapter) -> int:
    """Return the pool's size; None stands for the CPUs, twice as many workers for command adapters."""
    if max_workers is None:
        import loky

        cpus = int(loky.cpu_count())
        return cpus if adapter.runs_callables else 2 * cpus
    check_int("max_workers", max_workers, 1)
    return max_workers


def check_least(config: PoolConfig, adapter: Adapter, size: int) -> int:
    """Return how many workers are kept; not configured: all, or none of those that run callables."""
    least = config.min_workers
    if least is None:
        least = 0 if adapter.runs_callables else size
    if least > size:
        raise ValueError(f"min_workers ({least}) must not be above max_workers ({size})")
    return least


def check_queue(max_queue_size: object, queue_full: object) -> None:
    """Raise for a bad length of the queue, or a bad way to treat those who find it full."""
    if max_queue_size is not None:
        check_int("max_queue_size", max_queue_size, 0)
    if queue_full not in ("raise", "block"):
        raise ValueError(f"queue_full must be 'raise' or 'block', not {queue_full!r}")


def check_affinity(affinity: str) -> str:
    """Return the affinity, or raise ValueError."""
    if affinity not in _AFFINITIES:
        raise ValueError(f"affinity must be one of {', '.join(_AFFINITIES)}, not {affinity!r}")
    return affinity


def check_name(name: str | None, thread_name_prefix: str) -> str:
    """Return the pool's name, or raise TypeError."""
    name = name if name is not None else thread_name_prefix or "pool"
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    return name

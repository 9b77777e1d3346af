"""A pool of external worker processes behind a ``concurrent.futures.Executor``."""

# ruff: noqa: F405  # what is in __all__ comes from the star import, or from __getattr__

from __future__ import annotations

TYPE_CHECKING = False  # as typing says; that module alone would take longer than all of this one

if TYPE_CHECKING:
    from . import adapters, config, errors, executor, sessions, telemetry  # noqa: F401  # as _MODULES says
    from ._exports import *  # noqa: F403  # as __all__ says

__version__ = "0.1.0"

__all__ = (
    "Adapter",
    "CallableAdapter",
    "CommandAdapter",
    "CommandError",
    "CommandTimeout",
    "EncodeError",
    "InternalError",
    "InvalidArguments",
    "JavaAdapter",
    "JavaScriptAdapter",
    "LineAdapter",
    "LuaAdapter",
    "OneShotAdapter",
    "PHPAdapter",
    "PerlAdapter",
    "PoolBroken",
    "PoolConfig",
    "PoolStats",
    "ProtocolError",
    "PythonAdapter",
    "QueueFull",
    "QueueTimeout",
    "RAdapter",
    "ResultError",
    "RubyAdapter",
    "ScriptAdapter",
    "SessionBusy",
    "SessionError",
    "SessionExists",
    "SessionLost",
    "SessionNotFound",
    "SessionQuotaExceeded",
    "SessionStore",
    "SnakepitError",
    "SnakepitExecutor",
    "SnakepitFuture",
    "UnknownCommand",
    "WorkerDied",
    "WorkerInfo",
    "WorkerSpec",
    "WorkerStartError",
)

_MODULES = ("adapters", "config", "errors", "executor", "sessions", "telemetry")
"""Modules that are there after ``import snakepit`` without an import of their own."""

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        # A program that only may need a pool starts at once.
        if name in _MODULES:
            from importlib import import_module

            return import_module(f"{__name__}.{name}")
        if name in __all__:
            from . import _exports

            globals().update({exported: getattr(_exports, exported) for exported in __all__})
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})

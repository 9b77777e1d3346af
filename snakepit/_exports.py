"""What ``snakepit`` exports, in one place: importing this loads all of it.

Runs on any thread and owns no state.
"""

from __future__ import annotations

from ._core.numbers import PoolStats, WorkerInfo
from ._pool.future import SnakepitFuture
from .adapters import (
    Adapter,
    CallableAdapter,
    CommandAdapter,
    JavaAdapter,
    JavaScriptAdapter,
    LineAdapter,
    LuaAdapter,
    OneShotAdapter,
    PerlAdapter,
    PHPAdapter,
    PythonAdapter,
    RAdapter,
    RubyAdapter,
    ScriptAdapter,
    WorkerSpec,
)
from .config import PoolConfig
from .errors import (
    CommandError,
    CommandTimeout,
    EncodeError,
    InternalError,
    InvalidArguments,
    PoolBroken,
    ProtocolError,
    QueueFull,
    QueueTimeout,
    ResultError,
    SessionBusy,
    SessionError,
    SessionExists,
    SessionLost,
    SessionNotFound,
    SessionQuotaExceeded,
    SnakepitError,
    UnknownCommand,
    WorkerDied,
    WorkerStartError,
)
from .executor import SnakepitExecutor
from .sessions import SessionStore

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

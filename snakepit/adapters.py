"""What the workers are: how to start one, which commands it has, how to check and shape a call.

Only exports; the folder ``_adapters`` has a module for each kind of worker.
"""

from ._adapters.base import Adapter
from ._adapters.callables import CallableAdapter
from ._adapters.command import CommandAdapter
from ._adapters.java import JavaAdapter
from ._adapters.languages import (
    JavaScriptAdapter,
    LuaAdapter,
    PerlAdapter,
    PHPAdapter,
    PythonAdapter,
    RAdapter,
    RubyAdapter,
)
from ._adapters.programs import LineAdapter, OneShotAdapter
from ._adapters.runtimes import Runtime
from ._adapters.scripts import ScriptAdapter
from ._worker_options import WorkerOptions, WorkerSpec

__all__ = (
    "Adapter",
    "CallableAdapter",
    "CommandAdapter",
    "JavaAdapter",
    "JavaScriptAdapter",
    "LineAdapter",
    "LuaAdapter",
    "OneShotAdapter",
    "PHPAdapter",
    "PerlAdapter",
    "PythonAdapter",
    "RAdapter",
    "RubyAdapter",
    "Runtime",
    "ScriptAdapter",
    "WorkerOptions",
    "WorkerSpec",
)

"""Callables as bytes: calls and replies of callable workers, and what such a worker needs to start.

The encoders run on the caller's thread, ``decode_reply`` on the manager's, ``load_reply`` on either,
``Preparation.build`` on the watchdog's.  Owns a cache of verdicts on functions; must not import the
scheduler, the manager or the executor.

A request is ``request_header(...) + body``, a reply the same: two pickles, the first of which is small
and of known shape, so a body that cannot be loaded still has an owner.  Buffers of the body may follow.

    request header  (id: int, session: str | None, deadline_ms: int | None, claim: bool, kind: str)
    request body    "call": (fn, args, kwargs)        "chunk": (fn, [args, ...])
    reply header    (id: int, kind: str)
    reply body      "result": value    "error": (exception, traceback_text)
                    "opaque": {"type", "message", "traceback"}    "too_large": {"size", "limit"}
                    "recalled": nothing
"""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import threading
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import CommandError, InternalError, ProtocolError, RemoteTraceback, ResultError
from .frames import Buffer
from .pickled import PROTOCOL, Pickled, dump, is_large, is_plain

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

__all__ = (
    "Preparation",
    "RemoteTraceback",
    "decode_reply",
    "encode_call",
    "encode_chunk",
    "load_reply",
    "request_header",
)

_dumps = pickle.dumps
_loads = pickle.loads

_BY_NAME = (FunctionType, BuiltinFunctionType, type)

# INVARIANT: {id(fn): weak reference to fn} of functions a worker can import by name; an entry whose
# reference is dead or another object's is no verdict (ids are reused).  Any thread; each use is one
# dict operation.
_by_reference: dict[int, weakref.ref[Any]] = {}


def encode_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | Pickled:
    """Pickle one call: the body of a ``"call"`` message.

    Raises:
        Exception: Whatever pickling raises (TypeError, PicklingError, a ``__reduce__``'s own error);
            raised here, the executor sets it on the future.
    """
    if is_plain(args) and (not kwargs or is_plain(kwargs.values())) and _is_by_reference(fn):
        try:
            if is_large(args) or (kwargs and is_large(kwargs.values())):
                return dump(pickle.Pickler, (fn, args, kwargs))
            return _dumps((fn, args, kwargs), PROTOCOL)
        except pickle.PicklingError:  # the name now leads elsewhere: cloudpickle knows what to do
            _by_reference.pop(id(fn), None)
    return _dump_by_value((fn, args, kwargs))


def encode_chunk(fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> bytes | Pickled:
    """Pickle several calls of one function: the body of a ``"chunk"`` message.

    Args:
        fn: The function.
        calls: The positional arguments of each call, in order.

    Raises:
        Exception: As ``encode_call``.
    """
    if _is_by_reference(fn) and all(map(is_plain, calls)):
        try:
            if any(map(is_large, calls)):
                return dump(pickle.Pickler, (fn, calls))
            return _dumps((fn, calls), PROTOCOL)
        except pickle.PicklingError:
            _by_reference.pop(id(fn), None)
    return _dump_by_value((fn, calls))


def request_header(
    request_id: int, session: str | None, deadline_ms: int | None, claim: bool, kind: str
) -> bytes:
    """Return the header pickle of a request.

    Args:
        request_id: >= 0, unique within the worker's incarnation.
        session: The session's id, or None.
        deadline_ms: Budget left, > 0, or None.
        claim: The worker must take a byte from the claim pipe before it runs this request.
        kind: ``"call"`` or ``"chunk"``.
    """
    return _dumps((request_id, session, deadline_ms, claim, kind), PROTOCOL)


def decode_reply(pickles: Buffer) -> tuple[int, str, memoryview]:
    """Split the pickles of a reply into ``(id, kind, body)``; the body is not loaded.

    Raises:
        ProtocolError: The header is not that of a reply; raised here.
    """
    view = memoryview(pickles)
    try:
        # One pickle frame: PROTO 5, FRAME, length in 8 bytes (little-endian), that many bytes.
        end = 11 + int.from_bytes(view[3:11], "little")
        request_id, kind = _loads(view[:end])
        if type(request_id) is not int or type(kind) is not str:
            raise TypeError("the header is not (int, str)")
    except Exception as error:
        raise ProtocolError(f"bad reply header ({error}); first bytes: {bytes(view[:80])!r}") from error
    return request_id, kind, view[end:]


def load_reply(kind: str, body: memoryview, buffers: Iterable[Buffer] = ()) -> tuple[Any, BaseException | None]:
    """Load the body of a reply.

    Never raises for what the body holds: hostile or unknown content fails this request alone.

    Args:
        kind: From ``decode_reply``.
        body: From ``decode_reply``.
        buffers: Its out-of-band buffers: from now on memory of what is loaded.

    Returns:
        ``(value, None)`` or ``(None, exception)``; the exception of an ``"error"`` has the worker's
        traceback as its ``__cause__``, that of an ``"opaque"`` is a CommandError.
    """
    try:
        loaded: Any = _loads(body, buffers=buffers) if kind != "recalled" else None
        if kind == "result":
            return loaded, None
        if kind == "error":
            error, text = loaded
            if not isinstance(error, BaseException):
                raise TypeError(f"the worker's exception was rebuilt as {type(error).__name__}")
            error.__cause__ = RemoteTraceback(text)
            return None, error
        if kind == "opaque":
            return None, CommandError(
                loaded["message"], type=loaded["type"], remote_traceback=loaded["traceback"]
            )
        if kind == "too_large":
            size, limit = loaded["size"], loaded["limit"]
            return None, ResultError(
                f"the pickled reply has {size} bytes; the limit is {limit} (max_message_bytes)"
            )
    except BaseException as error:
        return None, error
    return None, InternalError(f"a reply of kind {kind!r} has no value")


def _is_by_reference(fn: Any) -> bool:
    """Say whether a worker finds ``fn`` by importing its module; a positive verdict is remembered, weakly."""
    known = _by_reference.get(id(fn))
    if known is None or known() is not fn:
        if not isinstance(fn, _BY_NAME):
            return False
        module = getattr(fn, "__module__", None)
        if not isinstance(module, str) or module in ("__main__", "__mp_main__"):
            return False
        found: Any = sys.modules.get(module)
        try:
            for name in fn.__qualname__.split("."):
                found = getattr(found, name)
        except AttributeError:
            return False
        if found is not fn:
            return False
        key = id(fn)
        _by_reference[key] = weakref.ref(fn, lambda ref: _forget(key, ref))
    # RACE: 1. another thread imports cloudpickle for the first time, 2. this one finds the module, half made.  Nobody
    # can have registered anything with it yet (tests/unit/test_races_wire.py::test_cloudpickle_is_being_imported).
    registered = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    # Modules that the user registered for pickling by value are few and rare: then all calls go that way.
    return registered is None or not registered()


def _forget(key: int, ref: weakref.ref[Any]) -> None:
    # RACE: 1. fn dies, 2. a new function gets its id and its own entry, 3. this callback runs late:
    # only the entry that holds this very reference may go
    # (tests/unit/test_races_wire.py::test_a_late_callback_spares_the_new_entry).
    if _by_reference.get(key) is ref:
        _by_reference.pop(key, None)


def _dump_by_value(value: object) -> bytes | Pickled:
    return dump(import_module("cloudpickle").CloudPickler, value)


class Preparation:
    """What a callable worker is sent before its first call, and the descriptors it inherits.

    Args:
        initializer: Called in each worker before it is ready, or None.
        initargs: Its arguments; locks, queues and pipes of ``context`` are welcome.
        mp_context: loky's context or a ``spawn`` context of multiprocessing; None means loky's.

    Raises:
        TypeError: Not a callable, not a context, or an initializer or argument that cannot be
            pickled; raised here.
        ValueError: A context whose primitives a separately started process cannot inherit; raised here.
    """

    def __init__(
        self,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        mp_context: BaseContext | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable or None, not {initializer!r}")
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._context = None if mp_context is None else _check_context(mp_context)
        # LOCK: guards _open; a leaf, never held while calling out.
        self._lock = threading.Lock()
        # INVARIANT: duplicates made by build() and not yet released, each open exactly as long as it is here.
        self._open: set[int] = set()
        if initializer is not None:
            try:
                with self.inherit():
                    pass
            except Exception as error:
                raise TypeError(
                    f"initializer and initargs cannot be sent to a worker: {type(error).__name__}: {error}"
                ) from error

    @property
    def context(self) -> BaseContext:
        """The context whose locks and queues may be among ``initargs``."""
        if self._context is None:
            context: BaseContext = import_module("loky.backend").get_context("loky")
            self._context = context
        return self._context

    def build(self, cwd: str | None = None) -> tuple[bytes, tuple[int, ...]]:
        """Make the preparation frame of one worker, whose working directory is ``cwd``; None: the host's.

        Returns:
            ``(payload, fds)``: the payload begins with 0x80; the descriptors must reach the worker under
            the same numbers (``pass_fds``) and stay open here until it was spawned: then ``release(fds)``.

        Raises:
            Exception: What pickling the initializer raises; raised here.
        """
        spawning = _Spawning()
        try:
            initializer = None
            if self._initializer is not None:
                initializer = _dumps_inherited((self._initializer, self._initargs), spawning)
            preparation = _preparation_data(spawning) | ({} if cwd is None else {"dir": os.path.abspath(cwd)})
            fds = tuple(spawning.fds)
            payload = _dumps({"preparation": preparation, "initializer": initializer, "fds": fds}, PROTOCOL)
        except BaseException:
            spawning.close()
            raise
        with self._lock:
            self._open.update(fds)
        return payload, fds

    def release(self, fds: tuple[int, ...] | None = None) -> None:
        """Close duplicates that ``build`` returned, all of them without an argument; idempotent."""
        with self._lock:
            closing = set(self._open) if fds is None else self._open.intersection(fds)
            self._open -= closing
        for fd in closing:
            os.close(fd)

    @contextmanager
    def inherit(self) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """``build()`` as a context: spawn the worker inside, the duplicates are closed at its end."""
        payload, fds = self.build()
        try:
            yield payload, fds
        finally:
            self.release(fds)


def _check_context(mp_context: Any) -> BaseContext:
    from multiprocessing.context import BaseContext

    if not isinstance(mp_context, BaseContext):
        raise TypeError(
            f"mp_context must be loky's or a multiprocessing spawn context, not {type(mp_context).__name__}"
        )
    method = mp_context.get_start_method()
    if method in ("loky", "spawn"):
        return mp_context
    if method in ("fork", "forkserver"):
        reason = "workers are separate programs, and its locks and queues reach forked children only"
    else:
        reason = "its children import __main__ again, which callable workers never do"
    raise ValueError(f"mp_context {method!r} cannot be used: {reason}; use 'spawn' or loky's context")


class _Spawning:
    """Stands in for multiprocessing's Popen object while objects for a child are pickled."""

    def __init__(self) -> None:
        from multiprocessing.popen_spawn_posix import _DupFd

        self.DupFd = _DupFd
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        """Return a number that the child will find open; the original may be closed meanwhile."""
        copy = os.dup(fd)
        self.fds.append(copy)
        return copy

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def _dumps_inherited(value: object, spawning: _Spawning) -> bytes:
    """Pickle a value for a child process: by value where needed, descriptors as duplicates."""
    import io
    from multiprocessing import context, reduction

    cloud_pickler: Any = import_module("cloudpickle").CloudPickler
    forking: Any = reduction.ForkingPickler
    buffer = io.BytesIO()

    class Pickler(cloud_pickler):  # type: ignore[misc]  # the class is only known at run time
        dispatch_table: ClassVar[Any] = ChainMap(cloud_pickler.dispatch_table, forking._extra_reducers)

    set_spawning: Any = context.set_spawning_popen
    set_spawning(spawning)
    try:
        Pickler(buffer, PROTOCOL).dump(value)
    finally:
        set_spawning(None)
    return buffer.getvalue()


_worker_numbers = itertools.count(1)


def _preparation_data(spawning: _Spawning) -> dict[str, Any]:
    """Return loky's preparation data for one worker, without ``__main__`` and without starting a tracker.

    loky's own function starts two tracker processes.  A tracker matters only to a worker that gets
    tracked objects, and those cannot exist here unless a tracker runs already.
    """
    from multiprocessing import process, util

    name = f"SnakepitWorker-{next(_worker_numbers)}"
    if _tracker("loky.backend.resource_tracker") is not None:
        data: dict[str, Any] = import_module("loky.backend.spawn").get_preparation_data(
            name, init_main_module=False
        )
    else:
        origin: str = process.ORIGINAL_DIR  # type: ignore[attr-defined]  # undocumented
        data = {
            "name": name,
            "authkey": bytes(process.current_process().authkey),
            "sys_path": [entry or origin for entry in sys.path],
            "sys_argv": list(sys.argv),
            "orig_dir": origin,
            "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]  # undocumented
        }
        with suppress(FileNotFoundError):  # removed: the worker is there already
            data["dir"] = os.getcwd()
        logger = util._logger  # type: ignore[attr-defined]  # undocumented
        if logger is not None:
            data["log_level"] = logger.getEffectiveLevel()
        tracker = _tracker("multiprocessing.resource_tracker")
        if tracker is not None:
            tracker.ensure_running()
            data["mp_tracker_fd"] = tracker._fd
    for key in ("tracker_fd", "mp_tracker_fd"):
        if key in data:
            data[key] = spawning.duplicate_for_child(data[key])
    return data


def _tracker(module_name: str) -> Any:
    """Return the module's resource tracker if it was ever started by this process, else None."""
    module: Any = sys.modules.get(module_name)
    tracker = None if module is None else module._resource_tracker
    return None if tracker is None or tracker._fd is None else tracker

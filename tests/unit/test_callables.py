"""Calls and replies as bytes, and the preparation of callable workers, without a worker."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import types
from typing import Any

import cloudpickle
import pytest

from snakepit._wire import callables as _callables
from snakepit._wire.callables import (
    Preparation,
    RemoteTraceback,
    decode_reply,
    encode_call,
    encode_chunk,
    load_reply,
    request_header,
)
from snakepit.errors import CommandError, InternalError, ProtocolError, ResultError


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An importable module with a function and a class with a method."""
    module = types.ModuleType("callables_under_test")
    exec("def f(x): return x\nclass C:\n    def m(self): return 1\n", module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def _reply(kind: str, body: bytes, request_id: int = 5) -> bytes:
    return pickle.dumps((request_id, kind), 5) + body


# ----------------------------------------------------------------------------------------------- encode


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (pow, (2, 3), {}),
        (math.sqrt, (2.5,), {}),
        (int, ("ff",), {"base": 16}),
        (print, (b"x", None, True, (1, "two", None)), {"sep": ""}),
        (os.path.join, (), {}),
    ],
)
def test_importable_function_and_primitives_take_the_quick_way(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions by name with primitive arguments never reach cloudpickle, and load as they were."""
    monkeypatch.setattr(_callables, "_dump_by_value", None)

    assert (fn, args, kwargs) == pickle.loads(encode_call(fn, args, kwargs))
    assert (fn, [args, args]) == pickle.loads(encode_chunk(fn, [args, args]))


def test_other_values_travel_by_value(module: Any) -> None:
    """Closures, containers, methods and functions without a module are pickled by cloudpickle."""
    base = 10
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (lambda x: x + base, (1,)),
        (len, ([1, 2],)),
        (module.C().m, ()),
        (len, (((1,), 2),)),
        ([].append, (1,)),
    ]

    loaded = [pickle.loads(encode_call(fn, args, {})) for fn, args in calls]
    chunk_fn, chunk = pickle.loads(encode_chunk(calls[0][0], [(1,), (2,)]))

    assert [11, 2, 1, 2, None] == [fn(*args) for fn, args, _ in loaded]
    assert [11, 12] == [chunk_fn(*args) for args in chunk]


def test_remembered_function_may_be_replaced(module: Any) -> None:
    """A function whose name leads elsewhere by now is sent by value, not refused."""
    old = module.f
    encode_call(old, (1,), {})
    module.f = len

    assert 7 == pickle.loads(encode_call(old, (7,), {}))[0](7)
    assert 7 == pickle.loads(encode_chunk(old, [(7,)]))[0](7)


def test_modules_registered_by_value_are_honoured(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """cloudpickle.register_pickle_by_value also holds for functions with a remembered verdict."""
    by_name = encode_call(module.f, (1,), {})
    cloudpickle.register_pickle_by_value(module)
    try:
        by_value = encode_call(module.f, (1,), {})
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, module.__name__)

    assert 1 == pickle.loads(by_value)[0](1)
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(by_name)


def test_verdicts_are_held_weakly(module: Any) -> None:
    """A function that dies leaves no verdict for the next object with its id."""
    encode_call(module.f, (), {})
    key = id(module.f)
    known = key in _callables._by_reference

    del module.f
    gc.collect()

    assert (True, False) == (known, key in _callables._by_reference)


def test_what_cannot_be_pickled_raises_here() -> None:
    """The error of pickling is the caller's, with its class kept."""
    with pytest.raises(TypeError, match="lock"):
        encode_call(len, (threading.Lock(),), {})
    with pytest.raises(TypeError, match="lock"):
        encode_chunk(len, [(threading.Lock(),)])


# ------------------------------------------------------------------------------------------- header, reply


def test_header_and_body_are_told_apart() -> None:
    """The header's length stands in its first bytes, whatever the session's name."""
    for session in (None, "s", "\u00e9" * 200):
        header = request_header(2**53 - 1, session, 1500, True, "chunk")

        assert (2**53 - 1, session, 1500, True, "chunk") == pickle.loads(header)
        assert len(header) == 11 + int.from_bytes(header[3:11], "little")


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_reply_is_split_without_loading_its_body(convert: Any) -> None:
    """A body that is no pickle still has an id and a kind."""
    request_id, kind, body = decode_reply(convert(_reply("result", b"no pickle", 77)))

    assert (77, "result", b"no pickle") == (request_id, kind, bytes(body))


@pytest.mark.parametrize(
    "frame",
    [b"\x80", b"\x80\x05\x95" + b"\xff" * 8, pickle.dumps(5, 5), pickle.dumps(("1", "result"), 5), b""],
)
def test_bad_reply_header_is_a_protocol_error(frame: bytes) -> None:
    """What is no reply header names the bytes seen."""
    with pytest.raises(ProtocolError, match="first bytes"):
        decode_reply(frame)


def test_each_kind_of_reply_is_a_value_or_an_exception() -> None:
    """Results, exceptions, descriptions and sizes; the worker's traceback is the cause."""

    def load(kind: str, value: object) -> tuple[Any, BaseException | None]:
        return load_reply(kind, memoryview(pickle.dumps(value, 5)))

    value = load("result", [1])
    _, error = load("error", (KeyError("k"), "Traceback: here\n"))
    _, opaque = load("opaque", {"type": "Odd", "message": "m", "traceback": "there\n"})
    _, large = load("too_large", {"size": 10, "limit": 5})
    _, recalled = load_reply("recalled", memoryview(b""))
    _, unknown = load("later", 1)

    assert ([1], None) == value
    assert isinstance(error, KeyError) and isinstance(error.__cause__, RemoteTraceback)
    assert '\n"""\nTraceback: here\n"""' == str(error.__cause__)
    assert isinstance(opaque, CommandError)
    assert ("Odd", "m", "there\n") == (opaque.type, opaque.message, opaque.remote_traceback)
    assert isinstance(large, ResultError) and "10 bytes" in str(large)
    assert [InternalError, InternalError] == [type(recalled), type(unknown)]


class _Hostile:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _explode, (self.error,)


def _explode(error: type[BaseException]) -> None:
    raise error("while loading")


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_hostile_body_is_an_exception_not_raised(error: type[BaseException]) -> None:
    """What a body raises while it is loaded belongs to its future, never to the loading thread."""
    body = memoryview(cloudpickle.dumps(_Hostile(error)))

    for kind in ("result", "error", "opaque", "too_large"):
        value, raised = load_reply(kind, body)

        assert (None, error) == (value, type(raised))


def test_malformed_bodies_are_exceptions() -> None:
    """An error that is no exception, and a description that is none, fail their own future."""
    bodies = [("error", (5, "text")), ("error", 5), ("opaque", {}), ("too_large", [])]

    errors = [load_reply(kind, memoryview(pickle.dumps(value, 5)))[1] for kind, value in bodies]

    assert [TypeError, TypeError, KeyError, TypeError] == [type(error) for error in errors]


# --------------------------------------------------------------------------------------------- preparation


def test_plain_preparation_starts_no_helper() -> None:
    """Without an initializer neither loky is imported nor a tracker process started."""
    source = (
        "import sys, pickle; from snakepit._wire.callables import Preparation\n"
        "payload, fds = Preparation().build()\n"
        "data = pickle.loads(payload)\n"
        "tracker = sys.modules.get('multiprocessing.resource_tracker')\n"
        "print(payload[0], fds, data['initializer'], 'loky' in sys.modules,\n"
        "      tracker is not None and tracker._resource_tracker._fd is not None)\n"
    )

    output = subprocess.check_output([sys.executable, "-c", source], text=True, timeout=30)

    assert "128 () None False False" == output.strip()


def test_preparation_describes_this_process() -> None:
    """Key, path, arguments and folder are this process's; __main__ is not mentioned; names differ."""
    with Preparation().inherit() as (payload, _):
        first = pickle.loads(payload)["preparation"]
    with Preparation().inherit() as (payload, _):
        second = pickle.loads(payload)["preparation"]

    assert bytes(multiprocessing.current_process().authkey) == first["authkey"]
    assert ([entry or os.getcwd() for entry in sys.path], sys.argv) == (first["sys_path"], first["sys_argv"])
    assert os.getcwd() == first["dir"]
    assert not [key for key in first if key.startswith("init_main")]
    assert first["name"] != second["name"]


@pytest.mark.parametrize("method", ["loky", "spawn"])
def test_descriptors_are_duplicates_and_closed_on_release(method: str) -> None:
    """A pipe's end among initargs travels as a duplicate of this build, closed by release, once."""
    context: Any = None if method == "loky" else multiprocessing.get_context(method)
    reader, writer = multiprocessing.Pipe()
    with reader, writer:
        preparation = Preparation(print, (reader,), context)
        _, first = preparation.build()
        _, second = preparation.build()
        open_before = [os.fstat(fd).st_ino for fd in first + second]

        preparation.release(first)
        preparation.release(first)
        closed = [fd for fd in first if _is_closed(fd)]
        preparation.release()

        assert method == preparation.context.get_start_method()
        assert set() == set(first) & set(second)
        assert reader.fileno() not in first + second
        assert os.fstat(reader.fileno()).st_ino in open_before
        assert list(first) == closed
        assert all(map(_is_closed, second))


def _is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("method", ["fork", "forkserver", "loky_init_main"])
def test_contexts_that_cannot_work_are_refused(method: str) -> None:
    """A context whose children are made otherwise is a ValueError with the reason."""
    context: Any = multiprocessing.get_context("fork")
    if method != "fork":
        import loky.backend  # type: ignore[import-untyped]

        context = loky.backend.get_context(method)

    with pytest.raises(ValueError, match=f"mp_context '{method}' cannot be used: .*; use 'spawn'"):
        Preparation(mp_context=context)


def test_arguments_of_the_wrong_type_are_refused() -> None:
    """A wrong initializer or context, and unpicklable initargs, are a TypeError at once."""
    with pytest.raises(TypeError, match="initializer must be callable"):
        Preparation("f")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mp_context must be loky's"):
        Preparation(mp_context="spawn")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"initializer and initargs cannot be sent.*lock"):
        Preparation(print, (threading.Lock(),))


def test_failed_build_leaves_nothing_open() -> None:
    """A pipe's end before an argument that cannot be pickled is closed again (the leak check looks)."""
    reader, writer = multiprocessing.Pipe()
    with reader, writer, pytest.raises(TypeError):
        Preparation(print, (reader, threading.Lock()))


def test_lock_of_a_fork_context_is_refused_with_its_reason() -> None:
    """Its semaphore is already unlinked: multiprocessing's own reason is told at construction."""
    lock = multiprocessing.get_context("fork").Lock()

    with pytest.raises(TypeError, match="fork context"):
        Preparation(print, (lock,))

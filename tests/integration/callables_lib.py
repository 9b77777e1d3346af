"""Functions and saboteurs that tests send to workers; importable there, since the host's path travels."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from gates import pass_gate


def add(a: int, b: int = 0) -> int:
    """Return the sum."""
    return a + b


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what arrived."""
    return args, kwargs


def identity(value: Any) -> Any:
    """Return the argument."""
    return value


def pid_of_worker(*_: Any) -> int:
    """Return the worker's process id."""
    return os.getpid()


def held(path: str, value: Any = None) -> Any:
    """Report at a gate, wait there, and return the value."""
    pass_gate(path, str(value))
    return value


def held_pid(path: str) -> int:
    """Report at a gate, wait there, and return the worker's process id."""
    pass_gate(path)
    return os.getpid()


def fail(error: BaseException) -> None:
    """Raise what was sent."""
    raise error


def fail_with_cause() -> None:
    """Raise an exception that has a cause."""
    try:
        {}["missing"]
    except KeyError as error:
        raise ValueError("no such key", 7) from error


def fail_even(number: int) -> int:
    """Raise for even numbers."""
    if number % 2 == 0:
        raise ValueError(number)
    return number


def total(data: bytes) -> tuple[int, int]:
    """Return length and last byte: enough to know that all has come."""
    return len(data), data[-1]


def block_of(size: int, byte: int) -> bytes:
    """Return so many equal bytes."""
    return bytes([byte]) * size


class OneArgument(Exception):
    """Its constructor takes more than ``args`` holds: rebuilding it fails."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Keyword(Exception):
    """Knows how to be rebuilt although its constructor takes keywords."""

    def __init__(self, *, code: int) -> None:
        super().__init__("keyword")
        self.code = code

    def __reduce__(self) -> Any:
        return _make_keyword, (self.code,)


def _make_keyword(code: int) -> Keyword:
    return Keyword(code=code)


class Locked(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class Attributed(Exception):
    """Carries an attribute beside its args."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.detail = {"more": [1, 2]}


def raise_one_argument() -> None:
    """Raise an exception that cannot be rebuilt."""
    raise OneArgument(1, 2)


def raise_keyword() -> None:
    """Raise an exception that rebuilds itself."""
    raise Keyword(code=5)


def raise_locked() -> None:
    """Raise an exception that cannot be pickled."""
    raise Locked


def raise_attributed() -> None:
    """Raise an exception with an attribute."""
    raise Attributed("attributed")


def process_name_and_key() -> tuple[str, bytes]:
    process = multiprocessing.current_process()
    return process.name, bytes(process.authkey)


def return_lock() -> Any:
    """Return what cannot be pickled."""
    return threading.Lock()


class Outer:
    """Holds a class."""

    class Inner:
        """A nested class with a method to call."""

        def __init__(self, value: int) -> None:
            self.value = value

        def double(self) -> int:
            """Return twice the value."""
            return 2 * self.value

        @staticmethod
        def triple(value: int) -> int:
            """Return three times the argument."""
            return 3 * value

        @classmethod
        def named(cls) -> str:
            """Return the class's name."""
            return cls.__qualname__


def redefine(value: int) -> str:
    """Say which definition this is."""
    return f"first {value}"


# Crashes -------------------------------------------------------------------------------------------


def do_raise() -> None:
    """Raise."""
    raise ValueError("sabotage")


def do_sys_exit() -> None:
    """Ask the interpreter to end."""
    sys.exit(3)


def do_os_exit() -> None:
    """End the process on the spot."""
    os._exit(4)


def do_segfault() -> None:
    """End as a crash in native code does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
    threading.Event().wait(10)


def do_libc_exit() -> None:
    """End the process by the C library, behind the interpreter's back."""
    ctypes.CDLL(None).exit(6)


DEEDS: dict[str, Callable[[], None]] = {
    "raise": do_raise,
    "sys_exit": do_sys_exit,
    "os_exit": do_os_exit,
    "libc_exit": do_libc_exit,
    "segfault": do_segfault,
}


def act(name: str) -> None:
    """Do one of the deeds."""
    DEEDS[name]()


class BreaksOnPickle:
    """Does its deed when it is pickled."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def __reduce__(self) -> Any:
        act(self.deed)
        return BreaksOnPickle, (self.deed,)


class BreaksOnUnpickle:
    """Does its deed when it is unpickled."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def __reduce__(self) -> Any:
        return act, (self.deed,)


def return_breaks_on_pickle(deed: str) -> BreaksOnPickle:
    """Return what does its deed while the worker pickles the result."""
    return BreaksOnPickle(deed)


def return_breaks_on_unpickle(deed: str) -> BreaksOnUnpickle:
    """Return what does its deed while the host unpickles the result."""
    return BreaksOnUnpickle(deed)


def raise_breaks_on_pickle(deed: str) -> None:
    """Raise an exception that does its deed while it is pickled."""
    raise ValueError(BreaksOnPickle(deed))


class BreaksOnCollect:
    """Does its deed when it is garbage collected."""

    def __init__(self, deed: str) -> None:
        self.deed = deed
        self.me = self

    def __del__(self) -> None:
        act(self.deed)


def break_at_collection(deed: str) -> str:
    """Leave garbage that does its deed, and collect it."""
    BreaksOnCollect(deed)
    gc.collect()
    return "collected"


def hold_interpreter_lock(path: str, seconds: int) -> None:
    """Report at a gate that is open, then stay in a C call that keeps the interpreter's lock."""
    pass_gate(path)
    ctypes.PyDLL(None).sleep(seconds)


def loop_for_ever(path: str) -> None:
    """Report at a gate that is open, then run without end."""
    pass_gate(path)
    while True:
        pass


# Initializers --------------------------------------------------------------------------------------

_given: tuple[Any, ...] = ()


def remember(*values: Any) -> None:
    """Keep what the initializer was given."""
    global _given
    _given = values


def remembered() -> tuple[Any, ...]:
    """Return what the initializer was given."""
    return _given


def use_shared(path: str) -> int:
    """Wait at a gate with the shared lock; then release the semaphore and put the pid on the queue."""
    lock, queue, semaphore = _given
    with lock:
        pass_gate(path)
    semaphore.release()
    queue.put(os.getpid())
    return os.getpid()


def fail_to_initialize() -> None:
    """Raise, as an initializer."""
    raise RuntimeError("no model there")


def fail_to_initialize_at(path: str) -> None:
    """Report at a gate, wait there, then raise."""
    pass_gate(path)
    raise RuntimeError("no model there")


class Array:
    """Holds memory, and pickles it as an out-of-band buffer, as arrays do."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Array, (pickle.PickleBuffer(self.memory),)


def increment_first(array: Array) -> Array:
    """Change an array in place and return it."""
    array.memory[0] += 1
    return array


def end_within_a_buffer(size: int) -> None:
    """Announce a reply's buffer, send half of it and end."""
    import snakepit_bridge  # type: ignore[import-not-found]  # the worker's own program

    stream = snakepit_bridge._runner.stream
    pickles = b"\x80\x05N."
    announced = [bytes((mark,)) + length.to_bytes(8, "big") for mark, length in ((0x81, len(pickles)), (0x82, size))]
    frames = [*stream.cut(announced[0]), *stream.cut(pickles), *stream.cut(announced[1]), *stream.cut(bytes(size))]
    stream.write(b"", [*frames[:-1], frames[-1][: size // 2]])
    os._exit(3)

"""Calls a C function that crashes on bad input: the one call fails, the pool goes on."""

import ctypes

from snakepit import SnakepitExecutor, WorkerDied

BAD_ADDRESS = 1


def length(text: bytes | None) -> int:
    """Return what strlen says of a text; of None, of memory that is not there, which ends the process."""
    strlen = ctypes.CDLL(None).strlen
    strlen.argtypes, strlen.restype = [ctypes.c_void_p], ctypes.c_size_t
    return strlen(BAD_ADDRESS if text is None else ctypes.cast(text, ctypes.c_void_p))


def main() -> None:
    """Four calls at once, one of them deadly."""
    with SnakepitExecutor(max_workers=2) as pool:
        futures = {text: pool.submit(length, text) for text in (b"tea", None, b"teapot", b"")}
        for text, future in futures.items():
            try:
                print(f"{text!r}: {future.result()}")
            except WorkerDied as error:
                print(f"{text!r}: the worker died of signal {error.signal}")
        print(f"restarts: {pool.stats().restarts}, still serving: {pool.submit(length, b'yes').result() == 3}")


if __name__ == "__main__":
    main()

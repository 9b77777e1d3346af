"""Tools for tests of code that uses snakepit: a clock, an order for threads, a worker that follows a script.

Runs on the test's threads; each object owns its own state.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ._wire.values import JsonValue
from .adapters import CommandAdapter

__all__ = ("FakeClock", "ScriptedAdapter", "ThreadSequencer")


class FakeClock:
    """A clock that moves only when it is told to; call it for the time.

    Args:
        start_s: First reading, seconds.
    """

    def __init__(self, start_s: float = 1000.0) -> None:
        self._now_s = start_s

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: Negative; raised here.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now_s += seconds


class ThreadSequencer:
    """Lets blocks of several threads run in order: block ``n`` begins after block ``n - 1`` has ended.

    Source: the idea is trio's ``Sequencer`` (trio/testing/_sequencer.py), here for threads.

    Args:
        timeout_s: Seconds that a block waits for its turn.
    """

    # LOCK: `_turn` protects `_next` and `_broken`; held while waiting only as a condition is.
    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._turn = threading.Condition()
        self._next = 0
        self._broken = False

    @contextmanager
    def __call__(self, place: int) -> Iterator[None]:
        """Run the body as block ``place``, 0 first.

        Raises:
            TimeoutError: Its turn did not come in time; raised here, and in every block after it.
            RuntimeError: The place was used before; raised here.
        """
        with self._turn:
            if place < self._next:
                raise RuntimeError(f"block {place} has run already")
            if not self._turn.wait_for(lambda: self._next == place or self._broken, self._timeout_s):
                self._broken = True
                self._turn.notify_all()
            if self._broken:
                raise TimeoutError(f"block {place} waited in vain: block {self._next} did not run to its end")
        try:
            yield
        finally:
            with self._turn:
                self._next = place + 1
                self._turn.notify_all()


_PLAYER = """
import json, os, struct, sys, time
script = json.loads(sys.argv[1])
def read(count):
    data = b""
    while len(data) < count:
        part = os.read(0, count - len(data))
        if not part:
            sys.exit(0)
        data += part
    return data
def write(message):
    data = json.dumps(message).encode()
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[os.write(1, data):]
def answer(request, **rest):
    write({"id": request["id"], "timestamp": "1970-01-01T00:00:00Z", **rest})
while True:
    request = json.loads(read(struct.unpack(">I", read(4))[0]))
    if request["command"] == "ping":
        answer(request, success=True, result={"status": "ok"})
        continue
    if not script:
        answer(request, success=False, error="the script is at its end, but came %r" % request["command"])
        continue
    step = script.pop(0)
    if step["expect"] != request["command"] or ("args" in step and step["args"] != request["args"]):
        answer(request, success=False, error="the script expects %r, but there came %r with %r"
               % (step, request["command"], request["args"]))
    elif "exit" in step:
        os._exit(step["exit"])
    elif "raw" in step:
        os.write(1, step["raw"].encode("latin-1"))
    elif "error" in step:
        answer(request, success=False, error=step["error"])
    elif not step.get("hang"):
        answer(request, success=True, result=step.get("result"))
"""


class ScriptedAdapter(CommandAdapter):
    """Workers that follow a script of expected commands and their answers (protocol level 0).

    Anything the script does not expect is answered with an error that says what was expected, and a
    command after its end likewise; each worker begins at the first step.

    Args:
        steps: ``{"expect": command, "args": json}`` (args are checked where given) with one of
            ``"result": json``, ``"error": str``, ``"exit": status``, ``"hang": True``, or ``"raw": str``
            (written to the stream as it is, one byte a character).

    Raises:
        TypeError, ValueError: A step without ``expect``, or one that JSON cannot carry; raised here.
    """

    def __init__(self, steps: Sequence[Mapping[str, JsonValue]]) -> None:
        for step in steps:
            if not isinstance(step, Mapping) or not isinstance(step.get("expect"), str):
                raise TypeError(f"a step must be a mapping with 'expect': command, not {step!r}")
        script: list[dict[str, Any]] = [dict(step) for step in steps]
        super().__init__([sys.executable, "-c", _PLAYER, json.dumps(script, allow_nan=False)])

"""Tools for tests of code that uses snakepit: a clock, an order for threads, a scripted worker, tests of a bridge.

Runs on the test's threads; each object owns its own state.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ._wire.values import JsonValue
from .adapters import CommandAdapter

__all__ = ("FakeClock", "ScriptedAdapter", "ThreadSequencer", "conformance")

WORD_BYTES = 100_000
"""Linux takes no word of a command line beyond 131,071 bytes."""
SCRIPT_BYTES = 512 * 1024
"""What every system takes in one command line, with room for the environment: macOS allows 1 MiB, Linux mostly 2."""


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
script = json.loads("".join(sys.argv[1:]))
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
        TypeError, ValueError: A step without ``expect``, one that JSON cannot carry, or a script of more than 524,288
            bytes of JSON (of ASCII); raised here.
    """

    def __init__(self, steps: Sequence[Mapping[str, JsonValue]]) -> None:
        for step in steps:
            if not isinstance(step, Mapping) or not isinstance(step.get("expect"), str):
                raise TypeError(f"a step must be a mapping with 'expect': command, not {step!r:.200}")
        script: list[dict[str, Any]] = [dict(step) for step in steps]
        text = json.dumps(script, allow_nan=False)
        if len(text) > SCRIPT_BYTES:
            raise ValueError(
                f"a script of {len(text):,} bytes of JSON does not fit into a command line: at most {SCRIPT_BYTES:,};"
                " for larger results write a handler file for PythonAdapter"
            )
        words = [text[at : at + WORD_BYTES] for at in range(0, len(text), WORD_BYTES)]
        super().__init__([sys.executable, "-c", _PLAYER, *words])


def conformance(
    argv: Sequence[str], *, level: int = 1, only: Sequence[str] = (), timeout: float = 10.0
) -> Callable[..., None]:
    """Return a pytest test of a bridge, one item a case of the conformance kit.

    ``test_my_bridge = conformance(["ruby", "bridge.rb"])`` in a test module is all there is to write.
    Each case starts the bridge anew, for the first time when the first test runs, and ends it.  A case that needs
    what the bridge does not have is skipped with the reason; a bridge that does not start fails each of them.

    Args:
        argv: Program and arguments, with ``--handlers FILE`` where there are handlers.
        level: Protocol level of the bridge, 0 or 1.
        only: Names of cases, or patterns with ``*``; empty: all.
        timeout: Seconds to wait for an answer, or an end, > 0.

    Raises:
        TypeError: ``argv`` is one text; raised here.
        ValueError: ``argv`` is empty, ``level`` is neither 0 nor 1, ``timeout`` is not > 0, or a name fits no case;
            raised here.
        ModuleNotFoundError: There is no pytest; raised here.
    """
    import pytest

    from ._conformance.finding import Finding
    from ._conformance.runner import Suite, select_cases
    from ._conformance.survey import NoStartError, Target

    if isinstance(argv, str | bytes):
        raise TypeError(f"argv must be a sequence of words, such as ['ruby', 'bridge.rb'], not {argv!r}")
    if not argv:
        raise ValueError("argv must name a program")
    if level not in (0, 1):
        raise ValueError(f"level must be 0 or 1, not {level!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be > 0 seconds, not {timeout!r}")
    suite = Suite(Target(tuple(argv), timeout), level)

    @pytest.mark.parametrize("case", select_cases(level, only), ids=str)
    def check(case: Any) -> None:
        try:
            outcome = suite.run(case)
        except NoStartError as error:
            pytest.fail(str(error), pytrace=False)
        except Finding as finding:
            pytest.fail(str(finding), pytrace=False)
        if outcome.finding is not None:
            pytest.fail(str(outcome.finding), pytrace=False)
        if outcome.reason is not None:
            pytest.skip(f"{outcome.status}: {outcome.reason}")

    test: Callable[..., None] = check
    return test

"""Races inside the Python bridge, each forced at the place where the two threads meet."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from unit.bridge import load_bridge


class _Left(BaseException):
    """In the place of the end of the process."""


class _Stream:
    """As much of a stream as an answer needs."""

    held = b""
    forked = False
    max_frame = 1 << 20

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, frames: bytes) -> None:
        self.written.append(frames)

    def flush(self) -> None:
        """Nothing is held."""


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the bridge as a module of its own."""
    return load_bridge(monkeypatch)


@pytest.mark.parametrize("meeting", ["the request has just been answered", "the status has just been set", "idle"])
def test_a_worker_ends_in_time(bridge: ModuleType, monkeypatch: pytest.MonkeyPatch, meeting: str) -> None:
    """Whoever comes second, the main thread with its answer or another one with ``end``, leaves; the answer is out."""
    left: list[int] = []

    def leave(status: int) -> None:
        left.append(status)
        raise _Left

    class Runner(bridge.Runner):  # type: ignore[misc, name-defined]
        armed = False

        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, value)
            if self.armed and meeting == "the request has just been answered" and name == "_request" and value is None:
                object.__setattr__(self, "armed", False)
                with pytest.raises(_Left):
                    self.end(7, at_once=False)
            if self.armed and meeting == "the status has just been set" and name == "_exit_status":
                object.__setattr__(self, "armed", False)
                with pytest.raises(_Left):
                    self.answer()

        def answer(self) -> None:
            self._answer(self._commands["echo"], 1, {}, None, None, None)

    monkeypatch.setattr(bridge, "leave", leave)
    stream = _Stream()
    runner = Runner(stream, None, False)
    runner.level = 1
    object.__setattr__(runner, "armed", True)
    if meeting == "the request has just been answered":
        with pytest.raises(_Left):
            runner.answer()
    else:
        with pytest.raises(_Left):
            runner.end(7, at_once=False)

    assert {7} == set(left)
    assert (meeting != "idle") == bool(stream.written)

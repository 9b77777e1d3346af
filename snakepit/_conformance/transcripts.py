"""The golden transcripts: what a host sends and what a worker must answer, PROTOCOL.md, section 13.

Runs on the thread of the case; owns nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._bridges import bridge_path
from .finding import Finding, show_json
from .peer import Worker, frame

__all__ = ("Scenario", "compare", "json_type", "load_scenarios", "replay")

FOLDER = "golden"
A_SCENARIO = "ping.jsonl"


@dataclass(frozen=True)
class Scenario:
    """One golden transcript: its first line, and the steps ``{"from": ..., ...}`` after it."""

    name: str
    header: Mapping[str, Any]
    steps: tuple[dict[str, Any], ...]

    @property
    def level(self) -> int:
        """Which descriptors the worker is started with."""
        level: int = self.header["level"]
        return level

    @property
    def languages(self) -> frozenset[str]:
        """The languages it is for; empty: all."""
        return frozenset(self.header.get("bridges", ()))

    @property
    def handlers(self) -> bool:
        """Whether the test handlers of section 13 are needed."""
        return bool(self.header.get("handlers", False))

    def __str__(self) -> str:
        return self.name


@functools.cache
def load_scenarios() -> tuple[Scenario, ...]:
    """Return all transcripts that come with snakepit, by file name."""
    scenarios = []
    for path in sorted(bridge_path(f"{FOLDER}/{A_SCENARIO}").parent.glob("*.jsonl")):
        header, *steps = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        scenarios.append(Scenario(path.stem, header, tuple(steps)))
    return tuple(scenarios)


def replay(scenario: Scenario, worker: Worker, first: Mapping[str, Any] | None = None) -> None:
    """Play the host's part of a transcript and compare the worker's.

    Args:
        scenario: The transcript.
        worker: A fresh one, without handshake.
        first: The result of a handshake of this bridge; parts of the transcript's own that the protocol leaves
            to the bridge (capabilities, built-in commands, fields of its ping) are compared only as far as they
            are there.  None: everything is compared.

    Raises:
        Finding: The worker said something else; raised here.
    """
    for number, step in enumerate(scenario.steps, start=2):
        if step["from"] == "host":
            _play(worker, step)
            continue
        where = f"{scenario.name}.jsonl, line {number}"
        actual = worker.receive()
        expected = step["message"] if first is None else fit_handshake(step["message"], first)
        try:
            compare(expected, _sort_capabilities(actual) if expected is not step["message"] else actual, step)
        except Finding as finding:
            finding.what = f"{finding.what} ({where})"
            finding.sent = worker.sent
            raise
        for text in step.get("frames", ()):
            data = worker.receive_frame()
            if data.hex() != text:
                raise Finding(
                    f"the bytes of an attachment changed ({where})",
                    sent=worker.sent,
                    expected=f"{len(text) // 2} bytes: {text[:160]}",
                    received=f"{len(data)} bytes: {data.hex()[:160]}",
                )
    worker.close_requests()
    status, due = worker.wait(), scenario.header.get("exit", 0)
    if status != due:
        raise Finding(
            "the wrong exit status after the end of the requests",
            expected=f"{due}",
            received=f"{status}",
            hint="PROTOCOL.md, section 10, has the table of ends",
        )
    if rest := worker.receive_end():
        raise Finding(
            "the worker said more than the transcript",
            received=show_json(rest.decode("utf-8", "backslashreplace")),
            hint="one reply for each request, and nothing after the last",
        )


def _play(worker: Worker, step: Mapping[str, Any]) -> None:
    if "claims" in step:
        worker.claim(step["claims"])
    frames = [bytes.fromhex(text) for text in step.get("frames", ())]
    if "message" in step:
        worker.send(step["message"], *frames)
    elif len(frames) == 1:
        worker.send_frame(frames[0])
    else:
        worker.send_bytes(b"".join(map(frame, frames)))


def fit_handshake(message: dict[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Return the expected answer to a handshake without what this bridge does not have; others as they are."""
    result = message.get("result")
    if not isinstance(result, dict) or "status" not in result or not ("protocol" in result or "echo" in result):
        return message
    fitted = {key: value for key, value in result.items() if key in first or key in ("status", "protocol")}
    if "protocol" in result:
        protocol, known = dict(result["protocol"]), first.get("protocol", {})
        names = protocol["capabilities"]
        protocol["capabilities"] = sorted(name for name in names if name in known.get("capabilities", ()))
        commands = known.get("commands", {})
        protocol["commands"] = {
            name: {**command, "params": command["params"] if commands[name]["params"] else []}
            for name, command in protocol["commands"].items()
            if name in commands
        }
        fitted["protocol"] = protocol
    return {**message, "result": fitted}


def _sort_capabilities(message: Any) -> Any:
    result = message.get("result")
    if not isinstance(result, dict) or not isinstance(result.get("protocol"), dict):
        return message
    protocol = result["protocol"]
    return {**message, "result": {**result, "protocol": {**protocol, "capabilities": sorted(protocol["capabilities"])}}}


def compare(expected: Any, actual: Any, rules: Mapping[str, Any], at: str = "") -> None:
    """Compare a message with the expected one, but for the pointers that ``rules`` exempt.

    Args:
        expected: From the transcript.
        actual: From the worker.
        rules: ``{"any": pointers of which only the JSON type counts, "extra": pointers of objects that may
            have further keys, "prefix": pointers of text that only begins as expected}``.
        at: Pointer of the values compared.

    Raises:
        Finding: They differ; raised here.
    """
    if json_type(expected) != json_type(actual):
        raise _differ(f"{json_type(actual)} in place of {json_type(expected)}", expected, actual, at)
    if at in rules.get("any", ()):
        return
    if isinstance(expected, dict):
        missing, further = expected.keys() - actual.keys(), actual.keys() - expected.keys()
        if missing or (further and at not in rules.get("extra", ())):
            told = [f"without {name!r}" for name in sorted(missing)] + [f"with {name!r}" for name in sorted(further)]
            raise _differ(f"an object {', '.join(told)}", expected, actual, at)
        for key, value in expected.items():
            compare(value, actual[key], rules, f"{at}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(expected, list):
        if len(expected) != len(actual):
            raise _differ("an array of another length", expected, actual, at)
        for index, value in enumerate(expected):
            compare(value, actual[index], rules, f"{at}/{index}")
    elif at in rules.get("prefix", ()):
        if not actual.startswith(expected):
            raise _differ("text that begins otherwise", f"{expected}...", actual, at)
    elif expected != actual:
        raise _differ(f"another {json_type(expected)}", expected, actual, at)


def _differ(what: str, expected: Any, actual: Any, at: str) -> Finding:
    place = f" at {at}" if at else ""
    return Finding(f"{what}{place}", expected=show_json(expected), received=show_json(actual))


def json_type(value: Any) -> str:
    """Return the name of a value's JSON type; integers and other numbers are one, as in JSON."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    names = {int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]

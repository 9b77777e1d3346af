"""Every bridge gives the answers of the golden transcripts, and all their messages fit the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conformance.driver import (
    BRIDGES_DIR,
    Bridge,
    Scenario,
    Worker,
    compare,
    find_bridges,
    frame,
    iterate_messages,
    load_scenarios,
    prepare,
    replay,
    validate,
)

SCENARIOS = load_scenarios()
HEADER_KEYS = {"scenario", "about", "level", "bridges", "handlers", "exit"}
STEP_KEYS = {"from", "message", "frames", "claims", "any", "extra", "prefix"}
PAIRS = [
    pytest.param(scenario, bridge, id=f"{scenario}-{bridge}")
    for bridge in find_bridges()
    for scenario in SCENARIOS
    if scenario.concerns(bridge)
]


@pytest.mark.parametrize(("scenario", "bridge"), PAIRS)
def test_bridge_answers_as_the_transcript_says(
    scenario: Scenario, bridge: Bridge, require_runtime: Callable[[str], str]
) -> None:
    """A bridge that hears the host's part says the worker's part and exits as written."""
    if bridge.language != "python":
        require_runtime(bridge.runtime)
    prepare(bridge)

    replay(scenario, bridge)


def test_example_bridge_of_the_protocol_text_works(
    tmp_path: Path, require_runtime: Callable[[str], str]
) -> None:
    """The bridge printed in PROTOCOL.md answers the basic and the unhappy paths as the text demands."""
    text = (BRIDGES_DIR / "PROTOCOL.md").read_text("utf-8")
    (code,) = re.findall(r"^```ruby\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    script = tmp_path / "bridge.rb"
    script.write_text(code)
    with Worker([require_runtime("ruby"), str(script)]) as worker:
        ready = worker.start()["result"]["protocol"]
        replies = [
            worker.call(1, "shout", {"text": "hi"}),
            worker.call(2, "echo", [False, 0, "", None, 2**70]),
            worker.call(3, "no_such"),
            worker.call(4, "shout", {}),
        ]
        worker.send_bytes(frame(b"junk"))
        junk = worker.receive()
        worker.send({"type": "of a later version"})
        worker.send({"id": 5})
        missing = worker.receive()
        worker.send_bytes(b"\0\0\0\0")
        empty = worker.receive()

        assert ("ruby", ["errors", "pipeline"]) == (ready["language"], ready["capabilities"])
        assert ["HI", [False, 0, "", None, 2**70]] == [reply["result"] for reply in replies[:2]]
        assert "Unknown command: 'no_such'. Available: echo, ping, shout" == replies[2]["error"]["message"]
        assert ("handler_error", "KeyError") == (replies[3]["error"]["code"], replies[3]["error"]["type"])
        assert (None, "BadFrame") == (junk["id"], junk["error"]["type"])
        assert "request 5: 'command' must be a string" == missing["error"]["message"]
        assert "BadFrame" == empty["error"]["type"]
        assert 2 == worker.wait()


def test_transcripts_have_the_documented_form() -> None:
    """Each file names itself and uses only the keys that the protocol's text explains."""
    names = [scenario.header["scenario"] for scenario in SCENARIOS]
    headers = [key for scenario in SCENARIOS for key in scenario.header if key not in HEADER_KEYS]
    steps = [key for scenario in SCENARIOS for step in scenario.steps for key in step if key not in STEP_KEYS]

    assert [scenario.name for scenario in SCENARIOS] == names
    assert ([], []) == (headers, steps)
    assert len(SCENARIOS) >= 30


def test_transcripts_fit_the_schema() -> None:
    """Every message of every transcript is valid by the schema."""
    refused = []

    for place, message in iterate_messages(SCENARIOS):
        try:
            validate(message)
        except jsonschema.ValidationError as error:
            refused.append(f"{place}: {error.message}")

    assert [] == refused


def test_schema_is_a_schema() -> None:
    """The schema itself is valid by the draft it names."""
    schema = json.loads((BRIDGES_DIR / "schema.json").read_text("utf-8"))

    jsonschema.Draft202012Validator.check_schema(schema)


ERROR = {"code": "internal", "type": "T", "message": "m", "traceback": None, "language": "x"}


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": 1},
        {"id": "1", "command": "echo", "args": 1},
        {"id": -1, "command": "echo", "args": 1},
        {"id": 2**53, "command": "echo", "args": 1},
        {"id": 1, "command": 5, "args": 1},
        {"id": 1, "command": "echo", "batch": []},
        {"id": 1, "command": "echo", "args": 1, "batch": [1]},
        {"id": 1, "command": "ping", "args": {"initialization": True, "worker_id": 7}},
        {"id": 1, "command": "echo", "attachments": [{"path": "args", "kind": "bytes", "len": 1}]},
        {"id": 1, "success": True},
        {"id": 1, "success": True, "result": 1, "error": "both"},
        {"id": None, "success": True, "result": 1},
        {"id": 1, "success": False, "error": {**ERROR, "code": 7}},
        {"id": 1, "success": False, "error": {**ERROR, "message": "m" * 65537}},
        {"id": 1, "success": True, "result": {"status": "ok", "protocol": {"version": 2}}},
        {"type": "session_end"},
        {"type": "log", "id": 1, "level": "info", "message": "m"},
        {"type": "recalled"},
        {"type": "unheard of", "id": 1},
    ],
    ids=str,
)
def test_schema_refuses_what_is_no_message(message: Any) -> None:
    """The schema is no formality: each of these is refused."""
    with pytest.raises(jsonschema.ValidationError):
        validate(message)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": None}, {}),
        ([1], [1, 1]),
        ("text", "texts"),
        (2**53 + 1, float(2**53)),
        ({"free": 1}, {"free": "1"}),
    ],
)
def test_comparison_sees_every_difference(expected: Any, actual: Any) -> None:
    """The replay would not pass a reply that differs in value, type or keys."""
    with pytest.raises(AssertionError):
        compare(expected, actual, {"any": ["/free"]}, "here")


def test_comparison_exempts_only_what_is_named() -> None:
    """`any` compares the type alone, `extra` allows keys at one place, `prefix` a longer text."""
    rules = {"any": ["/t"], "extra": ["/o"], "prefix": ["/m"]}

    actual = {"t": 9, "o": {"a": 1, "b": 2}, "m": "begins"}
    compare({"t": 1.5, "o": {"a": 1}, "m": "be"}, actual, rules, "here")

    with pytest.raises(AssertionError):
        compare({"t": 1.5}, {"t": 9}, {}, "here")

"""What only a Go worker does: panics, a command registered twice, values that Go has and JSON has not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance.driver import (
    BRIDGES_DIR,
    BUILD_TIMEOUT_S,
    Bridge,
    Worker,
    find_bridges,
    prepare,
    start_bridge,
)


@pytest.fixture
def go(require_runtime: Callable[[str], str]) -> Bridge:
    """Return the Go bridge, built."""
    require_runtime("go")
    (bridge,) = (bridge for bridge in find_bridges() if bridge.language == "go")
    prepare(bridge)
    return bridge


@pytest.fixture
def worker(go: Bridge) -> Iterator[Worker]:
    """Return a started worker."""
    with start_bridge(go) as started:
        started.start()
        yield started


def test_panic_is_a_reply_with_its_stack(worker: Worker) -> None:
    """Text and a run-time error alike; the traceback begins in the handler, and the worker lives."""
    text = worker.call(1, "panic_text")["error"]
    index = worker.call(2, "panic_index", {"size": 3})["error"]

    assert ("handler_error", "panic", "just text") == (text["code"], text["type"], text["message"])
    assert ("handler_error", "boundsError") == (index["code"], index["type"])
    assert "index out of range [3] with length 0" in index["message"]
    for error in (text, index):
        lines = error["traceback"].splitlines()
        assert lines[0].startswith("panic: ")
        assert "main.go:" in lines[3]
    assert "alive" == worker.call(3, "identity", {"value": "alive"})["result"]


def test_command_registered_twice_fails_the_start(go: Bridge) -> None:
    """The first ping is answered with both places, and the exit status is 1."""
    with Worker(go.argv, env={"REGISTER_TWICE": "1"}) as worker:
        reply = worker.start()

        assert "handler_error" == reply["error"]["code"]
        message = reply["error"]["message"]
        assert "command 'again' is registered twice, first at " in message
        assert 2 == message.count("main.go:")
        assert 1 == worker.wait()


def test_values_without_a_place_in_json_are_refused(worker: Worker) -> None:
    """Each is named with its path."""
    kinds = ("channel", "date", "bad UTF-8", "integer keys")

    messages = {kind: worker.call(1, "unencodable", {"kind": kind})["error"]["message"] for kind in kinds}

    assert {
        "channel": "result/a/0: chan int is not a JSON type",
        "date": "result/a/0: time.Time is not a JSON type; convert it, for example with Format or Seconds",
        "bad UTF-8": "result/a/0: text with the byte 0xff at index 1 is not UTF-8; return []byte for bytes",
        "integer keys": "result/a/0: map[int]int is not a JSON type; its keys are no strings",
    } == messages


def test_floats_stay_floats_and_integers_exact(worker: Worker) -> None:
    """Go has both kinds of numbers, and the host sees the difference."""
    values = [1.0, -0.0, 1e21, 5e-324, 2**63 - 1, -(2**63), 2**200]

    echoed = worker.call(1, "identity", {"value": values})["result"]

    assert list(map(repr, values)) == list(map(repr, echoed))


def test_worker_of_the_page_for_users_is_built_and_serves(tmp_path: Path, go: Bridge) -> None:
    """The program printed there, with the bridge copied into its module, needs nothing else."""
    page = (BRIDGES_DIR.parent / "docs" / "languages" / "go.md").read_text("utf-8")
    (code,) = re.findall(r"^```go\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "main.go").write_text(code)
    (tmp_path / "go.mod").write_text("module example.org/worker\n\ngo 1.19\n")
    (tmp_path / "snakepit").mkdir()
    shutil.copy(BRIDGES_DIR / "go" / "snakepit_bridge.go", tmp_path / "snakepit")
    env = {**os.environ, "GOPROXY": "off"}
    subprocess.run(
        ["go", "build", "-o", "worker", "."], cwd=tmp_path, env=env, check=True, timeout=BUILD_TIMEOUT_S
    )
    handshake = {"versions": [1], "max_frame": 1 << 20, "capabilities": ["errors"]}
    args = {"worker_id": "w1", "initialization": True, "protocol": handshake, "start_args": {"prefix": "> "}}
    with Worker([str(tmp_path / "worker")]) as worker:
        listed = worker.call(0, "ping", args)["result"]["protocol"]["commands"]

        text = worker.call(1, "render", {"markdown": "hello", "width": 2})["result"]
        error = worker.call(2, "render", {"markdown": ""})["error"]

        assert {"params": ["markdown", "width"], "doc": "Indent a text."} == listed["render"]
        assert "  > hello" == text
        assert ("handler_error", "nothing to render") == (error["code"], error["message"])

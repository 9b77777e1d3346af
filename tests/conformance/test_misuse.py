"""What a broken host, a careless handler or a signal does to a bridge: the same in every language.

What any bridge must do stands in the conformance kit, whose cases are run here; the rest is what ours do besides.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.driver import Bridge, Worker, check_case, frame, pair_up, start_bridge

from snakepit._conformance.case import CASES, Case
from snakepit._conformance.transcripts import load_scenarios

TRANSCRIPTS = {str(scenario).replace("_", "-") for scenario in load_scenarios()}
OURS = "snakepit_bridge: "

# language: {command that ends a script in that language: the exception's type}
EXITS = {
    "python": {"leave": "SystemExit", "interrupt": "KeyboardInterrupt"},
}


@pytest.mark.parametrize(("case", "bridge"), pair_up(case for case in CASES if case.name not in TRANSCRIPTS))
def test_bridge_keeps_the_rules(case: Case, bridge: Bridge, require_runtime: Callable[[str], str]) -> None:
    """Every case that is no transcript passes."""
    check_case(case, bridge, require_runtime)

# language: {command that ends a script in that language: the exception's type}
EXITS = {
    "python": {"leave": "SystemExit", "interrupt": "KeyboardInterrupt"},
    #
    "ruby": {"leave": "SystemExit", "interrupt": "Interrupt"},
}


def test_complaints_begin_with_the_bridges_name(bridge: Bridge) -> None:
    """What is said on stderr of bad frames and bad options can be told from what handlers say."""
    with start_bridge(bridge) as worker:
        worker.start()
        for data in (frame(b"not json at all"), frame(b'{"command":"echo"}'), b"\0\0\0\0"):
            worker.send_bytes(data)
            worker.receive()

        assert 2 == worker.wait()
        lines = worker.stderr().splitlines()
        assert [f"{OURS}bad frame: "] * 3 == [line[: len(OURS) + 11] for line in lines]
    if "command-line" not in bridge.cannot:
        with Worker([*bridge.argv, "--no-such"]) as refused:
            assert 2 == refused.wait()
            assert refused.stderr().startswith(OURS)


def test_ordinary_life_leaves_stderr_empty(bridge: Bridge) -> None:
    """From the handshake to the end of the requests, and where nobody reads the replies any more."""
    with start_bridge(bridge) as worker, start_bridge(bridge) as unread:
        for each in (worker, unread):
            each.start()
            assert 1 == each.call(1, "identity", {"value": 1})["result"]

        worker.close_requests()
        unread.close_replies()
        unread.send({"id": 2, "command": "identity", "args": {"value": 2}})

        assert 0 == worker.wait()
        unread.wait()
        assert ("", "") == (worker.stderr(), unread.stderr())


def test_exit_and_interrupt_in_a_handler_are_replies(bridge: Bridge) -> None:
    """An exit or an interrupt that the language makes an exception does not end the worker; Node has neither."""
    commands = EXITS.get(bridge.language, {})
    with start_bridge(bridge) as worker:
        worker.start()

        errors = {name: worker.call(1, name)["error"] for name in commands}

        assert commands == {name: error["type"] for name, error in errors.items()}
        assert {"handler_error"} >= {error["code"] for error in errors.values()}
        assert "alive" == worker.call(2, "identity", {"value": "alive"})["result"]

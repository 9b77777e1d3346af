"""In every language a command's name finds a command and nothing else, and keys and text are data."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.driver import Bridge, find_bridges, prepare, start_bridge

NAMES = (
    *("__proto__", "constructor", "toString", "onStart", "on_start", "__class__", "__import__", "eval", "exec"),
    *("system", "exit", "quit", "die", "abort", "os.exit", "os.execute", "phpinfo", "Kernel.exit", "main::die"),
    *("java.lang.System.exit", "getClass", "hashCode", "equals", "base::quit", ".Internal", "commands", "command"),
    *("CORE::die", "Snakepit", "snakepit.null", "__index", "_G", "send", "instance_eval", "method_missing"),
    *("../identity", "identity\n", " identity", "IDENTITY", "", "$(id)", "`id`", "%s%n", "\x1b[2J", "é𝄞"),
)
KEYS: dict[str, Any] = {
    "__proto__": {"polluted": True},
    "constructor": {"prototype": 1},
    "then": "no promise",
    "toJSON": 1,
    "__class__": "int",
    "self": 1,
    "__index": 1,
    "__metatable": False,
    "class": "JSON",
    "json_class": "String",
    "^o": "Object",
    "names": [1, 2],
    "dim": [2, 2],
    "0": "zero",
    "01": "text",
    "-1": 1,
    "1e3": 1,
    " ": 1,
    "a b": {"": 1} | {"$ref": "#"},
}
TEXTS = (
    *("$(touch owned)", "`touch owned`", "; touch owned", "%s%n", "#{exit}", "${jndi:x}", "@{[exit]}"),
    *("\\x41", "NA", ""),
)


@pytest.fixture(params=find_bridges(), ids=str)
def bridge(request: pytest.FixtureRequest, require_runtime: Any) -> Bridge:
    """Return one bridge after the other."""
    chosen: Bridge = request.param
    if chosen.language != "python":
        require_runtime(chosen.runtime)
    prepare(chosen)
    return chosen


def test_only_commands_can_be_called(bridge: Bridge) -> None:
    """A name that is no command is `unknown_command`, whatever else it names in that language."""
    with start_bridge(bridge) as worker:
        worker.start()

        codes = {name: worker.call(number, name)["error"]["code"] for number, name in enumerate(NAMES, 1)}

        assert dict.fromkeys(NAMES, "unknown_command") == codes
        assert "alive" == worker.call(1000, "identity", {"value": "alive"})["result"]


def test_keys_and_text_are_data(bridge: Bridge) -> None:
    """What means something to a language comes back as it was sent, and nothing was run."""
    with start_bridge(bridge) as worker:
        worker.start()

        keys = worker.call(1, "identity", {"value": KEYS})["result"]
        texts = worker.call(2, "identity", {"value": list(TEXTS)})["result"]

        assert KEYS == keys
        assert list(TEXTS) == texts


def test_digits_in_a_session_are_text(bridge: Bridge) -> None:
    """A session's name that looks like a number too large for the language is a name, also where no number is near."""
    name = "a12345678901234567890e999"
    with start_bridge(bridge) as worker:
        worker.start()
        first = [worker.call(number, "count", session=name)["result"] for number in (1, 2)]

        worker.send({"type": "session_end", "session": name})
        again = worker.call(3, "count", session=name)["result"]

        assert ([1, 2], 1) == (first, again)

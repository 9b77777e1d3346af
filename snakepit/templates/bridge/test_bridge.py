"""The bridge against the rules of the protocol, and in a pool: pytest."""

import pytest
from main import ARGV, make_executor

from snakepit import CommandError, UnknownCommand
from snakepit.testing import conformance

test_conformance = conformance(ARGV, level=1)


def test_commands_in_a_pool() -> None:
    with make_executor(1) as executor:
        assert "HELLO" == executor.execute("shout", {"text": "hello"})
        with pytest.raises(CommandError, match="text"):
            executor.execute("shout", {})
        with pytest.raises(UnknownCommand, match="Available: count, echo, ping, shout"):
            executor.execute("whisper")


def test_sessions_have_a_state_each() -> None:
    with make_executor(1) as executor, executor.session() as one, executor.session() as other:
        assert [1, 2] == [one.execute("count"), one.execute("count")]
        assert 1 == other.execute("count")

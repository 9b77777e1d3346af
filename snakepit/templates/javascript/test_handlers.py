"""The commands through real workers: pytest."""

from collections.abc import Iterator

import pytest
from main import make_executor

from snakepit import CommandError, SnakepitExecutor


@pytest.fixture(scope="module")
def executor() -> Iterator[SnakepitExecutor]:
    """One worker for all tests."""
    with make_executor(1) as pool:
        yield pool


def test_words_are_counted(executor: SnakepitExecutor) -> None:
    assert [["cat", 2]] == executor.execute("frequent", {"text": "the cat saw the Cat", "count": 1})


def test_a_session_remembers(executor: SnakepitExecutor) -> None:
    with executor.session() as ada, executor.session() as other:
        ada.execute("remember", {"name": "Ada"})

        assert "Hello, Ada!" == ada.execute("greet")
        assert "Hello, stranger!" == other.execute("greet")


def test_a_mistake_is_an_exception(executor: SnakepitExecutor) -> None:
    with pytest.raises(CommandError):
        executor.execute("frequent", {"text": 7})

"""Calls the commands of handlers.js in a pool of workers."""

from pathlib import Path

from snakepit import JavaScriptAdapter, SnakepitExecutor

HANDLERS = Path(__file__).with_name("handlers.js")
TEXTS = ["the cat saw the other cat", "a rose is a rose is a rose", "to be or not to be"]


def make_executor(max_workers: int = 2) -> SnakepitExecutor:
    """Return the pool; every worker has started with these words before it serves."""
    adapter = JavaScriptAdapter(HANDLERS, start_args={"stop_words": ["a", "is", "or", "the", "to"]})
    return SnakepitExecutor(adapter, max_workers, timeout=30)


def main() -> None:
    """Count the words of some texts side by side, and talk with one worker."""
    with make_executor() as executor:
        for text, words in zip(TEXTS, executor.map("frequent", [{"text": text} for text in TEXTS])):
            print(f"{text}: {words}")
        with executor.session("user-7") as session:
            session.execute("remember", {"name": "Ada"})
            print(session.execute("greet"))


if __name__ == "__main__":
    main()

"""Builds the program in worker/ and calls its commands in a pool of workers."""

import subprocess
from pathlib import Path

from snakepit import CommandAdapter, SnakepitExecutor

FOLDER = Path(__file__).resolve().with_name("worker")
TEXTS = ["the cat saw the other cat", "a rose is a rose is a rose", "to be or not to be"]


def make_executor(max_workers: int = 2) -> SnakepitExecutor:
    """Return the pool of the newly built program; every worker has started with these words before it serves."""
    subprocess.run(["go", "build", "-o", "worker", "."], cwd=FOLDER, check=True)
    adapter = CommandAdapter([FOLDER / "worker"], level=1, start_args={"stop_words": ["a", "is", "or", "the", "to"]})
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

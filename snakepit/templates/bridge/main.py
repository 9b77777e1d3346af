"""Calls commands through bridge.py in a pool of workers."""

import sys
from pathlib import Path

from snakepit import CommandAdapter, SnakepitExecutor

HERE = Path(__file__).resolve().parent
# Of the translation this is e.g. ["tclsh", str(HERE / "bridge.tcl"), "--handlers", str(HERE / "handlers.tcl")].
ARGV = [sys.executable, str(HERE / "bridge.py"), "--handlers", str(HERE / "handlers.py")]


def make_executor(max_workers: int = 2) -> SnakepitExecutor:
    """Return a pool of workers that run the bridge."""
    return SnakepitExecutor(CommandAdapter(ARGV, level=1), max_workers, timeout=30)


def main() -> None:
    """Shout some texts side by side, and count in a session."""
    with make_executor() as executor:
        print(list(executor.map("shout", [{"text": "hello"}, {"text": "world"}])))
        with executor.session("user-7") as session:
            print([session.execute("count") for _ in range(3)])


if __name__ == "__main__":
    main()

"""Uses a function that numpy 2 has dropped, from a host that has another numpy or none: main.py VENV."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from snakepit import PythonAdapter, SnakepitExecutor

HANDLERS = Path(__file__).with_name("handlers.py")


def main(environment: Path) -> None:
    """The workers' interpreter is that of the other environment; its Python may be as old as 3.8."""
    try:
        numpy = f"numpy {version('numpy')}"
    except PackageNotFoundError:
        numpy = "no numpy"
    print(f"host: Python {platform.python_version()}, {numpy}")
    adapter = PythonAdapter(HANDLERS, python=environment / "bin" / "python")
    with SnakepitExecutor(adapter, max_workers=2, timeout=30) as pool:
        for answer in pool.map("describe", [{"values": [1, 2, 4]}, {"values": [10, 20, 40]}]):
            print(
                f"worker: Python {answer['python']}, numpy {answer['numpy']}:"
                f" mean {answer['mean']:.2f}, area {answer['trapezoid']:.1f}"
            )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: main.py VENV, made by: python3.8 -m venv VENV && VENV/bin/pip install 'numpy<2'")
    main(Path(sys.argv[1]).absolute())

"""What an installation must be able to do; run by itself, from an empty directory.

Prints one JSON object: ``{"package": str, "bridge": str, "version": str, "ping": dict, "powers": [int]}``.
"""

from __future__ import annotations

import json

import snakepit
from snakepit import PythonAdapter, SnakepitExecutor
from snakepit._bridges import bridge_path


def main() -> None:
    """Call a command worker and a callable worker once each, and report."""
    with SnakepitExecutor(PythonAdapter(), max_workers=1) as executor:
        ping = executor.submit("ping", {}, timeout=30).result(60)
    with SnakepitExecutor(max_workers=1) as executor:
        powers = list(executor.map(pow, [2, 3], [10, 10], timeout=60))
    report = {
        "package": snakepit.__file__,
        "bridge": str(bridge_path("python/snakepit_bridge.py")),
        "version": snakepit.__version__,
        "ping": ping,
        "powers": powers,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""What an installation must be able to do; run by itself, from an empty directory.

Prints one JSON object: ``{"package": str, "bridge": str, "version": str, "ping": dict, "powers": [int],
"conformance": str}``.
"""

from __future__ import annotations

import json
import sys

import snakepit
from snakepit import PythonAdapter, SnakepitExecutor
from snakepit._bridges import bridge_path
from snakepit._conformance.runner import Suite, select_cases
from snakepit._conformance.survey import Target


def main() -> None:
    """Call a command worker and a callable worker once each, and report."""
    with SnakepitExecutor(PythonAdapter(), max_workers=1) as executor:
        ping = executor.submit("ping", {}, timeout=30).result(60)
    with SnakepitExecutor(max_workers=1) as executor:
        powers = list(executor.map(pow, [2, 3], [10, 10], timeout=60))
    suite = Suite(Target((sys.executable, str(bridge_path("python/snakepit_bridge.py"))), 60.0))
    report = {
        "package": snakepit.__file__,
        "bridge": str(bridge_path("python/snakepit_bridge.py")),
        "version": snakepit.__version__,
        "ping": ping,
        "powers": powers,
        "conformance": " ".join(outcome.status for outcome in suite.run_all(select_cases(1, ["ping"]))),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

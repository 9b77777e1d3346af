"""What ``import snakepit`` costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from architecture.survey import ROOT

LATE = {"asyncio", "click", "loky", "psutil"}
PROBE = """
import json, sys, time
started = time.perf_counter()
import snakepit
elapsed_s = time.perf_counter() - started
print(json.dumps([elapsed_s, sorted(sys.modules)]))
"""


def test_import_is_light() -> None:
    """``import snakepit`` loads no heavy module; its time is printed, not asserted."""
    argv = [sys.executable, "-c", PROBE]

    runs = [json.loads(subprocess.check_output(argv, cwd=ROOT, timeout=60)) for _ in range(5)]

    median_ms = 1000 * statistics.median(elapsed_s for elapsed_s, _ in runs)
    print(f"import snakepit: median {median_ms:.0f} ms")
    assert set() == LATE & set(runs[0][1])

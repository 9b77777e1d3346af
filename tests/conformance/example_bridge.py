"""What the tests of the example bridges of docs/bridges.md have in common."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from conformance.driver import Worker

from snakepit import ScriptAdapter
from snakepit._conformance.case import Case
from snakepit._conformance.runner import Suite

__all__ = ("PAGE", "adapter_of", "begin", "blocks_of_page", "check_applicable", "check_shown")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bridges.md"
# What a bridge with the capabilities errors, pipeline and session, and none of the test commands, need not have.
ABSENT = re.compile(
    r"command \w+|capability (deadline|attachments|batch|log|claim)|the fields of section 12 in its (ping|echo)"
)


def adapter_of(folder: Path, name: str) -> type[ScriptAdapter]:
    """Return the adapter of an example."""
    spec = importlib.util.spec_from_file_location(f"adapter_of_{folder.name}", folder / "adapter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[ScriptAdapter] = getattr(module, name)
    return found


def begin(worker: Worker, start_args: Any = None, max_frame: int = 1 << 20) -> Any:
    """Make the handshake and return the reply."""
    offer = {"versions": [1], "max_frame": max_frame, "capabilities": ["errors", "session"]}
    return worker.call(0, "ping", {"worker_id": "w1", "protocol": offer, "start_args": start_args})


def check_applicable(suite: Suite, case: Case, cannot: Collection[str] = ()) -> None:
    """Assert that a case passes, needs what the bridge does not have, or is one that its language cannot pass."""
    outcome = suite.run(case)
    if outcome.finding is not None:
        raise outcome.finding
    if outcome.status == "cannot":
        assert case.name in cannot
    elif outcome.status != "passed":
        assert "not applicable" == outcome.status
        reason = outcome.reason or ""
        absent = reason.removeprefix("the bridge does not have: ").split(", ")
        assert reason.startswith("it is for ") or all(map(ABSENT.fullmatch, absent)), reason


def blocks_of_page(language: str) -> list[str]:
    """Return the page's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def check_shown(shown: Sequence[str], folder: Path) -> None:
    """Assert that each block is in a file of the folder word for word, and shown once."""
    sources = [path.read_text("utf-8") for path in sorted(folder.iterdir()) if path.is_file()]
    assert sorted(set(shown)) == sorted(shown)
    assert [] == [block for block in shown if not any(block in source for source in sources)]

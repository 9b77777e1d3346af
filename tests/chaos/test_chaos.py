"""The short form of ``make chaos``: with a fixed seed, part of every run of the suite."""

from __future__ import annotations

from pathlib import Path

from chaos.era import KINDS
from chaos.play import Chaos

SEED = 20
SECONDS = 8.0


def test_pools_under_fire_lose_nothing(node: str, tmp_path: Path) -> None:
    """While workers, guardians and pools are ended at random, every request ends once and with the truth."""
    chaos = Chaos(SEED, SECONDS, fault_pause_s=0.08, pool_s=(1.0, 3.0))

    outcome = chaos.run()

    outcome.write(tmp_path / "chaos.json")
    assert [] == outcome.findings, outcome.table()
    # A run in which nothing happened would show nothing.
    assert set(KINDS) == {numbers["name"].split("-")[0] for numbers in outcome.eras if numbers["completed"]}
    assert sum(outcome.numbers["faults"].values()) > 0
    assert 0 < outcome.numbers["completed"] <= outcome.numbers["runs written down by workers"]

"""``python -m chaos chaos`` and ``python -m chaos soak``, with the tests folder on the path; see the Makefile."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import random
import sys
from pathlib import Path

from .play import Chaos
from .soak import PLANTS, Soak


def main() -> int:
    """Run, print the table, write the JSON; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("mode", choices=("chaos", "soak"))
    parser.add_argument("--seconds", type=float, default=None, help="default: 600 for chaos, 1800 for soak")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--out", type=Path, default=Path("build/reliability"), help="folder of the results")
    parser.add_argument("--plant", action="append", default=[], choices=PLANTS, help="leak on purpose (soak)")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    logging.basicConfig(level=logging.CRITICAL, format="%(asctime)s %(name)s %(message)s")
    seconds = given.seconds or (600.0 if given.mode == "chaos" else 1800.0)
    print(f"{given.mode}: seed {seed}, {seconds:.0f} s", flush=True)
    # Whatever hangs: every thread's stack, and the end; the guardian ends the workers.
    faulthandler.dump_traceback_later(seconds + 240, exit=True)
    return _chaos(seed, seconds, given.out) if given.mode == "chaos" else _soak(seed, seconds, given.out, given.plant)


def _chaos(seed: int, seconds: float, out: Path) -> int:
    outcome = Chaos(seed, seconds).run()
    path = out / f"chaos-{seed}.json"
    outcome.write(path)
    print(outcome.table())
    for row, text in outcome.findings[:20]:
        print(f"  {row}: {text[:2000]}")
    print(f"{len(outcome.findings)} discrepancies; written to {path}")
    return 1 if outcome.findings else 0


def _soak(seed: int, seconds: float, out: Path, plants: list[str]) -> int:
    soak = Soak(seed, seconds, out, tuple(plants))
    checks = soak.run()
    print(soak.table(checks))
    print(f"written to {soak.write(checks)}")
    return 0 if all(check.good for check in checks) else 1


sys.exit(main())

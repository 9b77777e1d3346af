"""Runs the benchmarks, or checks that none of their ratios has become worse than the recorded ones.

python benchmarks/run.py [--quick] [--check] [--folder build/bench] [SCRIPT ...]

``--check`` runs the quick form.  A ratio that is a fifth worse than in ``recorded.json`` is measured up to twice
more, and the best of it counts: what other programs do on the machine makes ratios worse, hardly ever better.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from support import regressions, scripts

RECORD = scripts.BENCHMARKS / "recorded.json"
MORE_TRIES = 2


def check(names: list[str], folder: Path, record: Path) -> int:
    """Run, compare, and say which rows are worse, and by how much; returns the exit status."""
    recorded = regressions.read_record(record)
    rows = {row_id: row for row_id, row in recorded["rows"].items() if row_id.partition(".")[0] in names}
    recorded["rows"] = rows
    values: dict[str, float] = {}
    pending = list(dict.fromkeys(row_id.partition(".")[0] for row_id in rows))
    for attempt in range(1 + MORE_TRIES):
        failed = scripts.run(pending, folder, quick=True)
        if failed:
            print(f"failed: {', '.join(failed)}")
            return 1
        for content in scripts.read(folder, pending).values():
            for row in content["rows"]:
                if row["id"] in rows:
                    before = values.get(row["id"], row["value"])
                    values[row["id"]] = regressions.better(row["goal_op"], before, row["value"])
        worse = regressions.compare(recorded, values)
        if not worse:
            print(f"{len(rows)} ratios, none of them {regressions.TOLERANCE:.0%} worse than at {recorded['commit']}")
            return 0
        pending = list(dict.fromkeys(each.script for each in worse))
        if attempt < MORE_TRIES:
            print(f"again, since {len(worse)} are worse: {', '.join(pending)}\n")
    print(f"worse than at {recorded['commit']}, in the best of {1 + MORE_TRIES} runs:")
    for each in worse:
        print(f"  {each}")
    return 1


def main() -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--check", action="store_true", help="compare with the recorded ratios")
    parser.add_argument("--folder", type=Path, help="for the results; build/bench, or build/bench-check")
    parser.add_argument("--recorded", type=Path, default=RECORD, help="the record to compare with")
    parser.add_argument("script", nargs="*", help=f"all: {', '.join(scripts.SCRIPTS)}")
    given = parser.parse_args()
    unknown = sorted(set(given.script) - set(scripts.SCRIPTS))
    if unknown:
        parser.error(f"no script {', '.join(unknown)}; there are {', '.join(scripts.SCRIPTS)}")
    names = [name for name in scripts.SCRIPTS if not given.script or name in given.script]
    folder = given.folder or scripts.ROOT / "build" / ("bench-check" if given.check or given.quick else "bench")
    folder = folder.resolve()
    if given.check:
        return check(names, folder, given.recorded)
    failed = scripts.run(names, folder, given.quick)
    print(f"failed: {', '.join(failed)}" if failed else f"results in {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

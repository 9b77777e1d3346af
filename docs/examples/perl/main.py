"""Analyses an access log with Perl's regular expressions, a part of the file a worker."""

from collections import Counter
from pathlib import Path

from snakepit import PerlAdapter, SnakepitExecutor

HERE = Path(__file__).resolve().parent
PART_LINES = 20


def main() -> None:
    """Split the log, have the parts read side by side, and add up what was found."""
    lines = (HERE / "access.log").read_text().splitlines()
    parts = [{"lines": lines[start : start + PART_LINES]} for start in range(0, len(lines), PART_LINES)]
    requests: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    errors = unreadable = 0
    with SnakepitExecutor(PerlAdapter(HERE / "handlers.pl"), max_workers=2, timeout=30) as pool:
        for found in pool.map("analyse", parts):
            for path, numbers in found["paths"].items():
                requests[path] += numbers["requests"]
                seconds[path] += numbers["seconds"]
            errors += found["errors"]
            unreadable += found["unreadable"]
    for path, count in requests.most_common():
        print(f"{path:14} {count:3} requests, {1000 * seconds[path] / count:4.0f} ms each")
    print(f"{sum(requests.values())} requests, {errors} server errors, {unreadable} lines unreadable")


if __name__ == "__main__":
    main()

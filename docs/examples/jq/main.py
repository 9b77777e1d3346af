"""Filters JSON Lines through jq processes that stay: no new process for each line."""

from pathlib import Path

from snakepit import LineAdapter, SnakepitExecutor

EVENTS = Path(__file__).with_name("events.jsonl")
FILTER = "{who: (.user.name // \"nobody\"), event, spent: (.amount // 0), tags: (.tags | length)}"


def main() -> None:
    """``--unbuffered`` makes jq answer each line at once; ``reply="json"`` makes its answers Python values."""
    adapter = LineAdapter(["jq", "--compact-output", "--unbuffered", FILTER], reply="json")
    with SnakepitExecutor(adapter, max_workers=2, timeout=10) as pool:
        rows = list(pool.map("line", EVENTS.read_text().splitlines()))
    for row in rows:
        print(f"{row['who']:8} {row['event']:9} {row['spent']:6.2f} {row['tags']} tags")
    print(f"spent in all: {sum(row['spent'] for row in rows):.2f}")


if __name__ == "__main__":
    main()

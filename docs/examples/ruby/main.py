"""Writes a report with Ruby's csv and erb."""

from pathlib import Path

from snakepit import CommandError, RubyAdapter, SnakepitExecutor

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Report on the sales; a table without a column that is needed is an exception with Ruby's own words."""
    with SnakepitExecutor(RubyAdapter(HERE / "handlers.rb"), max_workers=1, timeout=30) as pool:
        print(pool.execute("report", {"csv": (HERE / "sales.csv").read_text(), "title": "Sales by region"}))
        try:
            pool.execute("report", {"csv": "product,units\ncup,1\n"})
        except CommandError as error:
            print(f"without regions: {error}")


if __name__ == "__main__":
    main()

"""Cleans HTML with PHP's DOMDocument, which forgives what browsers forgive."""

from pathlib import Path

from snakepit import PHPAdapter, SnakepitExecutor

HANDLERS = Path(__file__).with_name("handlers.php")
PAGES = [
    "<p>Café <b>bold<p onclick='steal()'>unclosed",
    "<script>alert(1)</script><a href='javascript:alert(2)'>a link</a><!-- secret -->",
    "<ul><li>one<li>two</ul>",
]


def main() -> None:
    """Clean some pages side by side."""
    with SnakepitExecutor(PHPAdapter(HANDLERS), max_workers=2, timeout=30) as pool:
        for page, cleaned in zip(PAGES, pool.map("clean", [{"html": page} for page in PAGES]), strict=True):
            print(f"{page}\n  -> {cleaned['html'].strip()!r}, {cleaned['removed']} removed")


if __name__ == "__main__":
    main()

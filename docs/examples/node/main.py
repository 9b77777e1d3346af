"""Renders a directory of Markdown files to HTML with marked, a library for Node: main.py [SOURCE TARGET]."""

import sys
import tempfile
from pathlib import Path

from snakepit import JavaScriptAdapter, SnakepitExecutor

HERE = Path(__file__).resolve().parent


def main(source: Path, target: Path) -> None:
    """Render every file; results come in the order of the files, whichever worker was first."""
    pages = sorted(source.glob("*.md"))
    texts = ({"markdown": page.read_text(encoding="utf-8")} for page in pages)
    with SnakepitExecutor(JavaScriptAdapter(HERE / "handlers.js"), max_workers=2, timeout=30) as pool:
        for page, html in zip(pages, pool.map("render", texts), strict=True):
            (target / f"{page.stem}.html").write_text(html, encoding="utf-8")
            print(f"{page.name}: {len(html):,} characters, {html.count('<h2')} sections")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(HERE.parents[1], Path(folder))

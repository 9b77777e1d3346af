"""Writes the results of the benchmarks into the documentation, or records their ratios.

python benchmarks/report.py [--folder build/bench] [--page docs/performance.md docs/languages.md]
python benchmarks/report.py --record [--folder build/bench-check ...] [--recorded benchmarks/recorded.json]

The pages have places for tables, ``<!-- begin: NAME -->`` to ``<!-- end: NAME -->``: ``goals`` and one for each script.
What stands there is replaced; a script without results leaves its place as it is.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support import regressions, scripts
from support.results import ROW_COLUMNS, header, row_cells, table

PAGES = [scripts.ROOT / "docs" / name for name in ("performance.md", "languages.md")]
"""Plots are drawn beside the first of them."""
RECORD = scripts.BENCHMARKS / "recorded.json"


def replace(texts: dict[Path, str], name: str, content: str) -> None:
    """Put the content at the place of that name, in the first page that has one.

    Args:
        texts: ``{page: text}``.
        name: What the marks say.
        content: Stands between them.

    Raises:
        SystemExit: No page has such a place.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    for page, text in texts.items():
        if pattern.search(text) is not None:
            texts[page] = pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text, count=1)
            return
    pages = "the page has" if len(texts) == 1 else "the pages have"
    raise SystemExit(f"{pages} no place for {name!r}: {begin} ... {end}")


def goals(results: Iterable[dict[str, Any]]) -> str:
    """Return the table of all judged rows."""
    rows = [
        (f"`{content['script']}`", *row_cells(row)) for content in results for row in content["rows"] if row["goal_op"]
    ]
    met = sum(row[-1] == "yes" for row in rows)
    return f"{met} of {len(rows)} goals are met.\n\n{table(('script', *ROW_COLUMNS), rows)}"


def section(content: dict[str, Any]) -> str:
    """Return what one script has to say."""
    parts = [header(content), table(ROW_COLUMNS, (row_cells(row) for row in content["rows"]))]
    for each in content["tables"]:
        parts += [f"{each['title']}:", table(each["columns"], each["rows"])]
    parts += [f"![{plot['title']}](plots/{plot['id']}.svg)" for plot in content["plots"]]
    return "\n\n".join(parts)


def draw(results: list[dict[str, Any]], folder: Path) -> None:
    """Draw all plots."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "snakepit", "font.size": 9})
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)

    def save(figure: Any, name: str) -> None:
        figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)

    for content in results:
        for plot in content["plots"]:
            figure, axes = pyplot.subplots(figsize=(6, 3.2))
            for name, points in plot["lines"].items():
                axes.loglog(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=name)
            axes.set(title=plot["title"], xlabel=plot["x"], ylabel=plot["y"])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
            save(figure, plot["id"])
    judged = [row for content in results for row in content["rows"] if row["goal_op"]]
    if judged:
        save(_goals_figure(pyplot, judged), "goals")


def _goals_figure(pyplot: Any, judged: list[dict[str, Any]]) -> Any:
    """Draw every judged row against its goal: to the right of 1 it is met."""
    figure, axes = pyplot.subplots(figsize=(6, 0.6 + 0.17 * len(judged)))
    rows = judged[::-1]
    places = range(len(rows))
    bounds = [sorted(_reached(row, bound) for bound in row["spread"]) for row in rows]
    colors = ["tab:green" if row["met"] else "tab:red" for row in rows]
    axes.hlines(places, *zip(*bounds, strict=True), colors=colors, linewidth=1, alpha=0.5)
    axes.scatter([_reached(row, row["value"]) for row in rows], places, s=9, c=colors)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, [row["id"] for row in rows], fontsize=6)
    axes.set(title="Every goal: 1 is the goal, to the right it is exceeded", xlabel="times the goal")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _reached(row: dict[str, Any], value: float) -> float:
    share: float = value / row["goal_value"]
    floor = 1e-3  # a row can be infinitely better than its goal; the axis is logarithmic
    return 1 / max(share, floor) if row["goal_op"] == "<=" else max(share, floor)


def main() -> None:
    """Write the page, or the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="record the ratios; nothing else is written")
    parser.add_argument(
        "--folder",
        type=Path,
        nargs="+",
        help="of the results; build/bench, with --record build/bench-check; of several the medians are recorded",
    )
    parser.add_argument("--page", type=Path, nargs="+", default=PAGES, help="the pages with the places")
    parser.add_argument("--recorded", type=Path, default=RECORD, help="the record to write")
    given = parser.parse_args()
    folders = given.folder or [scripts.ROOT / "build" / ("bench-check" if given.record else "bench")]
    runs = [scripts.read(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if not run:
            raise SystemExit(f"no results in {folder}; `make bench` makes them")
    if given.record:
        made = regressions.record(content for run in runs for content in run.values())
        given.recorded.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        print(f"{len(made['rows'])} ratios of {len(runs)} runs recorded in {given.recorded}")
        return
    if len(runs) > 1:
        parser.error("the pages have the results of one folder")
    found = runs[0]
    results = list(found.values())
    texts = {page: page.read_text(encoding="utf-8") for page in given.page}
    for name, content in found.items():
        replace(texts, name, section(content))
    missing = [name for name in scripts.SCRIPTS if name not in found and name not in scripts.OPTIONAL]
    if missing:
        print(f"the table of goals is left as it is: no results of {', '.join(missing)}")
    else:
        replace(texts, "goals", f"{goals(results)}\n\n![Every goal](plots/goals.svg)")
    draw(results, given.page[0].parent / "plots")
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
    print(f"{', '.join(map(str, texts))}: the results of {', '.join(found)}")


if __name__ == "__main__":
    main()

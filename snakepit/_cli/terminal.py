"""What the command line prints with: consoles, progress, plain words for numbers.

Runs on the main thread of the ``snakepit`` command; owns nothing.  Needs the extra ``cli``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .._text import escape_text

__all__ = ("Meter", "complain", "make_console", "make_table", "write_json")

PLAIN_WIDTH = 400
"""Arbitrary, wider than any line: a file or a pipe has no edge at which lines would have to break."""
# JSON leaves them as they are; a terminal obeys the ones (C1 controls), and UTF-8 has no room for the others.
_UNFIT = re.compile("[\x7f-\x9f\ud800-\udfff]")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich calls this inside its `except BrokenPipeError`; `cli.main` is the place to end quietly

    # Every text goes through here, also those of tables.  Much of it is the words of workers and programs, and paths.
    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is to be shown: no control characters, nothing that the output cannot encode."""
        plain = escape_text(text, keep_layout=True).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(plain, **options)


def make_console(file: TextIO | None = None) -> Console:
    """Return a console for ``file`` (None: stdout): coloured on a terminal, plain and unbroken elsewhere."""
    # "list[str]" is no markup, and ":x:" no picture.
    plain: dict[str, Any] = {"file": file or sys.stdout, "highlight": False, "markup": False, "emoji": False}
    console = _Console(**plain)
    return console if console.is_terminal else _Console(**plain, width=PLAIN_WIDTH)


def make_table(console: Console, *columns: str, title: str | None = None) -> Table:
    """Return an empty table; a column whose name begins with ``>`` is aligned to the right."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        pad_edge=False,
        show_header=any(columns),
    )
    for name in columns:
        table.add_column(
            name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold"
        )
    return table


def write_json(
    file: IO[str], value: object, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> None:
    """Write a value as a line of JSON, or several; no control character of it reaches a terminal."""
    is_unicode = (getattr(file, "encoding", None) or "").lower().startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=not is_unicode, default=default)
    file.write(_UNFIT.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def complain(error: BaseException, *more: str | None) -> None:
    """Print an error to stderr, then texts that explain it; none of their control characters reaches a terminal."""
    for text in (f"snakepit: {type(error).__name__}: {error}", *more):
        if text:
            print(escape_text(text.rstrip(), keep_layout=True), file=sys.stderr)


class Meter:
    """Progress of one step: a bar on a terminal, a line at each quarter elsewhere; a context manager.

    Args:
        console: Where it is shown.
        label: What is being done.
        total: Number of items, >= 0.
    """

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console = console
        self._label = label
        self._total = total
        self._done = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count items as done."""
        before, self._done = self._done, self._done + count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif 4 * before // max(1, self._total) != 4 * self._done // max(1, self._total):
            self._console.print(f"{self._label}: {self._done} of {self._total}")

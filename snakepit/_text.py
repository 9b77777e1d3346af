"""Text from workers made fit to be shown: no control characters, bounded, whatever they sent.

Pure; used on any thread.  A terminal obeys control characters, and a log takes a line break for a new record.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

__all__ = ("escape", "escape_text", "show", "show_argv")

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROL |= {0x2028: "\\u2028", 0x2029: "\\u2029"}
_CONTROL_BUT_LAYOUT = {code: text for code, text in _CONTROL.items() if code not in (0x09, 0x0A)}

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 120


def escape(raw: bytes, *, keep_layout: bool = False) -> str:
    """Return ``raw`` as text without control characters (newline and tab stay with ``keep_layout``)."""
    return escape_text(raw.decode("utf-8", "backslashreplace"), keep_layout=keep_layout)


def escape_text(text: str, *, keep_layout: bool = False) -> str:
    """Return ``text`` without control characters (newline and tab stay with ``keep_layout``)."""
    return text.translate(_CONTROL_BUT_LAYOUT if keep_layout else _CONTROL)


def show(value: object, limit: int = 200) -> str:
    """Return the beginning of a decoded value's repr.

    Unlike ``repr`` it costs no more than what is shown, and goes three levels deep: a value that was nested
    just within the decoder's limit could not be walked again from a few calls further down the stack.
    """
    return _short.repr(value)[:limit]


def show_argv(argv: Iterable[str], limit: int = 200) -> str:
    """Return a command line for a message, each word to ``limit`` characters: one may hold a whole program."""
    return " ".join(word if len(word) <= limit else f"{word[:limit]}... ({len(word)} characters)" for word in argv)

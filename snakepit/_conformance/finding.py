"""What a case found, in words that help someone who has never read this code.

Pure; used on any thread.
"""

from __future__ import annotations

import json

from .._text import escape, escape_text

__all__ = ("Finding", "GoneFinding", "SilenceFinding", "show_bytes", "show_json")

SHOWN = 300
"""Characters of a message or value that a finding shows; arbitrary, about four lines of a terminal."""


class Finding(Exception):
    """A bridge did something else than the protocol says.

    Args:
        what: What is wrong, in one sentence.
        sent: What the bridge was sent last, fit to be shown.
        expected: What it should have done.
        received: What it did.
        hint: Where to look in the bridge.
    """

    def __init__(
        self,
        what: str,
        *,
        sent: str | None = None,
        expected: str | None = None,
        received: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.sent = sent
        self.expected = expected
        self.received = received
        self.hint = hint
        self.stderr: str | None = None

    def parts(self) -> dict[str, str]:
        """Return what is known, ``{label: text}``, in the order in which it is read."""
        named = {
            "sent": self.sent,
            "expected": self.expected,
            "received": self.received,
            "hint": self.hint,
            "stderr": self.stderr,
        }
        return {label: text for label, text in named.items() if text}

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"{label:<8}  {text}" for label, text in self.parts().items())])


class SilenceFinding(Finding):
    """Nothing came, or nothing was taken, within the time."""


class GoneFinding(Finding):
    """The worker closed its replies where one was due."""


def show_bytes(data: bytes, limit: int = SHOWN) -> str:
    """Return bytes as text without control characters, shortened in the middle."""
    return _shorten(escape(data[: 4 * limit] + data[-limit:] if len(data) > 5 * limit else data), limit, len(data))


def show_json(value: object, limit: int = SHOWN) -> str:
    """Return a value as JSON, shortened in the middle."""
    text = json.dumps(value, ensure_ascii=False)
    return _shorten(escape_text(text.encode("utf-8", "backslashreplace").decode()), limit, len(text))


def _shorten(text: str, limit: int, size: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit - 80]} ... {text[-60:]} ({size} in all)"

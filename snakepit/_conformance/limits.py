"""What a language cannot do: the table of PROTOCOL.md, section 15, by the names of its rules."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ("KNOWN_LIMITS",)

KNOWN_LIMITS: Mapping[str, Mapping[str, str]] = {
    "go": {"command-line": "the worker is the user's own program, whose options are its own"},
    "php": {
        "async": "there is no event loop",
        "busy-eof": "there are no threads, so nobody looks while a handler runs",
    },
    "perl": {
        "async": "there is no event loop",
        "busy-eof": "one thread, and a signal would interrupt the handler's own waits",
    },
    "lua": {
        "async": "there is no event loop",
        "busy-eof": "one thread, and no way to look at a pipe without waiting",
        "claim": "a read of an empty pipe waits",
        "close-on-exec": "the flag cannot be set",
        "sigint": "the program lua has a handler of its own, for the first one only",
        "sigpipe": "the signal can be ignored only together with every subprocess",
        "sockets": "a socket cannot be opened by its number",
    },
    "r": {
        "async": "there is no event loop",
        "busy-eof": "one thread, and no way to look at a pipe without waiting",
        "close-on-exec": "the flag cannot be set",
        "nul-text": "text ends at U+0000, so such a request is refused",
        "sockets": "a socket cannot be opened by its number",
    },
    "tcl": {
        "busy-eof": "one thread, which runs the handler",
        "close-on-exec": "the flag cannot be set",
        "sigint": "the core of Tcl knows no signals",
        "sockets": "a socket cannot be opened by its number",
    },
}
"""``{language: {name of the rule: reason}}``; a case whose rule is named here is not run for that language."""

"""What a worker writes to stderr: escaped, bounded, whole lines, and never a wait for its reader."""

from __future__ import annotations

import logging
import os

import pytest

from snakepit._supervision import stderr as _stderr
from snakepit._supervision.stderr import WorkerStderr, write_ready
from snakepit._text import escape


def test_escape_shows_control_characters() -> None:
    """Control characters and undecodable bytes become visible text."""
    raw = "a\x1b[31m\n\té\x85\u2028".encode() + b"\xff"

    assert "a\\x1b[31m\\x0a\\x09é\\x85\\u2028\\xff" == escape(raw)
    assert "a\\x1b[31m\n\té\\x85\\u2028\\xff" == escape(raw, keep_layout=True)


def test_tail_keeps_the_last_bytes_and_whole_characters() -> None:
    """The tail is bounded and does not begin in the middle of a character."""
    record = WorkerStderr("w", 5, None)

    record.feed("abcédé".encode())

    assert "dé" == record.tail[-2:]
    assert len(record.tail.encode()) <= 5
    assert "\\x" not in record.tail


def test_no_tail_is_kept_of_nothing() -> None:
    """With 0 bytes nothing is kept."""
    record = WorkerStderr("w", 0, None)

    record.feed(b"abc")

    assert "" == record.tail


def test_lines_are_logged_whole_and_cut(caplog: pytest.LogCaptureFixture) -> None:
    """Lines are put together from pieces, escaped, cut when too long; the last needs no newline."""
    caplog.set_level(logging.INFO, "snakepit.worker")
    record = WorkerStderr("w1", 10, logging.getLogger("snakepit.worker"))

    for piece in (b"on", b"e\r\ntw\x07o\n", b"x" * 20_000, b"y\nend"):
        record.feed(piece)
    record.close()

    one, two, long, end = caplog.messages
    assert ("[w1] one", "[w1] tw\\x07o", "[w1] end") == (one, two, end)
    assert "[w1] " + "x" * _stderr._MAX_LINE_BYTES + " ... [cut]" == long


def test_a_raising_log_handler_does_no_harm() -> None:
    """What a user's log handler raises stays with it."""

    class Raising(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("handler")

    logger = logging.Logger("apart", logging.INFO)
    logger.addHandler(Raising())
    record = WorkerStderr("w1", 10, logger)

    record.feed(b"line\n")

    assert "line\n" == record.tail


def test_writing_takes_only_what_fits() -> None:
    """A full pipe does not block the writer."""
    read, write = os.pipe()

    written = write_ready(write, memoryview(bytes(1 << 20)))

    assert 0 < written < 1 << 20
    os.close(read)
    with pytest.raises(OSError):
        write_ready(write, memoryview(b"x"))
    os.close(write)

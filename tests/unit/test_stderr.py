"""What a worker writes to stderr: escaped, bounded, whole lines, and never a wait for its reader."""

from __future__ import annotations

import logging
import os
import pty
import selectors
import signal
import socket
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from snakepit._supervision import stderr as _stderr
from snakepit._supervision.stderr import StderrReader, WorkerStderr, write_ready
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


@contextmanager
def bounded() -> Iterator[None]:
    """Fail where a system call blocks for 10 s."""

    def blocked(number: int, frame: types.FrameType | None) -> None:
        raise AssertionError("the writer was blocked")

    before = signal.signal(signal.SIGALRM, blocked)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_writing_to_a_stuck_terminal_does_not_block() -> None:
    """A terminal polls writable with less room than is written; its flags stay as they were."""
    master, slave = pty.openpty()
    data = memoryview((b"x" * 79 + b"\n") * 400)

    with bounded():
        while write_ready(slave, data):
            pass

    assert os.get_blocking(slave)
    assert os.read(master, 79) == b"x" * 79
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_writing_does_not_block_beside_another_writer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another writer has filled between the question and the write takes nothing; flags stay."""

    class AlwaysReady:
        def register(self, fd: int, events: int) -> None:
            return

        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            return [(write, 4)]

    ends = socket.socketpair() if kind == "socket" else None
    read, write = os.pipe() if ends is None else (end.detach() for end in ends)
    monkeypatch.setattr(_stderr.select, "poll", AlwaysReady)
    socket.setdefaulttimeout(5.0)
    try:
        with bounded():
            first = write_ready(write, memoryview(bytes(1 << 24)))
            second = write_ready(write, memoryview(b"x"))
    finally:
        socket.setdefaulttimeout(None)

    assert 0 < first < 1 << 24
    assert 0 == second
    assert os.get_blocking(write)
    os.close(read)
    os.close(write)


def test_a_file_is_written_where_it_stands() -> None:
    """The offset of a regular file is the host's own."""
    with tempfile.TemporaryFile() as file:
        os.write(file.fileno(), b"one ")

        assert 3 == write_ready(file.fileno(), memoryview(b"two"))

        file.seek(0)
        assert b"one two" == file.read()


class Child:
    """A worker that has ended and left its output in its pipe."""

    def __init__(self, data: bytes) -> None:
        self.stderr_fd, write = os.pipe()
        os.write(write, data)
        os.close(write)

    def close_stderr(self) -> None:
        os.close(self.stderr_fd)
        self.stderr_fd = None  # type: ignore[assignment]


def test_workers_that_come_and_go_leave_a_bounded_part_behind() -> None:
    """With fd 2 stuck, what ended workers leave is held up to a limit; one note tells of the rest."""
    read, write = os.pipe()
    saved = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    piece = b"y" * 60_000
    limit = _stderr._HELD_AT_MOST_BYTES
    arrived = b""
    try:
        with selectors.PollSelector() as selector:
            reader = StderrReader(selector)
            for _ in range(40):
                record = WorkerStderr("w", 100, None)
                reader.drain(Child(piece), record)  # type: ignore[arg-type]
                assert len(reader.held) <= limit
                assert "y" * 100 == record.tail
            while reader.held:
                arrived += os.read(read, 1 << 16)
                reader._pass_on()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    while part := os.read(read, 1 << 16):
        arrived += part
    os.close(read)

    kept, _, note = arrived.partition(b"\n")
    assert limit <= len(kept) < 40 * len(piece)
    dropped = 40 * len(piece) - len(kept)
    assert f"[snakepit: {dropped} bytes of stderr of ended workers dropped]\n".encode() == note


def test_a_record_is_cut_after_its_escapes() -> None:
    """Control characters, four characters each when shown, do not make a record longer than the limit."""
    messages: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.Logger("apart", logging.INFO)
    logger.addHandler(Kept())

    WorkerStderr("w", 10, logger).feed(bytes(_stderr._MAX_LINE_BYTES) + b"\n")

    assert [len("[w]  ... [cut]") + _stderr._MAX_LINE_BYTES] == [len(message) for message in messages]

"""Frames over two pipes, without ever waiting: what does not fit stays, what is there is read."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from snakepit._pool import channel as channel_module
from snakepit._pool.channel import Channel


class Pair(NamedTuple):
    """A channel and the worker's ends of its pipes."""

    channel: Channel
    requests: int
    replies: int
    claims: int


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Return a channel over real pipes; all is closed after the test."""
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    claim_read, claim_write = os.pipe()
    own_claim = os.dup(claim_read)
    for fd in (request_write, reply_read, own_claim, claim_read):
        os.set_blocking(fd, False)
    channel = Channel(request_write, reply_read, own_claim, claim_write)
    made = Pair(channel, request_read, reply_write, claim_read)
    yield made
    channel.close()
    for fd in made[1:]:
        try:
            os.close(fd)
        except OSError:
            continue


def read_all(pair: Pair, size: int) -> bytes:
    """Read the worker's end while the host flushes; neither waits for the other."""
    data = b""
    while len(data) < size:
        data += os.read(pair.requests, 1 << 16)
        pair.channel.flush()
    return data


def test_small_and_large_writes_arrive_in_order(pair: Pair) -> None:
    """What the pipe does not take waits, and later sends go behind it."""
    buffers = [b"a" * 10, b"b" * 300_000, b"c"]

    pair.channel.send(buffers[:1])
    assert not pair.channel.wants_write
    pair.channel.send(buffers[1:2])
    assert pair.channel.wants_write
    pair.channel.send(buffers[2:])

    expected = b"".join(buffers)
    assert expected == read_all(pair, len(expected))
    assert not pair.channel.wants_write


def test_more_buffers_than_one_call_takes(pair: Pair) -> None:
    """Thousands of small buffers go out whole."""
    buffers = [b"%d," % n for n in range(30_000)]

    pair.channel.send(buffers)

    expected = b"".join(buffers)
    assert expected == read_all(pair, len(expected))


def test_a_full_pipe_does_not_block(pair: Pair) -> None:
    """Nobody reads: send and flush return at once, and nothing is lost."""
    for _ in range(150):
        pair.channel.send([b"x" * 10_000])
        pair.channel.flush()

    assert pair.channel.wants_write
    assert b"x" * 1_500_000 == read_all(pair, 1_500_000)


@pytest.mark.parametrize("buffers", [[b"one"], [b"one", b"two"]])
def test_a_pipe_without_a_reader_closes_the_requests(pair: Pair, buffers: list[bytes]) -> None:
    """EPIPE is no exception: the request pipe is closed and later sends are dropped."""
    os.close(pair.requests)

    pair.channel.send(buffers)
    pair.channel.send(buffers)

    assert pair.channel.request_fd is None
    assert not pair.channel.wants_write


def test_epipe_while_flushing(pair: Pair) -> None:
    """A reader that goes away in the middle ends the waiting rest."""
    pair.channel.send([b"x" * 200_000])
    os.close(pair.requests)

    pair.channel.flush()

    assert (None, False) == (pair.channel.request_fd, pair.channel.wants_write)


def test_receive_returns_what_is_there(pair: Pair) -> None:
    """Nothing, something, and the end of the stream are told apart."""
    assert b"" == pair.channel.receive()
    assert not pair.channel.closed_by_worker

    os.write(pair.replies, b"reply")
    assert b"reply" == pair.channel.receive()

    os.write(pair.replies, b"last")
    os.close(pair.replies)
    assert b"last" == pair.channel.receive() + pair.channel.receive()
    assert pair.channel.closed_by_worker


def test_receive_into_a_place(pair: Pair) -> None:
    """What is there is read to where it belongs; nothing, and the end of the stream, are told apart."""
    place = bytearray(8)
    with memoryview(place) as room:
        assert 0 == pair.channel.receive_into(room)
        assert not pair.channel.closed_by_worker

        os.write(pair.replies, b"reply")
        assert 5 == pair.channel.receive_into(room)
        assert b"reply" == room[:5]

        os.close(pair.replies)
        assert 0 == pair.channel.receive_into(room)
        assert pair.channel.closed_by_worker


def capacity(fd: int) -> int:
    """Return how many bytes a pipe holds."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="pipes have one size here")
def test_pipes_grow_with_what_passes_them(pair: Pair) -> None:
    """A pipe is enlarged by the first message that does not fit, in its own direction only."""
    small = capacity(pair.requests)

    pair.channel.send([b"x" * 1000])
    pair.channel.receive()
    assert [small, small] == [capacity(pair.requests), capacity(pair.replies)]
    pair.channel.send([b"x" * small, b"y"])
    pair.channel.flush()
    assert [1 << 20, small] == [capacity(pair.requests), capacity(pair.replies)]
    os.write(pair.replies, b"z" * small)
    pair.channel.receive()
    assert 1 << 20 == capacity(pair.replies)


@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="pipes have one size here")
def test_few_pipes_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages in a user's pipes are limited: when enough are large, others get less, until a channel is closed."""
    monkeypatch.setattr(channel_module, "_grants", [1 << 20] * 3)
    ends = [(*os.pipe(), *os.pipe()) for _ in range(4)]
    channels = [Channel(request_write, reply_read) for _, request_write, reply_read, _ in ends]
    for channel, (_, _, _, reply_write) in zip(channels, ends, strict=True):
        os.write(reply_write, b"x")
        channel.receive_into(memoryview(bytearray(1)))

    sizes = [capacity(channel.reply_fd) for channel in channels]
    channels[0].close()
    left = list(channel_module._grants)
    for channel, (request_read, _, _, reply_write) in zip(channels, ends, strict=True):
        channel.close()
        os.close(request_read)
        os.close(reply_write)

    assert [1 << 20, 1 << 20, 1 << 20, 1 << 18] == sizes
    assert [1 << 20] == left


def test_a_pipe_that_may_not_grow(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that refuses a larger pipe costs time, and nothing else."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "injected")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    data = b"x" * 300_000

    pair.channel.send([data])

    assert pair.channel.wants_write
    assert data == read_all(pair, len(data))


def test_drain_reads_until_empty_although_others_hold_the_pipe(pair: Pair) -> None:
    """What is left is read although the write end is still open somewhere."""
    os.write(pair.replies, b"x" * 60_000)

    assert b"x" * 60_000 == pair.channel.drain()
    assert b"" == pair.channel.drain()


def test_drain_ends_although_somebody_goes_on_writing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descendant that floods the pipe of a dead worker cannot hold the manager."""
    monkeypatch.setattr(os, "read", lambda fd, size: b"y" * size)

    data = pair.channel.drain()

    assert len(data) < 16 << 20


def test_what_could_not_be_written_can_be_taken_back(pair: Pair) -> None:
    """Requests sent ahead after the request pipe has lost its reader have their tokens, and go back to the queue."""
    os.close(pair.requests)
    pair.channel.send([b"request"])
    assert pair.channel.request_fd is None

    pair.channel.grant(3)

    assert 3 == pair.channel.take_back(10)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM])
@pytest.mark.parametrize("count", [1, 2], ids=["one buffer", "many buffers"])
def test_a_write_that_fails_ends_the_writing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int, count: int
) -> None:
    """An error of the system is kept for whoever wants to know, and the request pipe is closed."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(os, "writev", fail)

    pair.channel.send([b"x"] * count)

    assert (None, False) == (pair.channel.request_fd, pair.channel.wants_write)
    assert pair.channel.error is not None
    assert number == pair.channel.error.errno


@pytest.mark.parametrize("most", [0, 1, 7])
def test_short_writes_lose_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A system that takes a few bytes at a time, or none at the first try, gets every byte once."""
    write, refused = os.write, []

    def short(fd: int, data: bytes) -> int:
        if most == 0 and not refused:
            refused.append(fd)
            raise BlockingIOError(errno.EAGAIN, "injected")
        return write(fd, bytes(data)[: most or None])

    monkeypatch.setattr(os, "write", short)
    monkeypatch.setattr(os, "writev", lambda fd, buffers: short(fd, b"".join(buffers)))

    pair.channel.send([b"abcdefghij"])
    pair.channel.send([b"klm", b"nop"])
    while pair.channel.wants_write:
        pair.channel.flush()

    assert b"abcdefghijklmnop" == os.read(pair.requests, 100)


def test_a_read_that_fails_ends_the_reading(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO on the reply pipe counts as its end, with the reason; draining and taking back give what they can."""
    os.write(pair.replies, b"reply")

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", fail)
        patch.setattr(os, "readv", fail)
        data = pair.channel.receive()
        count = pair.channel.receive_into(memoryview(bytearray(8)))
        drained, taken = pair.channel.drain(), pair.channel.take_back(3)

    assert (b"", 0, b"", 0, True) == (data, count, drained, taken, pair.channel.closed_by_worker)
    assert pair.channel.error is not None
    assert errno.EIO == pair.channel.error.errno


def test_claims_are_taken_once(pair: Pair) -> None:
    """Each token is the worker's or the host's, whoever reads it first."""
    pair.channel.grant(5)

    assert b"xx" == os.read(pair.claims, 2)
    assert 2 == pair.channel.take_back(2)
    assert 1 == pair.channel.take_back(10)
    assert (0, 0) == (pair.channel.take_back(10), pair.channel.take_back(0))


def test_without_claims() -> None:
    """A level 0 worker has no claim pipe: nothing is granted, nothing taken back."""
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    channel = Channel(request_write, reply_read)

    channel.grant(3)

    assert (False, 0) == (channel.has_claims, channel.take_back(3))
    channel.close()
    channel.close()
    os.close(request_read)
    os.close(reply_write)

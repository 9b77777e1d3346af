"""Memory for bytes to come: they arrive in order, and announced ones cost nothing."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from snakepit._wire import blocks
from snakepit._wire.blocks import LARGE_BYTES, Block, recycle
from snakepit._wire.messages import MessageDecoder

HUGE = 1 << 21
SIZES = (1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 1_000_003, HUGE - 1, HUGE, HUGE + 1, 5_000_011)


@pytest.fixture(autouse=True)
def no_spares() -> Iterator[None]:
    """Begin and end without spare memory."""
    blocks._spare.clear()
    yield
    blocks._spare.clear()


def numbers(size: int) -> bytes:
    """Return bytes that are different at each place, nearly."""
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


@pytest.mark.parametrize("transient", [False, True])
@pytest.mark.parametrize("step", [7919, 1 << 22])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_the_content(size: int, step: int, transient: bool) -> None:
    """Pieces of any length, copied or written in place, are the content in the end, which is writable."""
    data = numbers(size)
    block = Block(size, transient=transient)
    place = 0
    while block.left_bytes:
        if place % 2:
            room = block.room()
            assert len(room) >= min(block.left_bytes, LARGE_BYTES)
            count = min(len(room), step)
            room[:count] = data[place : place + count]
            block.wrote(count)
        else:
            count = len(data[place : place + step])
            block.write(memoryview(data)[place : place + count])
        place += count

    content = block.content()

    assert size == place
    assert data == content
    assert not content.readonly


@pytest.mark.parametrize("size", [LARGE_BYTES, HUGE - 1, HUGE, 1 << 30])
def test_bytes_that_are_only_announced_take_no_memory(size: int) -> None:
    """A block takes a little more than what was written to it."""
    tracemalloc.start()
    before = resident_bytes()

    block = Block(size)
    block.write(memoryview(b"x" * 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 3 * LARGE_BYTES
    # A huge page, and what the interpreter itself needs meanwhile.
    assert resident_bytes() - before < 3 * HUGE


def resident_bytes() -> int:
    """Return the memory of this process that is there."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_transient_memory_is_used_again() -> None:
    """What was recycled is the next transient block's memory, of whatever size; a few are kept."""
    contents = [filled(LARGE_BYTES + n) for n in range(6)]
    memories = [id(content.obj) for content in contents]

    for content in contents:
        recycle(content)
    again = filled(HUGE - 1)

    assert id(again.obj) in memories
    assert blocks._SPARES - 1 == len(blocks._spare)
    with pytest.raises(ValueError, match="released"):
        contents[0][0]


def filled(size: int) -> memoryview:
    """Return the content of a transient block."""
    block = Block(size, transient=True)
    block.write(memoryview(bytes(size)))
    return block.content()


@pytest.mark.parametrize(
    "content", [b"x" * HUGE, bytearray(HUGE), memoryview(bytes(HUGE)), memoryview(bytearray(HUGE))]
)
def test_what_is_no_transient_memory_is_left_alone(content: Any) -> None:
    """Small contents are bytes, and their memory is nobody's to use again."""
    recycle(content)

    assert [] == blocks._spare


@pytest.mark.parametrize("known", [True, False])
def test_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """Where the kernel refuses huge pages, or Python does not know them, small ones serve."""

    class Plain(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError("injected")

    monkeypatch.setattr(mmap, "mmap", Plain)
    if not known:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    block = Block(3 * HUGE)

    block.write(memoryview(b"abc"))

    assert b"abc" == block.content()


def test_no_room_for_what_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without memory for a reply fails that stream; messages before it arrived."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(12, "injected")

    monkeypatch.setattr(mmap, "mmap", refuse)
    decoder = MessageDecoder(max_frame_bytes=1 << 24, max_message_bytes=1 << 30)

    messages = decoder.feed(b'\0\0\0\x08{"id":1}' + (1 << 23).to_bytes(4, "big") + b"{")

    assert [{"id": 1}] == messages
    assert isinstance(decoder.error, OSError)

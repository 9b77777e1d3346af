"""The codec: any split decodes the same, garbage ends in one error, memory is bounded."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit._wire.frames import FrameDecoder, frame, show_bytes
from snakepit._wire.messages import MessageDecoder
from snakepit._wire.outgoing import encode_command, encode_message, joined
from snakepit._wire.values import decode_json
from snakepit.errors import EncodeError, ProtocolError

GOLDEN = Path(__file__).resolve().parent.parent.parent / "bridges" / "golden"
LIMIT = 1 << 16


def decoder(**options: Any) -> MessageDecoder:
    """Return a decoder with small limits."""
    return MessageDecoder(**{"max_frame_bytes": LIMIT, "max_message_bytes": 1 << 20, **options})


def encode(value: Any, request_id: int = 1, **options: Any) -> bytes:
    """Return the frames of an echo of this value."""
    limits = {"max_frame_bytes": options.get("max_frame_bytes", LIMIT)}
    limits["max_message_bytes"] = options.pop("max_message_bytes", 1 << 20)
    content = encode_command("echo", value, session_id=options.pop("session_id", None), **limits)
    return b"".join(encode_message(content, request_id, **options))


def feed_in_pieces(codec: MessageDecoder, data: bytes, cuts: list[int]) -> list[Any]:
    """Feed data cut at these places and return the messages."""
    messages: list[Any] = []
    places = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(places):
        messages += codec.feed(data[start:end])
    return messages


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=10)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | text | st.binary(max_size=20)
scalars |= st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(values, min_size=1, max_size=4), st.data())
def test_round_trip_however_it_is_split(items: list[Any], data: st.DataObject) -> None:
    """Encoded values, bytes included, come out equal for any split of the stream."""
    stream = b"".join(encode(item, n) for n, item in enumerate(items))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))

    messages = feed_in_pieces(decoder(), stream, cuts)

    assert [(n, "echo", item) for n, item in enumerate(items)] == [
        (m["id"], m["command"], m["args"]) for m in messages
    ]
    assert repr(items) == repr([m["args"] for m in messages])


def test_split_at_every_byte() -> None:
    """Two messages with attachments decode the same for every place of one cut, and byte by byte."""
    stream = encode({"a": [b"one", b"", {"b": b"three"}], "text": "\u00e9"}, 1) + encode([1.5, None], 2)
    whole = decoder().feed(stream)

    assert 2 == len(whole)
    for cut in range(len(stream) + 1):
        assert whole == feed_in_pieces(decoder(), stream, [cut])
    assert whole == feed_in_pieces(decoder(), stream, list(range(len(stream))))


@pytest.mark.parametrize(
    ("garbage", "text"),
    [
        (b"hello, world\n", "hello, world"),
        (b"\tindented", "indented"),
        (b"\0\0\0\0", "0 bytes"),
        (b"\xff\xff\xff\xff", "4294967295 bytes"),
        (frame(b"plain"), "no JSON object"),
        (frame(b"[1]"), "no JSON object"),
        (frame(b"\x80\x04K\x01."), "no JSON object"),
        (frame(b'{"a":NaN}'), "no strict JSON"),
        (frame(b'{"a":1e999}'), "no strict JSON"),
        (frame(b'{"a":"\\ud800"}'), "no strict JSON"),
        (frame(b'{"a":"\xff"}'), "no strict JSON"),
        (frame(b'{"a":1,}'), "no strict JSON"),
        (frame(b'{"a":1}{}'), "no strict JSON"),
        (frame(b'{"a":' + b"[" * 30000 + b"]" * 30000 + b"}"), "no strict JSON"),
        (frame(b'{"attachments":[{"path":"/result"}]}'), "bad attachments"),
        (frame(b'{"attachments":[{"path":"/result","len":-1}]}'), "bad attachments"),
        (frame(b'{"attachments":[{"path":"/result","len":true}]}'), "bad attachments"),
        (frame(b'{"attachments":3}'), "bad attachments"),
        (frame(b'{"attachments":[{"path":"/nowhere","len":0}]}'), "without a place"),
        (frame(b'{"result":[],"attachments":[{"path":"/result/0","len":0}]}'), "without a place"),
        (frame(b'{"result":"text","attachments":[{"path":"/result/0","len":0}]}'), "without a place"),
        (frame(b'{"attachments":[{"path":7,"len":0}]}'), "bad attachments"),
        (frame(b'{"attachments":[{"path":"/result","len":2000000}]}'), "max_message_bytes"),
        (
            frame(b'{"result":null,"attachments":[{"path":"/result","len":2}]}') + frame(b"abc"),
            "longer than the 2",
        ),
    ],
)
def test_garbage_after_good_messages(garbage: bytes, text: str) -> None:
    """For every split: the messages before the garbage arrive, then one error, then nothing."""
    good = encode("first", 1) + encode("second", 2)
    stream = good + garbage + encode("never", 3)
    cuts = range(len(stream)) if len(stream) < 1000 else [len(good), len(good) + 3, len(stream) - 5]

    for cut in cuts:
        codec = decoder()
        messages = feed_in_pieces(codec, stream, [cut])

        assert ["first", "second"] == [message["args"] for message in messages]
        assert isinstance(codec.error, ProtocolError)
        if cut <= len(good) or cut >= len(good) + len(garbage):
            # Cut elsewhere, the error shows what had arrived by then.
            assert text in str(codec.error)
        assert len(str(codec.error)) < 600
        assert codec.finish() is codec.error
        assert [] == codec.feed(encode("more", 4))


@pytest.mark.parametrize("allowed", [False, True])
def test_pickles_only_where_they_are_allowed(allowed: bool) -> None:
    """A frame that begins with 0x80 is handed on for callable workers and an error for all others."""
    codec = decoder(allow_pickle=allowed)

    messages = codec.feed(frame(b"\x80\x05body"))

    assert ([[b"\x80\x05body"]] if allowed else []) == messages
    assert allowed == (codec.error is None)


def test_the_end_inside_a_frame() -> None:
    """A stream that ends inside a frame, or before its attachments, is an error; elsewhere it is none."""
    stream = encode({"a": b"data"}, 1)

    for cut in range(1, len(stream)):
        codec = decoder()
        codec.feed(stream[:cut])
        assert "ended inside" in str(codec.finish())
    codec = decoder()
    codec.feed(stream)
    assert codec.finish() is None
    assert decoder().finish() is None


@given(st.binary(max_size=300), st.integers(0, 300))
def test_fuzz(data: bytes, cut: int) -> None:
    """Arbitrary bytes give messages or one ProtocolError, no other exception, the same for any split."""
    whole, split = decoder(), decoder()

    first = whole.feed(data)
    second = feed_in_pieces(split, data, [min(cut, len(data))])

    assert first == second
    assert str(whole.error) == str(split.error) or "the stream held" in str(whole.error)


LONG = (1 << 16, (1 << 16) + 1, 300_000, (1 << 21) + 3)


@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize("first", [3, 4, 5, 1000, 60_000])
def test_long_frames_are_read_to_their_place(size: int, first: int) -> None:
    """The decoder says where the rest of a long frame belongs; messages before and after it arrive as ever."""
    limits = {"max_frame_bytes": 1 << 22, "max_message_bytes": 1 << 24}
    text, data = "x" * size, bytes(range(256)) * (size // 256)
    stream = encode([text, data], 1, **limits) + encode("next", 2)
    codec = MessageDecoder(**limits)

    messages = codec.feed(stream[:first])
    place, placed = first, 0
    while place < len(stream):
        room = codec.room()
        if room is None:
            messages += codec.feed(stream[place : place + 4096])
            place += len(stream[place : place + 4096])
        else:
            count = min(len(room), 50_000)
            room[:count] = stream[place : place + count]
            messages += codec.wrote(count)
            place += count
            placed += count

    assert [[text, data], "next"] == [message["args"] for message in messages]
    assert codec.finish() is None
    assert placed > 2 * size - 4 * LIMIT


def test_the_end_inside_a_long_frame() -> None:
    """A long frame that never ends is an error that shows its beginning; nothing is to be read to its place then."""
    codec = decoder(max_frame_bytes=1 << 22)
    codec.feed((1 << 20).to_bytes(4, "big") + b'{"id":12345')

    assert codec.room() is not None
    assert '{"id":12345' in str(codec.finish())
    assert codec.room() is None


def test_random_bytes_do_not_occupy_memory() -> None:
    """Megabytes of random data and of a frame that never ends leave no more than one frame in memory."""
    print("seed 7")
    source = random.Random(7)
    endless = decoder(max_frame_bytes=1 << 20)
    endless.feed((1 << 20).to_bytes(4, "big"))
    tracemalloc.start()

    for _ in range(200):
        decoder().feed(source.randbytes(10_000))
    for _ in range(100):
        endless.feed(b"x" * 10_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 << 20


def test_an_announced_length_reserves_nothing() -> None:
    """Headers and attachment lengths below the limit cost nothing until the bytes are there."""
    tracemalloc.start()

    codec = MessageDecoder(max_frame_bytes=127 << 20, max_message_bytes=1 << 30)
    codec.feed(frame(b'{"result":null,"attachments":[{"path":"/result","len":1000000000}]}'))
    codec.feed((100 << 20).to_bytes(4, "big"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert codec.error is None
    assert peak < 1 << 20


def test_many_attachments_take_linear_time() -> None:
    """20,000 attachments in one message are put together in far less than a second."""
    items = [b"x"] * 20_000
    content = encode_command(
        "echo", items, session_id=None, max_frame_bytes=1 << 26, max_message_bytes=1 << 26
    )
    stream = b"".join(encode_message(content, 1))
    codec = MessageDecoder(max_frame_bytes=1 << 26, max_message_bytes=1 << 26)

    (message,) = codec.feed(stream)

    assert items == message["args"]


def test_attachments_are_cut_to_frames() -> None:
    """Bytes above the frame limit travel in several frames, none above the limit."""
    data = bytes(range(256)) * 50
    stream = encode({"a": data, "b": data}, max_frame_bytes=1024)

    frames = FrameDecoder(1024)
    frames.feed(stream)
    payloads = [bytes(payload) for payload in iter(frames.next, None)]

    assert data * 2 == b"".join(payloads[1:])
    (message,) = decoder(max_frame_bytes=1024).feed(stream)
    assert {"a": data, "b": data} == message["args"]


def test_what_joins_a_request_when_it_is_sent() -> None:
    """Id, session, deadline, claim and time are members of the object, each only when asked for."""
    plain = json.loads(encode(1, 5)[4:])
    full = json.loads(
        encode(1, 5, session_id='s"\u00e9', session=True, timestamp=True, deadline_ms=70, claim=True)[4:]
    )
    unsaid = json.loads(encode(1, 5, session_id="s")[4:])

    assert {"id": 5, "command": "echo", "args": 1} == plain == unsaid
    assert {"id", "command", "args", "session", "deadline_ms", "claim", "timestamp"} == set(full)
    assert ('s"\u00e9', 70, True) == (full["session"], full["deadline_ms"], full["claim"])


def test_a_request_never_exceeds_the_frame_limit() -> None:
    """Whatever encode_command admits fits the limit with everything that joins it later."""
    for size in range(500, 1100):
        try:
            content = encode_command(
                "c", "x" * size, session_id="s" * 100, max_frame_bytes=1024, max_message_bytes=1024
            )
        except EncodeError as error:
            assert "max_frame_bytes is 1024" in str(error)
            continue
        buffers = encode_message(
            content, 2**53 - 1, session=True, timestamp=True, deadline_ms=10**9, claim=True
        )
        assert len(b"".join(buffers)) - 4 <= 1024


def test_joined_keeps_order_and_large_buffers() -> None:
    """Small neighbours are joined, large buffers stay the objects they are."""
    large = b"L" * 100
    buffers = [b"a", b"b", large, b"c", large]

    result = joined(buffers, small_bytes=50)

    assert [b"ab", large, b"c", large] == result
    assert result[1] is large


@pytest.mark.parametrize("data", [b"", b"plain", b"\x00\xff\n\x1b[31m", bytes(range(256))])
def test_shown_bytes_are_short_and_printable(data: bytes) -> None:
    """What is shown of a stream is at most 80 bytes and holds no control character."""
    shown = show_bytes(data)

    assert shown.isprintable()
    assert len(shown) <= 80 * 4 + 5


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.jsonl")), ids=lambda path: path.stem)
def test_golden_transcripts(path: Path) -> None:
    """The worker's part of each golden transcript decodes to its messages, whole and byte by byte."""
    steps = [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")[1:]]
    steps = [step for step in steps if step["from"] == "worker" and "message" in step]
    stream, expected = b"", []
    for step in steps:
        raw = [bytes.fromhex(part) for part in step.get("frames", [])]
        stream += frame(json.dumps(step["message"], ensure_ascii=False).encode()) + b"".join(map(frame, raw))
        message = decode_json(json.dumps(step["message"]).encode())
        expected.append({key: value for key, value in message.items() if key != "result"})

    limits = {"max_frame_bytes": 64 << 20, "max_message_bytes": 1 << 30}
    whole, pieces = MessageDecoder(**limits), MessageDecoder(**limits)
    messages = whole.feed(stream)
    one_by_one = [message for byte in stream for message in pieces.feed(bytes([byte]))]

    assert (None, None) == (whole.error, whole.finish())
    assert messages == one_by_one
    assert expected == [
        {k: v for k, v in m.items() if k != "result"} for m in messages if isinstance(m, dict)
    ]

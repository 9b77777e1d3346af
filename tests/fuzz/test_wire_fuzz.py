"""The codec under the coverage-guided fuzzer, for a moment; ``make fuzz-wire`` runs it for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from fuzz.fuzz_wire import RSS_LIMIT_MB, WITHOUT_COVERAGE
from fuzz.wire_target import check

from snakepit._wire.frames import frame
from snakepit._wire.messages import MessageDecoder

HERE = Path(__file__).resolve().parent
CORPUS = sorted((HERE / "corpus").iterdir())
SECONDS = float(os.environ.get("SNAKEPIT_FUZZ_S") or (60 if os.environ.get("CI") == "true" else 20))
"""How long the fuzzer runs as a part of the suite."""


def fuzz(*arguments: str, keep: Path) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer as a program of its own."""
    command = [sys.executable, str(HERE / "fuzz_wire.py"), *arguments, "--keep", str(keep)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS + 50, check=False)


def test_the_corpus_is_small() -> None:
    """What is kept is minimized: few inputs, and small."""
    assert 20 < len(CORPUS) < 200
    assert sum(path.stat().st_size for path in CORPUS) < 200_000


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    """Each input that once reached something new is decoded rightly."""
    check(path.read_bytes())


def test_a_run_of_the_fuzzer(tmp_path: Path) -> None:
    """The fuzzer finds nothing in its time, within its memory, and has really run."""
    done = fuzz(str(SECONDS), "--seed", "1", keep=tmp_path)

    failed = {path.name: path.read_bytes() for path in tmp_path.glob("crash-*")}
    assert 0 == done.returncode, f"{failed}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None and int(runs[1]) > 10 * SECONDS, done.stderr[-1000:]
    if WITHOUT_COVERAGE in done.stderr:
        warnings.warn(pytest.PytestWarning(WITHOUT_COVERAGE), stacklevel=1)
    else:
        peak = re.search(r"stat::peak_rss_mb: *(\d+)", done.stderr)
        assert peak is not None and int(peak[1]) < RSS_LIMIT_MB
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        assert coverage and int(coverage[-1]) > 100


def test_a_run_without_coverage(tmp_path: Path) -> None:
    """Where there is no atheris the same target runs on random inputs, and says so."""
    done = fuzz("2", "--random", "--seed", "1", keep=tmp_path)

    assert 0 == done.returncode, done.stderr[-4000:]
    assert WITHOUT_COVERAGE in done.stderr
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None and int(runs[1]) >= 20


def test_the_target_notices_a_wrong_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that loses a message, takes too much, or depends on the split does not pass the target."""
    stream = b"\x10\x01" + b'{"id":1}\xff{"id":2}'
    check(stream)
    feed = MessageDecoder.feed

    def swallow(self: MessageDecoder, data: bytes) -> list[object]:
        return feed(self, data)[:1]

    monkeypatch.setattr(MessageDecoder, "feed", swallow)
    with pytest.raises(AssertionError):
        check(stream)

    def believe(self: MessageDecoder, data: bytes) -> list[object]:
        try:
            return feed(self, data)
        finally:
            self.error = None

    monkeypatch.setattr(MessageDecoder, "feed", believe)
    with pytest.raises(AssertionError):
        check(b"\x10\x01" + b'{"id":01}')

    def hoard(self: MessageDecoder, data: bytes) -> list[object]:
        bytearray(1 << 20)
        return feed(self, data)

    monkeypatch.setattr(MessageDecoder, "feed", hoard)
    with pytest.raises(AssertionError, match="bytes for a stream"):
        check(b"\x10\x00" + b'{"id":1}')


# The parts of a pickle ------------------------------------------------------------------------------


def decoder(max_message_bytes: int = 10_000) -> MessageDecoder:
    """Return the decoder of a callable worker's replies."""
    return MessageDecoder(max_frame_bytes=100, max_message_bytes=max_message_bytes, allow_pickle=True)


def part(mark: bytes, *payloads: bytes, size: int | None = None) -> bytes:
    """Return the frames of one part, announced with its true size or another."""
    size = sum(map(len, payloads)) if size is None else size
    return frame(mark + size.to_bytes(8, "big")) + b"".join(map(frame, payloads))


def test_a_pickle_and_its_buffers() -> None:
    """Parts arrive as one message, in as many frames as they came; the next message begins anew."""
    one = decoder()

    assert [] == one.feed(part(b"\x81", b"\x80ab", b"cd") + part(b"\x81", b"one"))
    assert one.error is None
    assert [[b"\x80abcd", b"one", b"\x80two"]] == one.feed(part(b"\x82", b"\x80", b"two"))
    assert [[b"\x80next"]] == one.feed(part(b"\x82", b"\x80next"))
    assert one.finish() is None


def test_messages_between_parts() -> None:
    """JSON and pickles of one frame between two parts arrive at once, and leave the parts alone."""
    one = decoder()
    between = frame(b'{"type":"log"}') + frame(b"\x80whole")

    messages = one.feed(part(b"\x81", b"\x80a") + between + part(b"\x82", b"b"))

    assert [{"type": "log"}, [b"\x80whole"], [b"\x80a", b"b"]] == messages


@pytest.mark.parametrize("stream", [part(b"\x81"), part(b"\x82"), part(b"\x81", b"\x80a") + part(b"\x82")])
def test_a_part_without_content(stream: bytes) -> None:
    """An empty part is an error: endless ones would keep the host busy for nothing."""
    one = decoder()

    assert [] == one.feed(stream)
    assert "without content" in str(one.error)


@pytest.mark.parametrize("payload", [b"\x81", b"\x82\0\0\0\x05", b"\x81" + bytes(9), b"\x82\x80abc"])
def test_a_part_without_its_length(payload: bytes) -> None:
    """A part is announced in nine bytes, no more and no less."""
    one = decoder()

    assert [] == one.feed(frame(payload))
    assert "without its length" in str(one.error)


@pytest.mark.parametrize("mark", [b"\x81", b"\x82"])
def test_parts_that_are_no_pickle(mark: bytes) -> None:
    """A first part that does not begin with a pickle's mark is an error before the next one comes."""
    one = decoder()

    assert [] == one.feed(part(mark, b"\x81b"))
    assert "begins no pickle" in str(one.error)


def test_a_part_that_goes_on() -> None:
    """A frame beyond the bytes announced is an error."""
    one = decoder()

    assert [] == one.feed(part(b"\x82", b"\x80ab", b"cd", size=4))
    assert "longer than the 4 bytes announced" in str(one.error)


@pytest.mark.parametrize(("limit", "fits"), [(8, True), (7, False)])
def test_parts_beyond_the_limit(limit: int, fits: bool) -> None:
    """A pickle may have max_message_bytes; one that announces more is refused before its bytes come."""
    one = decoder(limit)

    messages = one.feed(part(b"\x82", b"\x80abc", b"defg") if fits else part(b"\x82", size=8))

    assert ([[b"\x80abcdefg"]] if fits else []) == messages
    assert fits == (one.error is None)


@pytest.mark.parametrize(("limit", "fits"), [(2053, True), (2052, False)])
def test_small_buffers_count_as_larger_ones(limit: int, fits: bool) -> None:
    """A million buffers of a byte would take a hundred million: each counts at least 1,024."""
    one = decoder(limit)

    messages = one.feed(part(b"\x81", b"\x80abcd") + part(b"\x81", b"e") + part(b"\x82", b"f"))

    assert ([[b"\x80abcd", b"e", b"f"]] if fits else []) == messages
    assert fits == (one.error is None)


@pytest.mark.parametrize("stream", [part(b"\x81", b"\x80abc"), part(b"\x82", size=5), part(b"\x82", b"\x80a", size=5)])
def test_the_end_between_parts(stream: bytes) -> None:
    """A stream that ends before the last part is an error."""
    one = decoder()
    one.feed(stream)

    assert "ended inside" in str(one.finish())


@pytest.mark.parametrize("mark", [b"\x81", b"\x82"])
def test_parts_are_for_callable_workers_only(mark: bytes) -> None:
    """Elsewhere a part is a frame that is no JSON object."""
    one = MessageDecoder(max_frame_bytes=100, max_message_bytes=100)

    assert [] == one.feed(part(mark, b"\x80abc"))
    assert "no JSON object" in str(one.error)

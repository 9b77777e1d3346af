"""The ways in which a worker misbehaves."""

from __future__ import annotations

import signal

from crash_table.model import Knob

__all__ = ("KNOBS",)

TEXT = b"debug: loaded 3 models\n"
BOM = b"\xef\xbb\xbfdebug\n"
BINARY = b"\0\0\0\5\x89PNG\r"
"""Reads as a frame of five bytes that is no JSON."""
LENGTH = b"\0\x10\0\0"
"""Reads as the header of a frame of 1 MiB, within every limit: what follows is taken for its content."""

KNOBS = tuple(
    Knob(name, deed, **more)
    for name, deed, more in [
        # It ends.
        ("exit_0", {"how": "exit", "code": 0}, {}),
        ("exit_9", {"how": "exit", "code": 9, "text": "no disk\n"}, {}),
        ("segfault", {"how": "signal", "number": int(signal.SIGSEGV)}, {}),
        ("reply_then_exit", {"how": "reply_exit", "code": 5}, {}),
        ("half_frame_then_exit", {"how": "half_exit", "code": 6}, {}),
        ("memory_error", {"how": "allocate"}, {}),
        ("grandchild", {"how": "grandchild"}, {"grandchild": True}),
        ("grandchild_setsid", {"how": "grandchild", "own_session": True}, {"grandchild": True}),
        # It is silent.
        ("hang", {"how": "hang"}, {"hangs": True}),
        ("hang_ignoring_term", {"how": "hang", "ignore_term": True}, {"hangs": True}),
        ("stop", {"how": "signal", "number": int(signal.SIGSTOP)}, {"hangs": True}),
        ("half_frame_then_hang", {"how": "half_hang"}, {"hangs": True}),
        ("reply_after_term", {"how": "late_after_term"}, {"hangs": True}),
        ("length_on_stream_level_0", {"how": "stdout", "hex": LENGTH.hex()}, {"level": 0, "hangs": True}),
        ("close_stdout", {"how": "close_out"}, {"closes": True}),
        # It breaks the protocol.
        ("text_on_stdout_level_0", {"how": "stdout", "hex": TEXT.hex()}, {"level": 0}),
        ("bom_on_stdout_level_0", {"how": "stdout", "hex": BOM.hex()}, {"level": 0}),
        ("binary_on_stdout_level_0", {"how": "stdout", "hex": BINARY.hex()}, {"level": 0}),
        ("text_on_stream", {"how": "stream", "hex": TEXT.hex()}, {}),
        ("reply_then_text_on_stream", {"how": "reply_print"}, {}),
        ("unknown_id", {"how": "unknown_id"}, {}),
        ("nan", {"how": "nan"}, {}),
        ("deep", {"how": "deep"}, {}),
        ("too_large", {"how": "too_large", "bytes": 300_000}, {"config": {"max_frame_bytes": 65536}}),
        # It only looks bad.
        ("reply_twice", {"how": "twice"}, {}),
        ("reply_again_to_the_last", {"how": "late"}, {}),
        ("text_on_stdout", {"how": "stdout", "hex": TEXT.hex()}, {}),
        ("binary_on_stdout", {"how": "stdout", "hex": BINARY.hex()}, {}),
        ("flood_stderr", {"how": "stderr", "bytes": 10_000_000}, {}),
        ("ignore_term", {"how": "ignore_term"}, {}),
        ("ignore_eof", {"how": "ignore_eof"}, {}),
        ("ignore_both", {"how": "stubborn"}, {}),
        ("grandchild_left", {"how": "grandchild", "own_session": True, "reply": True}, {"grandchild": True}),
        ("too_much_memory", {"how": "resident", "bytes": 48 << 20}, {"config": {"max_worker_rss_bytes": 40 << 20}}),
    ]
)

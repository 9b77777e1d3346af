"""A host in miniature: starts one bridge as a real process and speaks raw frames with it.

Runs on the thread of the case; a ``Worker`` owns its process and its end of each pipe.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from .finding import Finding, GoneFinding, SilenceFinding, show_bytes, show_json
from .launch import launch
from .messages import decode, find_fault

__all__ = ("CAPABILITIES", "MAX_FRAME", "Worker", "dumps", "frame")

MAX_FRAME = 64 * 1024 * 1024
CAPABILITIES = ("errors", "pipeline", "session", "deadline", "attachments", "batch", "log", "claim")
READ_BYTES = 1 << 20
STDERR_BYTES = 1 << 20
POLL_S = 0.0002
PROBE_S = 2.0
"""How long a silent worker gets for the request that tells silence from a missing flush; arbitrary."""

FLUSH_HINT = "flush the replies after each one; do not wait for the next request first"
SILENCE_HINT = "every request needs exactly one reply, an error too; look for an exception that is swallowed"
TEXT_HINT = (
    "this is text: something prints to the descriptor that carries the frames (at level 0 that is 1);"
    " move the frames to another descriptor and make 1 the same as 2 before any other code runs"
)
STRAY_HINT = "write the length (4 bytes, big-endian, bytes and not characters) and the payload, and nothing else"


def frame(payload: bytes) -> bytes:
    """Return a payload with its length before it."""
    return len(payload).to_bytes(4, "big") + payload


def dumps(message: Any) -> bytes:
    """Return a message as a host writes it."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class Worker:
    """One bridge process and this side of its pipes; a context manager that leaves nothing behind.

    Args:
        argv: Program and arguments.
        level: 1 passes descriptors of their own; 0 uses stdin and stdout.
        env: Variables on top of this process's; None as value removes one.
        claim: Whether to pass a claim pipe (level 1).
        sockets: Whether requests and replies go over sockets, which cannot be opened again by name.
        packets: Whether the replies go over a socket that gives each write of the worker to one read.
        timeout_s: Longest wait for anything, seconds, > 0.

    Attributes:
        claims: Write end of the claim pipe (level 1).
        requests: Write end of the requests.
        replies: Read end of the replies.

    Raises:
        OSError: The program cannot be started; raised here.
    """

    def __init__(
        self,
        argv: Sequence[str],
        level: int = 1,
        env: Mapping[str, str | None] | None = None,
        *,
        claim: bool = True,
        sockets: bool = False,
        packets: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        self.level = level
        self.timeout_s = timeout_s
        self._pipes = launch(argv, level, env, claim=claim, sockets=sockets, packets=packets)
        self.process = self._pipes.process
        self.requests, self.replies, self.claims = self._pipes.fds
        self._buffer = bytearray()
        self._sent = b""
        self._asked = False
        self._family: set[psutil.Process] = set()
        self._next_probe_id = 2**52

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.descendants()
        self.close_requests()
        with contextlib.suppress(ProcessLookupError):
            # The worker may have left children that hold its output; its session is its own.
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in self._family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(self.timeout_s)
        self.close_replies()
        os.close(self.claims)
        self._pipes.files.close()

    # Sending

    def wait_until_read(self) -> None:
        """Wait, at most ``timeout_s``, until the worker has taken all that was sent so far."""
        deadline = time.monotonic() + self.timeout_s
        unread = array.array("i", [1])
        while time.monotonic() < deadline:
            # Of a pipe the system tells it at the writing end too; nothing can be waited for.
            fcntl.ioctl(self.requests, termios.FIONREAD, unread)
            if not unread[0]:
                return
            time.sleep(POLL_S)

    def send_bytes(self, data: bytes, *, reading: bool = False) -> None:
        """Write raw bytes to the requests.

        Args:
            data: The bytes.
            reading: Whether to read replies meanwhile; without it, what no pipe holds the worker has to read.

        Raises:
            Finding: The worker does not take them in time, or has closed its end; raised here.
        """
        view, deadline = memoryview(data), time.monotonic() + self.timeout_s
        self._sent = bytes(view[:4096])
        self._asked = False
        while view:
            readers = [self.replies] if reading else []
            readable, writable, _ = select.select(readers, [self.requests], [], max(0.0, deadline - time.monotonic()))
            if not readable and not writable:
                raise SilenceFinding(
                    f"the worker read nothing more for {self.timeout_s:g} s, {len(view)} of {len(data)} bytes are left",
                    sent=self.sent,
                    expected="it reads each request completely, whatever the size",
                    hint="a deadlock: the bridge writes, or waits, where it should read" if reading else SILENCE_HINT,
                )
            if readable and (piece := os.read(self.replies, READ_BYTES)):
                self._buffer += piece
                deadline = time.monotonic() + self.timeout_s
            if writable:
                try:
                    view = view[os.write(self.requests, view[:READ_BYTES]) :]
                except OSError:
                    raise GoneFinding(
                        "the worker has closed its requests", sent=self.sent, received=self._describe_end()
                    ) from None
                deadline = time.monotonic() + self.timeout_s

    def send(self, message: Any, *frames: bytes, reading: bool = False) -> None:
        """Send one message and the raw frames that follow it."""
        self.send_bytes(b"".join([frame(dumps(message)), *map(frame, frames)]), reading=reading)
        self._asked = True

    def send_frame(self, payload: bytes) -> None:
        """Send one payload."""
        self.send_bytes(frame(payload))
        self._asked = True

    @property
    def sent(self) -> str:
        """What was sent last, fit to be shown."""
        head, body = self._sent[:4], self._sent[4:]
        return show_bytes(body if len(body) >= 4 and int.from_bytes(head, "big") >= 2 else self._sent)

    # Receiving

    def receive_frame(self) -> bytes:
        """Return the next payload.

        Raises:
            Finding: What came is no frame, the replies ended, or none came in time; raised here.
        """
        deadline = time.monotonic() + self.timeout_s
        while (payload := self._take_frame()) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self.replies], [], [], left_s)[0]:
                raise self._explain_silence()
            piece = os.read(self.replies, READ_BYTES)
            if not piece:
                raise GoneFinding(
                    "the replies ended where a reply was due",
                    sent=self.sent,
                    received=f"{self._describe_end()}; unfinished bytes: {show_bytes(bytes(self._buffer)) or 'none'}",
                )
            self._buffer += piece
        return payload

    def _take_frame(self) -> bytes | None:
        if len(self._buffer) < 4:
            return None
        length = int.from_bytes(self._buffer[:4], "big")
        if not 0 < length <= MAX_FRAME:
            seen = bytes(self._buffer[:80])
            text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in seen[:4])
            raise Finding(
                "text among the frames" if text else "stray bytes among the frames",
                sent=self.sent,
                expected="4 bytes of length, from 1 to max_frame, then the payload",
                received=show_bytes(seen),
                hint=TEXT_HINT if text else STRAY_HINT,
            )
        if len(self._buffer) < 4 + length:
            return None
        payload = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return payload

    def _explain_silence(self) -> Finding:
        what = f"no reply within {self.timeout_s:g} s"
        if self._buffer:
            length = int.from_bytes(self._buffer[:4], "big") if len(self._buffer) >= 4 else 0
            return SilenceFinding(
                f"{what}: the frame is not complete",
                sent=self.sent,
                expected=f"{length} bytes of payload" if length else "4 bytes of length and a payload",
                received=f"{max(0, len(self._buffer) - 4)} bytes: {show_bytes(bytes(self._buffer[:200]))}",
                hint="a write may take only a part: write on until all is written; the length counts bytes",
            )
        if self._asked and self.requests >= 0 and self.process.poll() is None:
            self._next_probe_id += 1
            with contextlib.suppress(OSError):
                os.write(self.requests, frame(dumps({"id": self._next_probe_id, "command": "ping", "args": {}})))
            if select.select([self.replies], [], [], min(PROBE_S, self.timeout_s))[0]:
                piece = os.read(self.replies, READ_BYTES)
                if piece and str(self._next_probe_id).encode() not in piece[:4096]:
                    return SilenceFinding(
                        "a missed flush: the reply came only after the next request",
                        sent=self.sent,
                        received=show_bytes(piece),
                        hint=FLUSH_HINT,
                    )
        return SilenceFinding(what, sent=self.sent, received=f"nothing; {self._describe_end()}", hint=SILENCE_HINT)

    def receive_packet(self) -> list[Any]:
        """Return the messages of one write of the worker, which was started with ``packets``."""
        if not self._buffer:
            if not select.select([self.replies], [], [], self.timeout_s)[0]:
                raise self._explain_silence()
            self._buffer += os.read(self.replies, READ_BYTES)
        messages = [self.receive()]
        while self._buffer:
            messages.append(self.receive())
        return messages

    def receive(self) -> Any:
        """Return the next message, whose structure is right."""
        payload = self.receive_frame()
        try:
            message = decode(payload)
        except (ValueError, RecursionError) as error:
            raise Finding(
                f"a reply is not strict JSON in UTF-8: {error}",
                sent=self.sent,
                received=show_bytes(payload),
                hint="check results before they are sent: what JSON cannot carry is an `encode_error`",
            ) from None
        fault = find_fault(message)
        if fault is not None:
            raise Finding(f"a message has the wrong structure: {fault}", sent=self.sent, received=show_json(message))
        return message

    def receive_attachments(self, message: Any, max_frame: int = MAX_FRAME) -> list[bytes]:
        """Return the bytes that follow a message, one value an entry of its ``attachments``."""
        blobs = []
        for entry in message.get("attachments", ()):
            blob = b""
            while len(blob) < entry["len"]:
                part, due = self.receive_frame(), min(max_frame, entry["len"] - len(blob))
                if len(part) != due:
                    raise Finding(
                        "a frame of an attachment has another length than announced",
                        expected=f"{due} bytes of the {entry['len']} announced (all frames full but the last)",
                        received=f"{len(part)} bytes: {show_bytes(part[:80])}",
                    )
                blob += part
            blobs.append(blob)
        return blobs

    # Whole exchanges

    def call(self, request_id: int, command: str, args: Any = None, **more: Any) -> Any:
        """Send one request and return the next message."""
        self.send({"id": request_id, "command": command, "args": {} if args is None else args, **more})
        return self.receive()

    def start(self, *, max_frame: int = MAX_FRAME, offer: bool | None = None) -> Any:
        """Make the handshake and return the reply.

        Args:
            max_frame: The limit to offer, bytes.
            offer: Whether to offer protocol 1; None: as the level says.
        """
        args: dict[str, Any] = {"worker_id": "w1", "initialization": True}
        if self.level if offer is None else offer:
            args["protocol"] = {"versions": [1], "max_frame": max_frame, "capabilities": list(CAPABILITIES)}
            args["start_args"] = None
        return self.call(0, "ping", args)

    def claim(self, count: int = 1) -> None:
        """Let the worker keep ``count`` claimed requests."""
        os.write(self.claims, b"c" * count)

    # The end

    def close_requests(self) -> None:
        """End the request stream; a second call does nothing."""
        if self.requests >= 0:
            os.close(self.requests)
            self.requests = -1

    def close_replies(self) -> None:
        """Stop reading: the worker can write no reply any more."""
        if self.replies >= 0:
            os.close(self.replies)
            self.replies = -1

    def wait(self) -> int:
        """Return the exit status (negative: the signal).

        Raises:
            Finding: The process has not ended in time; raised here.
        """
        try:
            return self.process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            raise Finding(f"the worker did not end within {self.timeout_s:g} s", sent=self.sent) from None

    def receive_end(self) -> bytes:
        """Return what is left in the replies up to their end; a frame's worth at most.

        Raises:
            Finding: They do not end, since some process still holds their other end; raised here.
        """
        deadline = time.monotonic() + self.timeout_s
        while len(self._buffer) < MAX_FRAME:
            if not select.select([self.replies], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Finding(
                    "the worker has ended, but a process that it leaked still holds the replies open",
                    hint="mark the descriptors close-on-exec, and end what the bridge has started",
                )
            piece = os.read(self.replies, READ_BYTES)
            if not piece:
                break
            self._buffer += piece
        return bytes(self._buffer)

    def leaked(self, before: Sequence[psutil.Process]) -> list[psutil.Process]:
        """Return the processes of ``before`` that have not ended within ``timeout_s``."""
        _, alive = psutil.wait_procs(list(before), timeout=self.timeout_s)
        return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def descendants(self) -> list[psutil.Process]:
        """Return the processes that the worker has started and that still run."""
        with contextlib.suppress(psutil.Error):
            if self.process.poll() is None:
                found = psutil.Process(self.process.pid).children(recursive=True)
                self._family.update(found)
                return list(found)
        return []

    def stderr(self) -> str:
        """Return what the worker wrote to its stderr so far."""
        return os.pread(self._pipes.stderr_fd, STDERR_BYTES, 0).decode(errors="replace")

    def stdout(self) -> str:
        """Return what the worker wrote to its stdout so far (level 1)."""
        return os.pread(self._pipes.stdout_fd, STDERR_BYTES, 0).decode(errors="replace")

    def _describe_end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"the process ended with status {self.process.wait(0.2)}"
        return "the process runs"

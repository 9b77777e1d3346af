"""The conversation with one worker: handshake, ids, capabilities, requests out, arrivals in.

Runs on the manager's thread; owns the channel and the ids that are open on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .._core.model import Request
from .._text import show
from .._wire import callables as _callables
from .._wire.frames import Buffer
from .._wire.messages import Message, MessageDecoder
from .._wire.outgoing import (
    MAX_BATCH_BYTES,
    BatchContent,
    CommandContent,
    encode_batch,
    encode_command,
    encode_message,
    encode_object,
    encode_pickle,
    encode_plain,
    joined,
)
from .._wire.pickled import Pickled
from ..config import PoolConfig
from ..errors import EncodeError, ProtocolError, ResultError, WorkerDied
from .arrivals import Arrival, Garbled, Refused, Reply, Shaken, SteppedOver
from .channel import READ_BYTES, Channel
from .contents import CallContent
from .remote_errors import command_error
from .worker_log import log

if TYPE_CHECKING:
    from .loans import Loan

__all__ = ("Link",)

CAPABILITIES = ("errors", "pipeline", "session", "deadline", "attachments", "batch", "log", "claim")
"""What the host offers at level 1; ``pickle`` joins for callable workers."""

_SPARE_REPLIES = 100
"""Arbitrary: a worker that answers twice now and then is borne, one that never stops answering is not."""

_BYTES_PER_TURN = 1 << 20
"""Bytes read before the other workers get their turn.  Arbitrary."""

LEAST_FRAME_BYTES = 1024
"""Least limit that a worker may set: any frame of the host's own making fits."""

_PING = encode_command("ping", {}, session_id=None, max_frame_bytes=65536, max_message_bytes=65536)


class Link:
    """One worker's protocol state.

    Args:
        worker_id: For messages.
        channel: Its descriptors.
        level: Highest level to offer.
        callables: True for a worker of the callable adapter.
        config: Limits.
    """

    # INVARIANT: `_open` holds (id, request, error) of every frame that the worker has yet to answer, in
    # the order sent; an error there is told in the place of the answer.
    def __init__(self, worker_id: str, channel: Channel, *, level: int, callables: bool, config: PoolConfig) -> None:
        self.worker_id = worker_id
        self.pid: int | None = None
        self.channel = channel
        self._level = level
        self._callables = callables
        self._config = config
        # What is sent obeys the smaller of both sides' limits.
        self._max_frame_bytes = config.max_frame_bytes
        self._decoder = MessageDecoder(
            max_frame_bytes=config.max_frame_bytes,
            max_message_bytes=config.max_message_bytes,
            allow_pickle=callables,
        )
        self._open: deque[tuple[int, Request | None, BaseException | None]] = deque()
        # Items of the oldest open frame that were answered, when it is a batch: those are never sent ahead.
        self._items = 0
        self._next_id = 0
        self._capabilities: frozenset[str] = frozenset()
        self._dropped = 0
        self._deaf = False
        self.watched_fd: int | None = None
        # INVARIANT: while a caller's thread holds this link, the manager neither reads, writes nor closes: what it
        # would do waits in `deferred` until the caller has given it back (`_pool/loans`).
        self.away: Loan | None = None
        self.deferred: list[Callable[[], object]] = []

    def put_off(self, act: Callable[[Any], object], what: Any) -> bool:
        """Do something once the link is back, and return True; False: it is not away."""
        if self.away is None:
            return False
        self.deferred.append(partial(act, what))
        return True

    # Out --------------------------------------------------------------------------------------------

    def begin(self, start_args: Any, preparation: bytes | None) -> None:
        """Send the first request, and for a callable worker its preparation."""
        args: dict[str, Any] = {"worker_id": self.worker_id, "initialization": True}
        if self._level:
            offered = [*CAPABILITIES, *(["pickle"] if self._callables else [])]
            limit = self._config.max_frame_bytes
            args["protocol"] = {"versions": [1], "max_frame": limit, "capabilities": offered}
            args["start_args"] = start_args
            if preparation is not None:
                args["prepare"] = True
            if self._callables:
                args["protocol"]["max_message"] = self._config.max_message_bytes
        content = encode_command("ping", args, session_id=None, max_frame_bytes=1 << 27, max_message_bytes=1 << 27)
        self._open.append((self._take_id(), None, None))
        buffers = encode_message(content, 0, timestamp=self._level == 0, max_frame_bytes=1 << 27)
        if preparation is not None:
            buffers += encode_pickle((preparation,), self._config.max_frame_bytes)
        self.channel.send(buffers)

    def send(self, requests: Sequence[Request]) -> None:
        """Send requests, in order; those that were sent ahead get their claim tokens first."""
        ahead = sum(request.ahead for request in requests)
        if ahead:
            self.channel.grant(ahead)
        buffers: list[Buffer] = []
        for request in requests:
            buffers += self._encode(request)
        self.channel.send(buffers if len(buffers) == 1 else joined(buffers))

    def _encode(self, request: Request) -> list[Buffer]:
        request_id = self._take_id()
        error: BaseException | None = None
        buffers: list[Buffer] | None = None
        content = request.content
        if type(content) is CommandContent and content.is_plain and request.timeout_s is None and self._level:
            plain = encode_plain(content, request_id, "session" in self._capabilities, request.ahead)
            if len(plain) - 4 <= self._max_frame_bytes:
                self._open.append((request_id, request, None))
                return [plain]
        if type(content) is BatchContent:
            self._items = 0
            self._open.append((request_id, request, None))
            return [encode_batch(content, request_id)]
        try:
            if isinstance(content, CommandContent):
                buffers = self._encode_command(content, request, request_id)
            elif isinstance(content, CallContent):
                buffers = self._encode_call(content, request, request_id)
        except BaseException as raised:
            # Only this request's encoding failed (attachments or a length that the worker does not take, a late
            # pickle): a ping goes in its place, so that answers stay in order, and the error in that of the answer.
            error = raised
        if buffers is None:
            buffers = encode_message(_PING, request_id, timestamp=self._level == 0, claim=request.ahead)
        self._open.append((request_id, request, error))
        return buffers

    def _encode_command(self, content: CommandContent, request: Request, request_id: int) -> list[Buffer]:
        known = self._capabilities
        if content.raw and "attachments" not in known:
            raise EncodeError(
                f"/args: the worker takes no bytes ('attachments' is not announced); {request.command!r} was not sent"
            )
        return encode_message(
            content,
            request_id,
            session="session" in known,
            timestamp=self._level == 0,
            deadline_ms=self._deadline_ms(request) if "deadline" in known else None,
            claim=request.ahead,
            max_frame_bytes=self._max_frame_bytes,
        )

    def _encode_call(self, content: CallContent, request: Request, request_id: int) -> list[Buffer]:
        body = content.body if content.body is not None else content.encode()
        header = _callables.request_header(
            request_id, content.session_id, self._deadline_ms(request), request.ahead, content.kind
        )
        if len(body) > self._config.max_message_bytes:
            raise EncodeError(
                f"{request.command}: {len(body)} bytes of pickled call"
                f" (max_message_bytes is {self._config.max_message_bytes})"
            )
        if isinstance(body, Pickled):
            return encode_pickle((header, *body.parts), self._max_frame_bytes, body.buffers)
        return encode_pickle((header, body), self._max_frame_bytes)

    @staticmethod
    def _deadline_ms(request: Request) -> int | None:
        return None if request.timeout_s is None else max(1, int(request.timeout_s * 1000))

    def end_session(self, session_id: str) -> None:
        """Tell the worker to drop a session's state."""
        told = encode_object({"type": "session_end", "session": session_id})
        # A session whose id does not fit has no state there: its requests did not fit either.
        if len(told) - 4 <= self._max_frame_bytes:
            self.channel.send([told])

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    # In ---------------------------------------------------------------------------------------------

    def receive(self, *, drain: bool = False) -> list[Arrival]:
        """Read what has arrived.

        Args:
            drain: Read until the pipe is empty: the worker has ended.
        """
        arrivals: list[Arrival] = []
        if self._deaf:
            self.channel.receive()
            return arrivals
        for message in self._read(drain):
            try:
                arrival = self._take(message)
            except Exception as error:
                return [*arrivals, self._garbled(error)]
            if arrival is not None:
                arrivals.append(arrival)
        if self._decoder.error is not None:
            arrivals.append(self._garbled(self._decoder.error))
        elif self.channel.error is not None:
            self._deaf = True
            arrivals.append(Garbled(self.lost()))
        return arrivals

    def _read(self, drain: bool) -> list[Message]:
        """Return the messages that are complete; what is long is read to where it will stay."""
        decoder, channel = self._decoder, self.channel
        if drain:
            return decoder.feed(channel.drain())
        messages: list[Message] = []
        left = _BYTES_PER_TURN
        while left > 0:
            room = decoder.room()
            if room is None:
                data = channel.receive()
                count = len(data)
                messages += decoder.feed(data)
                # A pipe gives what it has: a short read means that it is empty now.
                if count < READ_BYTES and decoder.room() is None:
                    break
            else:
                count = channel.receive_into(room[:left])
                messages += decoder.wrote(count)
                if not count:
                    break
            left -= count
        return messages

    def finish(self) -> Exception | None:
        """Return the error of a stream that ended inside a frame, or None."""
        return None if self._deaf else self._decoder.finish()

    def lost(self) -> Exception:
        """Return what the oldest request fails with when the host cannot use a pipe."""
        what = f"worker {self.worker_id} (pid {self.pid}) was out of reach, and was ended: {self.channel.error}"
        error = WorkerDied(what, pid=self.pid)
        error.__cause__ = self.channel.error
        return error

    def _garbled(self, error: Exception) -> Garbled:
        self._deaf = True
        if isinstance(error, ProtocolError):
            return Garbled(ProtocolError(f"worker {self.worker_id} broke the protocol: {error}"))
        # The host's trouble: no memory for what the worker wrote, for one.
        result = ResultError(f"a reply of worker {self.worker_id} could not be read here: {error!r}")
        result.__cause__ = error
        return Garbled(result)

    def _take(self, message: Message) -> Arrival | None:
        if isinstance(message, list):
            return self._take_pickle(message)
        if len(message) == 3 and self._open and message.get("success") is True and "result" in message:
            request_id, request, error = self._open[0]
            known = type(message.get("id")) is int and message["id"] == request_id
            if known and request is not None and request.answers is None:
                self._open.popleft()
                return Reply(request, error, None if error is not None else message["result"])
        if len(message) == 4 and self._open and message.get("success") is True and "result" in message:
            request_id, request, _ = self._open[0]
            known = type(message.get("id")) is int and message["id"] == request_id
            if known and request is not None and request.answers is not None:
                return self._take_item(request, request.answers, True, message)
        kind = message.get("type")
        if kind == "log":
            log(self.worker_id, message)
            return None
        if "id" not in message:
            if kind is not None:
                return None
            raise ProtocolError(f"a reply without an id: {show(message)}")
        request_id = message["id"]
        if type(request_id) is not int:
            raise ProtocolError(f"a reply to id {show(request_id)}: {show(message.get('error'))}")
        if not self._is_next(request_id):
            return None
        of_items = self._open[0][1]
        if kind == "recalled":
            if of_items is not None and of_items.answers is not None:
                raise ProtocolError(f"an item of request {request_id} was stepped over, and nobody took it back")
            self._open.popleft()
            return SteppedOver()
        if kind is not None:
            return None
        success = message.get("success")
        if type(success) is not bool:
            raise ProtocolError(f"a reply to id {request_id} without 'success'")
        if of_items is not None and of_items.answers is not None:
            return self._take_item(of_items, of_items.answers, success, message)
        _, request, error = self._open.popleft()
        if request is None:
            return self._shake(success, message)
        if error is None and not success:
            error = command_error(message.get("error"))
        return Reply(request, error, None if error is not None else message.get("result"))

    def _take_item(
        self, request: Request, answers: list[Any], success: bool, message: dict[str, Any]
    ) -> Arrival | None:
        """Take the answer to one item of a batch; all of them are one reply."""
        index = message.get("index")
        if type(index) is not int or index != self._items:
            raise ProtocolError(f"a reply to item {show(index)} where that to item {self._items} was due")
        self._items += 1
        # What has been given up was counted with the answers that it had.
        if not request.settled:
            answers.append(message.get("result") if success else command_error(message.get("error")))
        if self._items < request.weight:
            return None
        self._open.popleft()
        return Reply(request, None, answers)

    def _take_pickle(self, message: list[Buffer]) -> Arrival | None:
        request_id, kind, body = _callables.decode_reply(message[0])
        if not self._is_next(request_id):
            return None
        _, request, error = self._open.popleft()
        if kind == "recalled":
            return SteppedOver()
        if request is None:
            raise ProtocolError("a pickle in the place of the handshake")
        return Reply(request, error, pickled=None if error is not None else (kind, body, message[1:]))

    def _is_next(self, request_id: int) -> bool:
        """Say whether a reply is for the oldest open frame; False for a late one, which is dropped."""
        if self._open and self._open[0][0] == request_id:
            return True
        if not 0 <= request_id < self._next_id:
            raise ProtocolError(f"a reply to id {request_id}, which was never issued")
        if self._open and request_id > self._open[0][0]:
            raise ProtocolError(f"a reply to id {request_id} before that to {self._open[0][0]}")
        self._dropped += 1
        if self._dropped > self._next_id + _SPARE_REPLIES:
            raise ProtocolError(f"{self._dropped} replies to requests that were answered before, of {self._next_id}")
        return False

    def _shake(self, success: bool, message: dict[str, Any]) -> Arrival:
        if not success:
            error = message.get("error")
            fatal = isinstance(error, dict) and error.get("code") == "initializer_error"
            return Refused(command_error(error), fatal)
        result = message.get("result")
        if not isinstance(result, dict) or result.get("status") != "ok":
            return Refused(ProtocolError(f"the handshake's result has no status 'ok': {show(result)}"))
        protocol = result.get("protocol")
        if protocol is None or not self._level:
            self._level = 0
            if self._callables:
                return Refused(ProtocolError("the worker does not announce 'pickle'"))
            return Shaken(False, False)
        if not isinstance(protocol, dict) or protocol.get("version") != 1:
            return Refused(ProtocolError(f"the worker wants another protocol: {show(protocol)}"))
        announced = protocol.get("capabilities", [])
        if not isinstance(announced, list):
            return Refused(ProtocolError(f"capabilities must be a list, not {show(announced)}"))
        offered = {*CAPABILITIES, *(["pickle"] if self._callables else [])}
        self._capabilities = frozenset(name for name in announced if isinstance(name, str)) & offered
        if self._callables and "pickle" not in self._capabilities:
            return Refused(ProtocolError("the worker does not announce 'pickle'"))
        own = self._config.max_frame_bytes
        limit = protocol.get("max_frame", own)
        if type(limit) is not int or limit < LEAST_FRAME_BYTES:
            return Refused(ProtocolError(f"max_frame must be an int >= {LEAST_FRAME_BYTES}, not {show(limit)}"))
        self._max_frame_bytes = min(own, limit)
        can_claim = {"pipeline", "claim"} <= self._capabilities and self.channel.has_claims
        # A map cuts its parts for every worker alike.
        can_batch = "batch" in self._capabilities and self._max_frame_bytes >= min(own, MAX_BATCH_BYTES)
        return Shaken(can_claim, "session" in self._capabilities, can_batch, protocol)

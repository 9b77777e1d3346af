#!/usr/bin/env python3
"""Python worker of the frame protocol: answers requests with handlers from one file, or runs callables.

Run by the host as ``python snakepit_bridge.py [--handlers FILE_OR_MODULE] [--callables]``; standard
library only, Python 3.8 and later.  Handler files import ``command``, ``on_start`` and ``context``
from ``snakepit_bridge``.  All requests run on the main thread, one after another; one further thread
waits for the end of the request stream.  bridges/PROTOCOL.md is the normative text.
"""

import os
import sys
import time
from _thread import allocate_lock, start_new_thread
from io import BytesIO
from select import poll

try:  # the public module makes enums of its numbers, which takes as long as half an interpreter's start
    from _signal import SIG_IGN, SIGINT, signal
except ImportError:
    from signal import SIG_IGN, SIGINT, signal

# A handler file imports this module by name although it runs as __main__ (or as __mp_main__ in a
# process that the handlers start with multiprocessing).
sys.modules.setdefault("snakepit_bridge", sys.modules[__name__])

__all__ = ("command", "context", "on_start")

BRIDGE_VERSION = "1.0"
DEFAULT_MAX_FRAME = 64 * 1024 * 1024
LARGEST_MAX_FRAME = 128 * 1024 * 1024 - 1
MAX_DEPTH = 256  # levels of nesting in a result; the host's limit for args is the same
MAX_TEXT_BYTES = 64 * 1024  # of an error's message, and of its traceback
ENVELOPE_BYTES = 64  # what a reply has around its result, at most
READ_CHUNK_BYTES = 64 * 1024  # the default capacity of a pipe
BATCH_WAIT_S = 0.001  # PROTOCOL.md, "batch"
EOF_GRACE_MS = 250  # arbitrary: lets a reply that is nearly done leave when only the requests have ended
CAPABILITIES = ("errors", "pipeline", "session", "deadline", "attachments", "batch", "log", "claim", "pickle")
PICKLE_START = 0x80
PICKLE_PART = 0x81  # announces a part of a pickle that is not in one frame: any but the last
PICKLE_END = 0x82
LARGE_BYTES = 64 * 1024  # from here on bytes are not copied if that can be helped; also pickle's own limit
MAPPED_BYTES = 2 * 1024 * 1024  # from here on memory comes from the kernel itself: the size of its huge pages


class Refused(Exception):
    """A request is answered with this error without a traceback: the reply says it all."""

    def __init__(self, code, kind, message):
        super().__init__(message)
        self.code = code
        self.kind = kind


class FramingError(Exception):
    """The request stream cannot be followed any further: a bad length, or an end inside a frame."""


def bad_args(message):
    return Refused("bad_args", "InvalidArguments", message)


def complain(line):
    """Write one line to stderr; a closed stderr is nobody's reader and no reason to stop."""
    try:
        os.write(2, ("snakepit_bridge: " + line + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        return


def cap(text, keep_end=False):
    """Return text that is valid UTF-8 and at most MAX_TEXT_BYTES long, keeping its start or its end."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_TEXT_BYTES:
        data = b"[...]\n" + data[6 - MAX_TEXT_BYTES :] if keep_end else data[: MAX_TEXT_BYTES - 5] + b"[...]"
    return data.decode("utf-8", "ignore")


# ---------------------------------------------------------------------------------------------- frames


class Stream:
    """Frames over two descriptors: exact reads (many frames from one system call), complete writes."""

    def __init__(self, in_fd, out_fd, claim_fd):
        self.in_fd = in_fd
        self.out_fd = out_fd
        self.claim_fd = claim_fd
        self.max_frame = DEFAULT_MAX_FRAME
        self.max_message = DEFAULT_MAX_FRAME  # of pickles with their buffers
        self.forked = False
        self._buffer = b""
        self._start = 0
        self._area = None
        # INVARIANT: whole frames of the main thread that wait to be written together; none while it waits for
        # the pipe, and while a handler runs only those of its own batch.
        self.held = bytearray()
        # LOCK: guards one whole message on the out descriptor (log frames come from any thread); never
        # held while calling out.
        self._write_lock = allocate_lock()

    def read_frame(self):
        """Return the next payload, which is valid until the next one is read, or None at the end of the stream.

        Raises:
            FramingError: Length 0 or above the limit, or the stream ended inside a frame.
        """
        size = self._read_length()
        if size is None:
            return None
        start = self._start
        end = start + size
        if end <= len(self._buffer):
            self._start = end
            return self._buffer[start:end]
        payload = self.transient(size)
        self._read_payload(payload)
        return payload

    def transient(self, size):
        """Return a writable view that is valid until the next payload is read: the same memory whenever that fits."""
        if size < LARGE_BYTES or size > MAPPED_BYTES:
            return allocate(size)
        if self._area is None:
            self._area = allocate(MAPPED_BYTES)
        return self._area[:size]

    def read_raw(self, view):
        """Fill a writable view with the payloads of the next frames, all of which are full but the last.

        Raises:
            FramingError: As ``read_frame``; or a frame has another length.
        """
        while len(view):
            due = min(self.max_frame, len(view))
            size = self._read_length()
            if size != due:
                got = "the end of the stream" if size is None else "a frame of %d" % size
                raise FramingError("a frame of %d bytes was due, got %s" % (due, got))
            self._read_payload(view[:due])
            view = view[due:]

    def _read_length(self):
        buffer, start = self._buffer, self._start
        body = start + 4
        while len(buffer) < body:
            self.flush()
            more = os.read(self.in_fd, READ_CHUNK_BYTES)
            if not more:
                if len(buffer) == start:
                    return None
                raise FramingError("the request stream ended inside a length")
            self._buffer = buffer = buffer[start:] + more
            start, body = 0, 4
        size = int.from_bytes(buffer[start:body], "big")
        if not 0 < size <= self.max_frame:
            seen = buffer[start : start + 80]
            raise FramingError("length %d is not in 1..%d; bytes seen: %r" % (size, self.max_frame, seen))
        self._start = body
        return size

    def _read_payload(self, view):
        size = len(view)
        here = self._buffer[self._start : self._start + size]
        done = len(here)
        view[:done] = here
        self._start += done
        if done < size:
            self.flush()
        while done < size:
            count = os.readv(self.in_fd, [view[done:]])
            if not count:
                raise FramingError("the request stream ended after %d of a frame's %d bytes" % (done, size))
            done += count

    def write_frame(self, *parts):
        """Write one frame made of bytes-like parts; a host that is gone ends this process."""
        size = sum(map(len, parts))
        if size < LARGE_BYTES:
            self.write(b"".join((size.to_bytes(4, "big"), *parts)))
        else:
            self.write(b"", self.cut(*parts))

    def write(self, small, buffers=()):
        """Write bytes, then buffers: whole frames, heads included, with no other frame in between."""
        try:
            with self._write_lock:
                written = os.write(self.out_fd, small) if small else 0
                if buffers or written < len(small):
                    self._write_all([memoryview(small)[written:], *map(memoryview, buffers)])
        except BrokenPipeError:
            os._exit(0)
        except OSError as error:
            complain("cannot write a reply: %s" % error)
            os._exit(2)

    def hold(self, payload):
        """Write one frame with those that follow it, at the latest at the next flush.

        THREAD: the main thread, like ``flush``.
        """
        self.held += len(payload).to_bytes(4, "big")
        self.held += payload
        if len(self.held) > READ_CHUNK_BYTES:
            self.flush()

    def flush(self):
        """Write the frames that are held."""
        if self.held:
            held, self.held = self.held, bytearray()
            self.write(held)

    def cut(self, *parts):
        """Return the frames, heads included, that carry these parts one after the other, as buffers to write."""
        left = sum(map(len, parts))
        room = 0
        buffers = []
        for part in parts:
            view = memoryview(part)
            while len(view):
                if not room:
                    room = min(self.max_frame, left)
                    left -= room
                    buffers.append(room.to_bytes(4, "big"))
                buffers.append(view[:room])
                room -= len(buffers[-1])
                view = view[len(buffers[-1]) :]
        return buffers

    def _write_all(self, views):
        while views:
            try:
                written = os.writev(self.out_fd, views[:64])
            except BlockingIOError:
                waiter = poll()
                waiter.register(self.out_fd, 4)  # POLLOUT
                waiter.poll()
                continue
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views:
                views[0] = views[0][written:]

    def claim(self):
        """Take the byte that stands for one request sent ahead: False when the host has taken it back."""
        if self.claim_fd is None:
            raise Refused("internal", "ProtocolError", "claim: this worker has no SNAKEPIT_CLAIM_FD")
        try:
            return bool(os.read(self.claim_fd, 1))
        except BlockingIOError:
            return False

    def drop_in_child(self):
        """After a fork in a handler: the stream belongs to the parent alone."""
        self.forked = True
        for fd in (self.in_fd, self.out_fd, self.claim_fd):
            if fd is not None:
                os.close(fd)
        self.in_fd = self.out_fd = -1
        self._write_lock = allocate_lock()
        self._buffer = b""
        self.held = bytearray()


def allocate(size):
    """Return a writable view of new memory, in huge pages where it is large and the system has them."""
    if size < MAPPED_BYTES:
        return memoryview(bytearray(size))
    import mmap

    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            # A fault for each 2 MiB and not for each 4 KiB: filling new memory was 8 times as fast.
            area.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them: small pages serve
            return memoryview(area)
    return memoryview(area)


def open_stream():
    """Take the descriptors of the frames out of user code's reach.

    With ``SNAKEPIT_FDS=in,out`` they are private already; without it 0 and 1 are moved away, and 0
    becomes the null device, 1 the same as 2.

    Raises:
        ValueError, OSError: The environment names something that is not an open descriptor.
    """
    names = os.environ.pop("SNAKEPIT_FDS", None)
    claim = os.environ.pop("SNAKEPIT_CLAIM_FD", None)
    claim_fd = None if claim is None else int(claim)
    if names is not None:
        numbers = names.split(",")
        if len(numbers) != 2:
            raise ValueError("SNAKEPIT_FDS is 'in,out', two numbers, not %r" % names)
        in_fd, out_fd = map(int, numbers)
    else:
        in_fd, out_fd = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        try:
            os.dup2(2, 1)
        except OSError:
            os.dup2(null, 1)
        if null > 2:
            os.close(null)
    for fd in (in_fd, out_fd, claim_fd):
        if fd is not None:
            os.set_inheritable(fd, False)
    if claim_fd is not None:
        os.set_blocking(claim_fd, False)
    return Stream(in_fd, out_fd, claim_fd)


def leave(status):
    """End the process with an exit status, or by a signal if it is negative."""
    if status < 0:
        from resource import RLIMIT_CORE, setrlimit

        setrlimit(RLIMIT_CORE, (0, 0))  # this process has not crashed itself
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)  # as a shell says it of a signal that is ignored here


def watch_eof(runner):
    """Wait for the host to close the request pipe, and end a worker that is too busy to see it.

    THREAD: its own.  It asks for no events, so only the hang-up wakes it: requests cost nothing.
    """
    stream = runner.stream
    waiter = poll()
    waiter.register(stream.in_fd, 0)
    waiter.poll()
    # RACE: 1. the host closes both pipes, or 2. it closes the requests and still reads replies.  In
    # the first case nobody waits for anything; in the second a reply on its way out gets a moment
    # (tests/unit/test_races_supervision.py::test_a_worker_whose_host_closes_both_pipes and
    # tests/unit/test_races_supervision.py::test_a_worker_whose_host_still_reads_replies).
    waiter = poll()
    waiter.register(stream.out_fd, 0)
    waiter.poll(EOF_GRACE_MS)
    if runner.closing:
        time.sleep(2)  # arbitrary: exit handlers and threads of user code, as long as the host's grace
    os._exit(0)


# ------------------------------------------------------------------------------------------------ JSON


def _no_constant(name):
    raise ValueError("%s is not JSON" % name)


def _finite_float(text):
    value = float(text)
    if value - value != 0.0:
        raise ValueError("number %s is out of range" % text[:40])
    return value


def _unsupported(value):
    raise TypeError("%s is not a JSON type" % type(value).__name__)


LARGE_TEXT = 8192
"""Characters from which it is faster to look for each character that JSON escapes than to look at each character."""
SAMPLE = 2048
_ESCAPES = [("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("\f", "\\f"), ("\b", "\\b")]
_ESCAPES += [(chr(code), "\\u%04x" % code) for code in range(32) if chr(code) not in "\n\r\t\f\b"]


class _Strict:
    """What the C scanner asks a decoder for."""

    strict, object_hook, object_pairs_hook, parse_int = True, None, None, int
    parse_float, parse_constant = staticmethod(_finite_float), staticmethod(_no_constant)


def _make_codec():
    """Return (scan, encode, encode a value with large texts), the C functions themselves.

    For json imports re, which takes as long as all else here, and ``JSONEncoder.encode`` makes the C encoder anew for
    each value.
    """
    sample = {"a": [1.5, None]}
    try:
        from _json import encode_basestring, make_encoder, make_scanner

        def encoder(quote):
            inner = make_encoder(None, _unsupported, quote, None, ":", ",", False, False, False)
            return lambda value: "".join(inner(value, 0))

        def quote_large(text):
            # What was said of the first part holds for the rest, or costs time at most.
            if len(text) > LARGE_TEXT and len(encode_basestring(text[:SAMPLE])) < SAMPLE + SAMPLE // 32:
                for plain, escaped in _ESCAPES:
                    if plain in text:
                        text = text.replace(plain, escaped)
                return '"%s"' % text
            return encode_basestring(text)

        scan, encode, encode_large = make_scanner(_Strict), encoder(encode_basestring), encoder(quote_large)
        usable = scan(encode(sample), 0) == scan(encode_large(sample), 0) == (sample, 16)
    except Exception:  # another Python's private signatures
        usable = False
    if usable:
        return scan, encode, encode_large
    from json import JSONEncoder

    options = {"ensure_ascii": False, "allow_nan": False, "check_circular": False, "separators": (",", ":")}
    encode = JSONEncoder(default=_unsupported, **options).encode
    return _public_decoder().scan_once, encode, encode


def _public_decoder():
    from json import JSONDecoder

    return JSONDecoder(parse_constant=_no_constant, parse_float=_finite_float)


_scan, dumps, dumps_large = _make_codec()


def parse(payload):
    """Return the JSON value of a payload.

    Raises:
        ValueError, RecursionError: Not UTF-8, not strict JSON, a lone surrogate, or nested too deeply.
    """
    text = payload.decode() if type(payload) is bytes else str(payload, "utf-8")
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        return _public_decoder().decode(text)
    if end != len(text):
        return _public_decoder().decode(text)
    if "\\u" in text:
        dumps(value).encode()
    return value


_LEAVES = frozenset((str, int, float, bool, type(None)))
_JSON_TYPES = _LEAVES.union((dict, list, tuple))


def encoder_of(value, depth=MAX_DEPTH):
    """Return what encodes a value of exact JSON types throughout, None for another one.

    What its leaves hold the encoder checks.
    """
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return None
        value = value.values()
    elif kind is str:
        return dumps_large if len(value) > LARGE_TEXT else dumps
    elif kind is not list and kind is not tuple:
        return dumps if kind in _LEAVES else None
    if len(value) > 16 and _LEAVES.issuperset(map(type, value)):
        return dumps
    best = dumps
    for item in value:
        kind = type(item)
        if kind is str:
            if len(item) > LARGE_TEXT:
                best = dumps_large
        elif kind not in _LEAVES:
            inner = encoder_of(item, depth - 1) if depth > 1 else None
            if inner is None:
                return None
            if inner is not dumps:
                best = inner
    return best


def encode(value, root, attachments):
    """Return a value as JSON text in UTF-8.

    Args:
        value: What a handler returned.
        root: Where it stands in the message, e.g. ``result``.
        attachments: A list that receives ``(pointer, bytes)``, or None where bytes cannot travel.

    Raises:
        Refused: ``encode_error`` with the path of the first value that cannot be sent.
    """
    if value is None:
        return b"null"
    dump = encoder_of(value)
    if dump is not None:
        try:
            return dump(value).encode()
        except (ValueError, RecursionError) as error:
            reason = str(error)
            attachments = None
    else:
        reason = "the value cannot be encoded as JSON"
    try:
        return dumps(convert(value, root, (), attachments)).encode()
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error) or reason
    raise encode_error(root, reason)


def encode_error(path, reason):
    shown = path if len(path) <= 200 else path[:120] + "..." + path[-60:]
    return Refused("encode_error", "EncodeError", "%s: %s" % (shown, reason))


def convert(value, path, parents, attachments):
    """Copy a value with exact types and null for each bytes value; refuse the first that has no place.

    Raises:
        Refused: See ``encode``.
    """
    if isinstance(value, (dict, list, tuple)):
        if id(value) in parents:
            raise encode_error(path, "a cycle: the value contains itself")
        if len(parents) >= MAX_DEPTH:
            raise encode_error(path, "nested deeper than %d levels" % MAX_DEPTH)
        parents += (id(value),)
        if not isinstance(value, dict):
            return [convert(item, "%s/%d" % (path, i), parents, attachments) for i, item in enumerate(value)]
        copy = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise encode_error(path, "key %.80r is %s; JSON keys are str" % (key, type(key).__name__))
            check_text(key, path)
            inner = "%s/%s" % (path, key.replace("~", "~0").replace("/", "~1"))
            copy[str.__str__(key)] = convert(item, inner, parents, attachments)
        return copy
    if isinstance(value, (bytes, bytearray, memoryview)):
        if attachments is None:
            raise encode_error(path, "%s cannot travel: the host takes no attachments" % type(value).__name__)
        attachments.append(("/" + path, bytes(value)))
        return None
    if isinstance(value, float):
        number = float(value)
        if number - number != 0.0:
            name = "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"
            raise encode_error(path, "%s is not JSON" % name)
        return number
    if isinstance(value, str):
        check_text(value, path)
        return str.__str__(value)
    if value is None or isinstance(value, int):
        return value
    name = "%s.%s" % (type(value).__module__, type(value).__qualname__)
    name = name.replace("builtins.", "")
    hint = "; return a list" if hasattr(value, "__next__") or hasattr(value, "__anext__") else ""
    raise encode_error(path, "%s is not a JSON type%s" % (name, hint))


def check_text(text, path):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = "text with a lone surrogate at index %d is not UTF-8" % error.start
        raise encode_error(path, reason) from None


# -------------------------------------------------------------------------------------------- handlers

_FUNCTION = type(bad_args)


class Handler:
    """One command: its function, and the parameters that it takes."""

    def __init__(self, name, fn, raw_params=None):
        self.name = name
        self.fn = fn
        self.raw = raw_params is not None  # a built-in: takes args as they came
        self.is_function = type(fn) is _FUNCTION
        self.params = raw_params or ()
        self._signature = None
        if self.is_function and not self.raw:
            code = fn.__code__
            self.params = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    def call(self, args):
        """Bind and call: an object is keywords, an array positionals, null nothing, a scalar one positional.

        Raises:
            Refused: ``bad_args``, when the arguments do not fit; nothing was called.
        """
        fn = self.fn
        if self.raw:
            return fn(args)
        if not self.is_function:
            self._check(args)
        kind = type(args)
        try:
            if kind is dict:
                return fn(**args) if args else fn()
            if kind is list:
                return fn(*args)
            return fn() if args is None else fn(args)
        except TypeError as error:
            # A function of Python that was entered has a frame of its own in the traceback.
            if self.is_function and error.__traceback__.tb_next is None:
                self._check(args)
            raise

    def _check(self, args):
        import inspect

        keywords = args if type(args) is dict else {}
        values = args if type(args) is list else () if args is None or type(args) is dict else (args,)
        if self._signature is None:
            try:
                self._signature = inspect.signature(self.fn, follow_wrapped=False)
            except (TypeError, ValueError):
                self._signature = False  # a builtin without a signature: only calling it can tell
        if self._signature is False:
            return
        try:
            self._signature.bind(*values, **keywords)
        except TypeError as error:
            raise bad_args(self._mismatch(inspect, values, keywords, str(error))) from None

    def _mismatch(self, inspect, values, keywords, reason):
        kinds = inspect.Parameter
        params = list(self._signature.parameters.values())
        positional = [p for p in params if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        filled = {p.name for p in positional[: len(values)]}
        filled.update(p.name for p in params if p.name in keywords and p.kind is not kinds.POSITIONAL_ONLY)
        stars = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        required = [p.name for p in params if p.default is p.empty and p.kind not in stars]
        missing = [name for name in required if name not in filled]
        by_name = {p.name for p in params if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
        takes_any = any(p.kind is kinds.VAR_KEYWORD for p in params)
        unexpected = [] if takes_any else sorted(name for name in keywords if name not in by_name)
        parts = []
        if missing:
            parts.append("missing " + ", ".join("'%s'" % name for name in missing))
        if unexpected:
            parts.append("unexpected " + ", ".join("'%s'" % name for name in unexpected))
        if len(values) > len(positional):
            parts.append("takes at most %d positional arguments, got %d" % (len(positional), len(values)))
        signature = "%s%s" % (self.name, self._signature)
        return cap("%s: %s; signature: %s" % (self.name, "; ".join(parts) or reason, signature))

    def describe(self):
        doc = self.fn.__doc__
        told = {"params": list(self.params), "doc": cap(doc.strip()) if isinstance(doc, str) else ""}
        if self.is_function and not self.raw:
            told["schema"] = self._schema()
        return told

    def _schema(self):
        """Return the JSON Schema of an object of arguments, as far as the annotations tell types."""
        fn, code = self.fn, self.fn.__code__
        types = getattr(fn, "__annotations__", {})
        positional = self.params[: code.co_argcount - len(fn.__defaults__ or ())]
        keywords = [name for name in self.params[code.co_argcount :] if name not in (fn.__kwdefaults__ or {})]
        return {
            "type": "object",
            "properties": {name: schema_of_type(types.get(name)) for name in self.params},
            "required": [*positional, *keywords],
            "additionalProperties": bool(code.co_flags & 8),  # CO_VARKEYWORDS
        }


def schema_of_type(kind):
    """Return the JSON Schema of an annotation, that of any value for one that JSON knows nothing of."""
    name = kind if isinstance(kind, str) else "None" if kind is type(None) else getattr(kind, "__name__", None)
    members = getattr(kind, "__args__", None)
    origin = getattr(kind, "__origin__", None)
    if origin in (list, tuple, dict):
        name = origin.__name__
    elif members and name in (None, "Union", "Optional", "UnionType"):
        choices = [schema_of_type(member) for member in members]
        return {"anyOf": choices} if {} not in choices else {}
    json_type = _TYPE_NAMES.get(name)
    return {} if json_type is None else {"type": json_type}


_TYPE_NAMES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "dict": "object",
    "None": "null",
}


class Registry:
    """The commands of this worker, {name: Handler}, and its on_start functions."""

    def __init__(self):
        self.commands = {}
        self.starters = []

    def add(self, name, fn):
        old = self.commands.get(name)
        if not isinstance(name, str) or not name:
            raise TypeError("a command's name is a non-empty str, not %r" % (name,))
        if not callable(fn):
            raise TypeError("command %r: %r is not callable" % (name, fn))
        if name == "ping":
            raise ValueError("command 'ping' belongs to the bridge")
        if old is not None and not old.raw:
            raise ValueError("command %r is defined twice: %r and %r" % (name, old.fn, fn))
        self.commands[name] = Handler(name, fn)

    def unknown(self, name):
        available = ", ".join(sorted(self.commands))
        return Refused(
            "unknown_command", "UnknownCommand", "Unknown command: '%s'. Available: %s" % (name, available)
        )


_registry = Registry()


def command(fn=None, name=None):
    """Make a function a command: ``@command``, ``@command("name")`` or ``@command(name="name")``."""
    if isinstance(fn, str):
        fn, name = None, fn
    if fn is None:
        return lambda function: command(function, name)
    _registry.add(fn.__name__ if name is None else name, fn)
    return fn


def on_start(fn=None):
    """Run a function before the worker is ready; it receives the adapter's ``start_args``."""
    if fn is None:
        return on_start
    _registry.starters.append(Handler(getattr(fn, "__name__", "on_start"), fn))
    return fn


class Context:
    """What a handler may know about its request and keep for later ones; made by ``context()``."""

    def __init__(self, runner, request_id, session_id, deadline):
        self._runner = runner
        self._request_id = request_id
        self._deadline = deadline
        self.session_id = session_id
        self.worker_id = runner.worker_id
        self.worker_state = runner.worker_state
        self.state = {} if session_id is None else runner.sessions.setdefault(session_id, {})

    @property
    def deadline_s(self):
        """Seconds left for this request, >= 0, or None without a limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def log(self, message, level="info", **fields):
        """Send a log line to the host; from any thread.  Fields that JSON cannot carry become their repr."""
        self._runner.log(self._request_id, level, message, fields)


def context():
    """Return the Context of the running request; outside of one, a Context without a session."""
    global _runner
    if _runner is None:  # a handler file imported by a process that is no worker, such as a handler's child
        _runner = Runner(None, None, False)
    return _runner.context()


def end_worker(status, at_once=False):
    """End this worker, from any thread: after the reply of the running request, or without it.

    Args:
        status: The exit status; negative: by the signal of that number, as in ``subprocess``.
        at_once: Do not wait for the running request; it gets no reply.
    """
    context()._runner.end(status, at_once)


# -------------------------------------------------------------------------------------------- built-ins


def _echo(args):
    """Return the args as they came."""
    return {"status": "ok", "echoed": args, "timestamp": time.time()}


_OPERATIONS = {
    "add": lambda a, b: a + b,
    "divide": lambda a, b: a / b,
    "multiply": lambda a, b: a * b,
    "subtract": lambda a, b: a - b,
}
_NUMBERS = (int, float)


def _compute(args):
    """Add, subtract, multiply or divide two numbers."""
    if type(args) is not dict:
        raise bad_args("compute: args must be an object")
    try:
        operation, a, b = args["operation"], args["a"], args["b"]
    except KeyError as error:
        raise bad_args("compute: missing field '%s'" % error.args) from None
    if type(operation) is not str or operation not in _OPERATIONS:
        shown = operation if type(operation) is str else dumps(operation)
        known = ", ".join(sorted(_OPERATIONS))
        raise bad_args("compute: unknown operation '%s'; one of %s" % (shown[:200], known))
    if type(a) not in _NUMBERS or type(b) not in _NUMBERS:
        raise bad_args("compute: field '%s' must be a number" % ("b" if type(a) in _NUMBERS else "a"))
    if operation == "divide" and b == 0:
        raise bad_args("compute: division by zero")
    try:
        result = _OPERATIONS[operation](a, b)
        finite = float(result) - float(result) == 0.0
    except OverflowError:
        finite = False
    if not finite:
        raise bad_args("compute: result is not a finite number")
    return {
        "status": "ok",
        "operation": operation,
        "inputs": {"a": a, "b": b},
        "result": result,
        "timestamp": time.time(),
    }


# ------------------------------------------------------------------------------------------ exceptions


def text_of(error):
    """Return an exception's message; one that cannot say it is no second error."""
    try:
        return cap(str(error) or type(error).__name__)
    except BaseException as second:
        return "<str() of %s raised %s>" % (type(error).__name__, type(second).__name__)


def traceback_of(error):
    """Return the traceback as text, beginning at user code."""
    import traceback

    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and "%sasyncio%s" % (os.sep, os.sep) not in name:
            break
        trace = trace.tb_next
    try:
        return cap("".join(traceback.format_exception(type(error), error, trace)), keep_end=True)
    except BaseException as second:
        return "%s\n<its traceback cannot be shown: %s>\n" % (type(error).__name__, type(second).__name__)


def describe(error):
    """Return the ``error`` object of a reply, see "error codes" in PROTOCOL.md."""
    if type(error) is Refused:
        code, kind, trace = error.code, error.kind, None
    else:
        code = "handler_error"
        if type(error) is InitializerFailed:
            code, error = "initializer_error", error.error
        kind, trace = type(error).__name__, traceback_of(error)
    report = {"code": code, "type": kind, "message": text_of(error), "traceback": trace, "language": "python"}
    if trace is None:
        return report
    try:
        data = getattr(error, "data", None)
        if data is not None and encode(data, "data", None):
            report["data"] = convert(data, "data", (), None)
    except BaseException:  # an attribute that is no JSON is not sent: the field is optional
        report.pop("data", None)
    cause = error.__cause__
    if cause is None and not error.__suppress_context__:
        cause = error.__context__
    if cause is not None:
        report["cause"] = {"type": type(cause).__name__, "message": text_of(cause)}
    return report


# -------------------------------------------------------------------------------------------- the runner


class Runner:
    """Reads requests, runs them in order, writes each reply as soon as it exists.

    THREAD: the main thread, except ``log`` and ``context`` (any).
    """

    def __init__(self, stream, handlers, callables):
        self.stream = stream
        self.worker_id = "unknown"
        self.worker_state = {}
        self.sessions = {}
        self.closing = False
        self.agreed = frozenset()
        self.level = 0
        self._handlers = handlers
        self._callables = None
        self._wants_callables = callables
        self._commands = _registry.commands
        self._started = False
        self._log_agreed = False
        self._loop = None
        self._began = time.time()
        self._count = 0
        # INVARIANT: (id, session, deadline in monotonic seconds) of the running request, else None;
        # _context belongs to it and exists once somebody asked.
        self._request = None
        self._context = None
        self._exit_status = None
        for name, fn, params in (
            ("ping", self._ping, ()),
            ("echo", _echo, ()),
            ("compute", _compute, ("operation", "a", "b")),
            ("info", self._info, ()),
        ):
            self._commands[name] = Handler(name, fn, params)

    def run(self):
        """Serve until the request stream ends; return the exit status."""
        read_frame = self.stream.read_frame
        while True:
            payload = parts = None  # a large frame is not kept while the worker is idle
            try:
                payload = read_frame()
                if payload is not None and payload[0] >= PICKLE_START and self._callables is not None:
                    parts = [payload] if payload[0] == PICKLE_START else self._callables.gather(payload)
            except FramingError as error:
                self._bad_frame(None, str(error))
                return 2
            except OSError as error:
                complain("cannot read requests: %s" % error)
                return 2
            if payload is None:
                return 0
            if parts is not None:
                payload = None
                self.stream.flush()
                self._callables.serve(parts)
                continue
            try:
                message = parse(payload)
                if type(message) is not dict:
                    raise ValueError("not an object")
                if "command" not in message and "type" in message:
                    self._notice(message)
                    continue
                request_id = message.get("id")
                if type(request_id) is not int:
                    raise ValueError("no integer id")
            except (ValueError, RecursionError) as error:
                self._bad_frame(payload, "%s: %s" % (type(error).__name__, error))
                continue
            if not self._started:
                answered = self._start(request_id, message)
                if not answered:
                    return 1
                if answered is message:
                    continue
            try:
                self._serve(request_id, message)
            except FramingError as error:
                self._bad_frame(None, str(error))
                return 2

    def close(self):
        """Let pending asyncio tasks end before the interpreter does."""
        self.closing = True
        loop = self._loop
        if loop is not None:
            import asyncio

            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    # Requests

    def _serve(self, request_id, message):
        """Serve a request that has none of the rarer keys, as most have not, or pass it on."""
        name, claim, session = message.get("command"), message.get("claim"), message.get("session")
        handler = self._commands.get(name) if type(name) is str else None
        count = 3 + (claim is not None) + (session is not None)
        if (
            handler is None
            or len(message) != count
            or "args" not in message
            or (session is not None and type(session) is not str)
            or not self.level
        ):
            self._serve_extended(request_id, message, handler)
        elif claim is not True or self._claim(request_id, None):
            self._answer(handler, request_id, message["args"], None, session, None)

    def _serve_extended(self, request_id, message, handler):
        """Serve any request; the order of the steps is the wire's."""
        if not self.level:
            message = {key: message[key] for key in ("command", "args") if key in message}
        problem = self._take_attachments(message)
        deadline_ms = message.get("deadline_ms")
        if deadline_ms is not None and type(deadline_ms) not in (int, float):
            problem = problem or bad_args("request %d: 'deadline_ms' must be a number" % request_id)
            deadline_ms = None
        deadline = None if deadline_ms is None else time.monotonic() + deadline_ms / 1000
        session = message.get("session")
        if session is not None and type(session) is not str:
            problem = problem or bad_args("request %d: 'session' must be a string" % request_id)
        batch = message.get("batch")
        if "batch" in message and type(batch) is not list:
            problem = problem or bad_args("request %d: 'batch' must be an array" % request_id)
            batch = None
        elif batch == []:
            problem = problem or bad_args("request %d: 'batch' must not be empty" % request_id)
            batch = None
        claim = message.get("claim") is True
        if problem is None and handler is None:
            name = message.get("command")
            missing = "request %d: 'command' must be a string" % request_id
            problem = _registry.unknown(name) if type(name) is str else bad_args(missing)
        if batch is not None:
            self._serve_batch(handler, request_id, batch, session, deadline, claim, problem)
            return
        if not claim or self._claim(request_id, None, problem):
            if problem is None:
                self._answer(handler, request_id, message.get("args", {}), None, session, deadline)
            else:
                self._reply_error(request_id, None, problem)

    def _serve_batch(self, handler, request_id, batch, session, deadline, claim, problem):
        """Serve one item after the other; replies that come within BATCH_WAIT_S are written together."""
        stream = self.stream
        since = 0.0
        for index, args in enumerate(batch):
            now = time.monotonic()
            if now - since > BATCH_WAIT_S:
                stream.flush()
                since = now
            if not claim or self._claim(request_id, index, problem):
                if problem is None:
                    self._answer(handler, request_id, args, index, session, deadline)
                else:
                    self._reply_error(request_id, index, problem)
        stream.flush()
        if self._exit_status is not None:
            leave(self._exit_status)

    def _claim(self, request_id, index, problem=None):
        """Take the token of one item; return False, the item answered, when it is not to be served."""
        try:
            if self.stream.claim():
                return True
        except (Refused, OSError) as error:
            self._reply_error(request_id, index, problem or error)
            return False
        where = b"" if index is None else b',"index":%d' % index
        self.stream.hold(b'{"id":%d,"type":"recalled"%b}' % (request_id, where))
        return False

    def _answer(self, handler, request_id, args, index, session, deadline):
        """Run one item and reply."""
        stream = self.stream
        if index is None and stream.held:
            stream.flush()
        self._count += 1
        self._context = None
        self._request = (request_id, session, deadline)
        try:
            result = handler.call(args)
            if type(result) not in _JSON_TYPES and hasattr(result, "__await__"):
                stream.flush()
                result = self._await(result)
            attachments = [] if "attachments" in self.agreed else None
            body = encode(result, "result", attachments)
        except BaseException as error:
            if stream.forked:
                raise
            self._reply_error(request_id, index, error)
        else:
            self._reply(request_id, index, body, attachments)
        finally:
            self._request = self._context = None
            if self._exit_status is not None:
                stream.flush()
                leave(self._exit_status)

    def end(self, status, at_once):
        """End the process: now, or when the running request has been answered.  THREAD: any."""
        # RACE: 1. another thread sees a request that has just been answered, or 2. one that has just ended it.
        # The status is set before the request is looked at, and the main thread clears the request before it
        # looks at the status, so one of the two leaves (tests/unit/test_races_bridge.py::test_a_worker_ends_in_time).
        self._exit_status = status
        if at_once or (self._request is None and not self.stream.held):
            leave(status)

    def _take_attachments(self, message):
        """Read the raw frames that follow a message and put them in place; return a Refused or None.

        Raises:
            FramingError: The frames cannot be counted or are not full.
        """
        entries = message.get("attachments")
        if entries is None:
            return None
        problem = None
        known = entries if type(entries) is list else (None,)
        sizes = [entry.get("len") if type(entry) is dict else None for entry in known]
        if any(type(size) is not int or size < 0 for size in sizes):
            raise FramingError("attachments without a usable 'len': the frames that follow cannot be counted")
        for entry, size in zip(entries, sizes):
            path = entry.get("path")
            shown = repr(path[:200]) if type(path) is str else "without a path"
            # One block of zeros, filled in place, is the bytes in the end: no copy of it is ever made.
            holder = BytesIO(bytes(size))
            with holder.getbuffer() as view:
                try:
                    self.stream.read_raw(view)
                except FramingError as error:
                    raise FramingError("attachment: %s" % error) from None
            try:
                if entry.get("kind") != "bytes":
                    raise ValueError("its kind is not 'bytes'")
                place(message, path, holder.getvalue())
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                problem = problem or bad_args("attachment %s: %s" % (shown, text_of(error)))
        return problem

    def _await(self, awaitable):
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        if not asyncio.iscoroutine(awaitable):
            inner = awaitable

            async def wait():
                return await inner

            awaitable = wait()
        return self._loop.run_until_complete(awaitable)

    def _notice(self, message):
        """Take a message that is no request; a type nobody knows here is of a later protocol."""
        session = message.get("session")
        if message["type"] == "session_end" and type(session) is str:
            self.sessions.pop(session, None)

    def context(self):
        request = self._request or (None, None, None)
        if self._context is None:
            self._context = Context(self, *request)
        return self._context

    def begin(self, request_id, session, deadline_ms):
        """Note a callable's request for ``context``; None, None, None ends it."""
        self._count += request_id is not None
        self._context = None
        deadline = None if deadline_ms is None else time.monotonic() + deadline_ms / 1000
        self._request = None if request_id is None else (request_id, session, deadline)

    # Start

    def _start(self, request_id, message):
        """Agree on a protocol, load the handlers, run on_start; answer the first request if that is due here.

        Returns:
            False after a failed start, the message when it was answered, True when it is still to be served.
        """
        self._started = True
        args = message.get("args")
        is_ping = message.get("command") == "ping" and type(args) is dict
        start_new_thread(watch_eof, (self,))
        try:
            reply_protocol = self._negotiate(args.get("protocol")) if is_ping else None
            if is_ping:
                self.worker_id = args.get("worker_id", "unknown")
            self._load(args.get("start_args") if is_ping else None)
            if is_ping and args.get("prepare") is True and self._callables is not None:
                self._callables.prepare()
        except FramingError as error:
            self._bad_frame(None, str(error))
            return False
        except BaseException as error:
            if self.stream.forked:
                raise
            self._reply_error(request_id, None, error)
            return False
        self._context = None
        if reply_protocol is None:
            return True
        described = reply_protocol["commands"] = {name: h.describe() for name, h in sorted(self._commands.items())}
        self._count += 1
        result = self._ping(args)
        result["protocol"] = reply_protocol
        body = encode(result, "result", None)
        if len(body) + ENVELOPE_BYTES > self.stream.max_frame:  # better a start without descriptions than none
            for told in described.values():
                told.pop("schema", None)
                told["doc"] = ""
            body = encode(result, "result", None)
        self._reply(request_id, None, body, None)
        self._log_agreed = "log" in self.agreed
        return message

    def _negotiate(self, offer):
        if type(offer) is not dict or 1 not in (offer.get("versions") or ()):
            return None
        self.level = 1
        max_frame = offer.get("max_frame", DEFAULT_MAX_FRAME)
        if type(max_frame) is not int or max_frame < 1:
            raise bad_args("ping: protocol.max_frame must be an integer >= 1")
        self.stream.max_frame = min(max_frame, LARGEST_MAX_FRAME)
        max_message = offer.get("max_message", self.stream.max_frame)
        if type(max_message) is not int or max_message < 1:
            raise bad_args("ping: protocol.max_message must be an integer >= 1")
        self.stream.max_message = max_message
        own = set(CAPABILITIES)
        if self.stream.claim_fd is None:
            own.remove("claim")
        if not self._wants_callables:
            own.remove("pickle")
        offered = offer.get("capabilities") or ()
        agreed = [name for name in CAPABILITIES if name in own and name in offered]
        self.agreed = frozenset(agreed)
        if "pickle" in agreed:
            self._callables = Callables(self)
        return {
            "version": 1,
            "max_frame": self.stream.max_frame,
            "capabilities": agreed,
            "language": "python",
            "runtime": "%d.%d.%d" % sys.version_info[:3],
            "bridge": BRIDGE_VERSION,
            "pid": os.getpid(),
        }

    def _load(self, start_args):
        if self._handlers is not None:
            load_handlers(self._handlers)
        if start_args is not None and not _registry.starters and not self._wants_callables:
            raise bad_args("start_args were given, but the handlers define no @on_start function")
        for starter in _registry.starters:
            result = starter.call(start_args)
            if hasattr(result, "__await__"):
                self._await(result)

    def _ping(self, args):
        """Tell that the worker is well."""
        known = args if type(args) is dict else {}
        return {
            "status": "ok",
            "bridge_type": "generic",
            "uptime": time.time() - self._began,
            "requests_handled": self._count,
            "timestamp": time.time(),
            "python_version": sys.version,
            "worker_id": known.get("worker_id", self.worker_id),
            "echo": {k: v for k, v in known.items() if k not in _HANDSHAKE} if known else args,
        }

    def _info(self, args):
        """Describe the bridge and its system."""
        return {
            "status": "ok",
            "bridge_info": {
                "name": "Snakepit Python Bridge",
                "version": BRIDGE_VERSION,
                "supported_commands": sorted(self._commands),
                "uptime": time.time() - self._began,
                "total_requests": self._count,
            },
            "system_info": {"python_version": sys.version, "platform": sys.platform},
            "timestamp": time.time(),
        }

    # Replies

    def _reply(self, request_id, index, body, attachments):
        stream = self.stream
        if len(body) > READ_CHUNK_BYTES or attachments or not self.level:
            self._reply_extended(request_id, index, body, attachments)
            return
        if index is None:
            reply = b'{"id":%d,"success":true,"result":%b}' % (request_id, body)
        else:
            reply = b'{"id":%d,"index":%d,"success":true,"result":%b}' % (request_id, index, body)
        size = len(reply)
        if size > stream.max_frame:
            self._reply_too_large(request_id, index, size)
        elif index is None:
            stream.write(size.to_bytes(4, "big") + reply)
        else:
            stream.hold(reply)

    def _reply_extended(self, request_id, index, body, attachments):
        where = b"" if index is None else b',"index":%d' % index
        head = b'{"id":%d%b,"success":true,"result":' % (request_id, where)
        tail = b"}" if self.level else b',"timestamp":"%b"}' % timestamp().encode()
        if attachments:
            entries = [{"path": path, "kind": "bytes", "len": len(data)} for path, data in attachments]
            tail = b',"attachments":%b%b' % (dumps(entries).encode(), tail)
        size = len(head) + len(body) + len(tail)
        if size > self.stream.max_frame:
            self._reply_too_large(request_id, index, size)
            return
        buffers = self.stream.cut(head, body, tail)
        for _, data in attachments or ():
            buffers += self.stream.cut(data)
        self.stream.flush()
        self.stream.write(b"", buffers)

    def _reply_too_large(self, request_id, index, size):
        message = "the encoded reply has %d bytes; the limit is %d (max_frame)" % (size, self.stream.max_frame)
        self._reply_error(request_id, index, Refused("too_large", "ResultTooLarge", message))

    def _reply_error(self, request_id, index, error):
        self.stream.flush()
        report = describe(error)
        if not self._send_error(request_id, index, report):
            report.pop("data", None)
            report.pop("cause", None)
            report["traceback"] = None
            report["message"] = report["message"][: max(16, self.stream.max_frame // 8)]
            self._send_error(request_id, index, report)

    def _send_error(self, request_id, index, report):
        reply = {"id": request_id, "success": False}
        if index is not None:
            reply["index"] = index
        reply["error"] = report if "errors" in self.agreed else report["message"]
        if not self.level:
            reply["timestamp"] = timestamp()
        return self._send(dumps(reply))

    def _send(self, text):
        data = text.encode()
        if len(data) > self.stream.max_frame:
            return False
        self.stream.write_frame(data)
        return True

    def _bad_frame(self, payload, reason):
        """Answer what is no request, with its id if one can be seen, and say so on stderr."""
        request_id = None
        seen = ""
        if payload is not None:
            import re

            match = re.search(rb'[{,]\s*"id"\s*:\s*(\d{1,16})\s*[,}]', payload[:4096])
            request_id = int(match.group(1)) if match else None
            seen = "; bytes seen: %r" % bytes(payload[:80])
        message = cap("bad frame: %s%s" % (reason, seen))
        complain(message)
        self._reply_error(request_id, None, Refused("internal", "BadFrame", message))

    def log(self, request_id, level, message, fields):
        if self._log_agreed and request_id is not None:
            entry = {"type": "log", "id": request_id, "level": str(level), "message": cap(str(message))}
            try:
                text = dumps(dict(entry, fields=convert(fields, "fields", (), None)))
            except (Refused, ValueError, RecursionError):
                shown = {cap(key): cap(repr(value)) for key, value in fields.items()}
                text = dumps(dict(entry, fields=shown))
            if self._send(text):
                return
        shown = "".join(" %s=%r" % item for item in fields.items())
        complain(("[%s] %s%s" % (level, message, shown)).replace("\n", "\\n"))


def timestamp():
    now = time.time()
    return "%s.%03dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)), now % 1 * 1000)


def place(message, path, data):
    """Set the value at an RFC 6901 pointer.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: The pointer leads nowhere.
    """
    if not path.startswith("/"):
        raise ValueError("not a JSON pointer")
    parts = [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
    target = message
    for part in parts[:-1]:
        target = target[int(part)] if type(target) is list else target[part]
    last = int(parts[-1]) if type(target) is list else parts[-1]
    if target[last] is not None:
        raise ValueError("the place does not hold null")
    target[last] = data


# What is not imported at the start and often is later: a handler file must not stand in its place.
_NEEDED_LATER = (
    *("asyncio", "collections", "enum", "functools", "importlib", "inspect", "json", "operator"),
    *("pickle", "re", "signal", "traceback", "types", "typing"),
)


def load_handlers(name):
    """Import a handler file under its stem, its folder first on sys.path; or a module by its name."""
    if not name.endswith(".py") and os.sep not in name:
        if not getattr(sys.flags, "safe_path", False):
            sys.path.insert(0, os.getcwd())
        __import__(name)
        return
    path = os.path.abspath(name)
    if not os.path.isfile(path):
        raise FileNotFoundError("no handler file at %s" % path)
    try:  # the same functions as in importlib.util, which imports half as much as an interpreter's start
        from _frozen_importlib import module_from_spec
        from _frozen_importlib_external import spec_from_file_location
    except ImportError:
        from importlib.util import module_from_spec, spec_from_file_location
    stem = os.path.splitext(os.path.basename(path))[0]
    if stem in sys.modules or stem in _NEEDED_LATER:
        raise ImportError("handler file %s has the name of module %r; rename the file" % (path, stem))
    sys.path.insert(0, os.path.dirname(path))
    spec = spec_from_file_location(stem, path)
    if spec is None:
        raise ImportError("handler file %s is not Python source (*.py)" % path)
    module = sys.modules[stem] = module_from_spec(spec)
    spec.loader.exec_module(module)


# ------------------------------------------------------------------------------------------- callables


class Callables:
    """Runs pickled calls: two pickles, a header and a body, and buffers (PROTOCOL.md, ``pickle``)."""

    def __init__(self, runner):
        try:  # the public module imports re
            from _pickle import Pickler, dumps, loads
        except ImportError:
            from pickle import Pickler, dumps, loads

        self._runner = runner
        self._stream = runner.stream
        self._loads = loads
        self._dumps = dumps
        self._pickler = Pickler
        self._room = min(self._stream.max_frame, self._stream.max_message)
        self._longest = 0  # text that was a result
        # Classes and functions of the host's __main__ are rebuilt here under that name: they must not
        # be taken for this file's own.
        sys.modules["__main__"] = type(sys)("__main__")

    def prepare(self):
        """Read the preparation frame, become the process it describes, run the initializer.

        Raises:
            Refused: ``initializer_error`` wraps what the preparation or the initializer raised.
        """
        payload = self._stream.read_frame()
        parts = None if payload is None else self.gather(payload)
        if parts is None or parts[0][0] != PICKLE_START:
            raise FramingError("a preparation frame was due")
        try:
            data = self._loads(parts[0])
            for fd in data.get("fds", ()):
                os.set_inheritable(fd, False)
            apply_preparation(data["preparation"])
            if data["initializer"] is not None:
                from multiprocessing import process

                # multiprocessing's proxies connect differently while they are inherited
                process.current_process()._inheriting = True
                try:
                    initializer, initargs = self._loads(data["initializer"])
                finally:
                    del process.current_process()._inheriting
                initializer(*initargs)
        except BaseException as error:
            if self._stream.forked:
                raise
            raise InitializerFailed(error) from None

    def gather(self, payload):
        """Return ``[pickles, buffer, ...]``, of which ``payload`` is the first frame; None: it is no pickle's."""
        if payload[0] == PICKLE_START:
            return [payload]
        if payload[0] not in (PICKLE_PART, PICKLE_END):
            return None
        parts = []
        while True:
            if payload is None or payload[0] not in (PICKLE_PART, PICKLE_END) or len(payload) != 9:
                raise FramingError("the rest of a pickle was due")
            size = int.from_bytes(payload[1:], "big")
            # What is loaded is a copy of the pickle, but has the buffers for its own.
            part = allocate(size) if parts else self._stream.transient(size)
            self._stream.read_raw(part)
            parts.append(part)
            if payload[0] == PICKLE_END:
                return parts
            payload = self._stream.read_frame()

    def serve(self, parts):
        """Run one call and answer it; ``parts`` are from ``gather``, and are emptied."""
        view = memoryview(parts[0])
        try:
            # The header is one pickle frame: PROTO x, FRAME, length in 8 bytes, that many bytes.
            end = 11 + int.from_bytes(view[3:11], "little")
            request_id, session, deadline_ms, claim, kind = self._loads(view[:end])
        except Exception as error:
            self._runner._bad_frame(view, "%s: %s" % (type(error).__name__, error))
            return
        try:
            if claim and not self._stream.claim():
                self._send(request_id, "recalled", b"")
                return
        except (Refused, OSError) as error:
            self._send(request_id, *self._pack_error(error))
            return
        parts[0] = view[end:]
        view = None
        self._runner.begin(request_id, session, deadline_ms)
        try:
            reply = self._perform(kind, parts)
        finally:
            self._runner.begin(None, None, None)
        self._send(request_id, *reply)

    def _perform(self, kind, parts):
        """Return ``(outcome, body, buffers)``; while the call runs, it alone holds what was sent."""
        try:
            loaded = self._loads(parts[0]) if len(parts) == 1 else self._loads(parts[0], buffers=parts[1:])
            parts.clear()
            if kind == "call":
                fn, args, kwargs = loaded
                result = fn(*args, **kwargs)
            elif kind == "chunk":
                fn, calls = loaded
                result = [fn(*args) for args in calls]
            else:
                raise ValueError("unknown kind of call %r" % (kind,))
            return ("result", *self._pickle(result))
        except BaseException as error:
            if self._stream.forked:
                raise
            return self._pack_error(error)

    def _pickle(self, value):
        """Return ``(body, buffers)``: a pickle, in parts if something in it is large, and its out-of-band buffers."""
        kind = type(value)
        if kind is bytes or kind is str:
            if len(value) < LARGE_BYTES:
                return self._dumps(value, 5), ()
        elif kind in _LEAVES:
            return self._dumps(value, 5), ()
        if kind is str and len(value) > self._longest:
            # Text is in memory twice while it is sent.  glibc gives the upper end of its heap back, to get it
            # page by page the next time, when more than twice the largest block ever freed is unused.
            self._longest = len(value)
            bytes(2 * len(value))
        try:
            return self._pickle_with(self._pickler, value)
        except BaseException as error:
            try:
                from cloudpickle import CloudPickler
            except ImportError:
                raise error from None
        return self._pickle_with(CloudPickler, value)

    @staticmethod
    def _pickle_with(pickler, value):
        """Do what ``_pickle`` says without copies of what is large."""
        body = []
        buffers = []

        def keep_in_band(buffer):
            try:
                view = buffer.raw()
            except BufferError:  # not contiguous: pickle has its own error for that
                return True
            if len(view) < LARGE_BYTES:
                return True
            buffers.append(view)
            return False

        # A pickler with a file writes large bytes and text as they are, and all else in pieces of 64 KiB.
        pickler(Sink(body.append), 5, buffer_callback=keep_in_band).dump(value)
        return body[0] if len(body) == 1 else body, buffers

    def _pack_error(self, error):
        """Return what carries an exception: itself if the host can rebuild it, else its description."""
        text = traceback_of(error)
        try:
            body, buffers = self._pickle((error, text))
            rebuilt, _ = self._loads(body if type(body) is bytes else b"".join(body), buffers=buffers)
            if isinstance(rebuilt, BaseException):
                return "error", body, buffers
        except BaseException as second:
            reason = "%s: %s" % (type(second).__name__, text_of(second))
            text += "\n(The exception itself could not be sent: %s)\n" % reason
        report = {"type": type(error).__name__, "message": text_of(error), "traceback": text}
        return "opaque", self._dumps(report, 5), ()

    def _send(self, request_id, kind, body, buffers=()):
        stream = self._stream
        header = self._dumps((request_id, kind), 5)
        if not buffers and type(body) is bytes and len(header) + len(body) <= self._room:
            stream.write_frame(header, body)
            return
        pickles = (header, body) if type(body) is bytes else (header, *body)
        size, limit = sum(map(len, (*pickles, *buffers))), stream.max_message
        if size > limit:
            self._send(request_id, "too_large", self._dumps({"size": size, "limit": limit}, 5))
            return
        if not buffers and size <= self._room:
            stream.write_frame(*pickles)
            return
        frames = []
        left = len(buffers)
        for parts in (pickles, *((buffer,) for buffer in buffers)):
            announced = sum(map(len, parts)).to_bytes(8, "big")
            frames += stream.cut(bytes((PICKLE_PART if left else PICKLE_END,)) + announced)
            frames += stream.cut(*parts)
            left -= 1
        stream.write(b"", frames)


class Sink:
    """As much of a file as a pickler needs."""

    def __init__(self, write):
        self.write = write


class InitializerFailed(Exception):
    """Wraps what the preparation of a callable worker raised; its reply describes the wrapped one."""

    def __init__(self, error):
        super().__init__(text_of(error))
        self.error = error


def apply_preparation(data):
    """Become the process that the host's preparation data describe; the host's __main__ is not imported."""
    sys.path[:] = data["sys_path"]
    sys.argv = data["sys_argv"]
    if "dir" in data:
        os.chdir(data["dir"])

    def name_process(module):
        current = module.current_process()
        current.name = data["name"]
        current.authkey = data["authkey"]
        module.ORIGINAL_DIR = data["orig_dir"]

    def join_tracker(key):
        return lambda module: setattr(module._resource_tracker, "_fd", data[key])

    actions = {"multiprocessing.process": name_process}
    for key, name in (("mp_tracker_fd", "multiprocessing"), ("tracker_fd", "loky.backend")):
        if key in data:
            actions[name + ".resource_tracker"] = join_tracker(key)
    sys.meta_path.insert(0, OnImport(actions))
    if data.get("log_to_stderr") or "log_level" in data:
        from multiprocessing import util

        if data.get("log_to_stderr"):
            util.log_to_stderr()
        if "log_level" in data:
            util.get_logger().setLevel(data["log_level"])
        if "log_fmt" in data:
            import logging

            util.get_logger().handlers[0].setFormatter(logging.Formatter(data["log_fmt"]))


class OnImport:
    """Does something to modules when they are first imported.

    multiprocessing and loky take longer than the rest of the start, and most callables never need them; a
    manager's proxy among the arguments does, and then needs the host's key, and a lock the host's tracker.
    """

    def __init__(self, actions):
        self._actions = actions

    def find_spec(self, name, path=None, target=None):
        action = self._actions.pop(name, None)
        if action is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            action(module)

        spec.loader.exec_module = exec_module
        return spec


# ------------------------------------------------------------------------------------------------ start

USAGE = "usage: snakepit_bridge.py [--handlers FILE_OR_MODULE] [--callables] [--mode ANYTHING]"
_HANDSHAKE = ("protocol", "start_args", "prepare")  # of the first ping; not echoed
_runner = None


def parse_argv(argv):
    """Return (handlers or None, callables).

    Raises:
        ValueError: An option that does not exist, or lacks its value.
    """
    handlers, callables, rest = None, False, list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option == "--callables" and not equals:
            callables = True
        elif option in ("--handlers", "--mode"):
            if not equals:
                if not rest:
                    raise ValueError("%s needs a value" % option)
                value = rest.pop(0)
            handlers = value if option == "--handlers" else handlers
        else:
            raise ValueError("unknown option %r" % option)
    return handlers, callables


def main(argv):
    """Run the worker; return its exit status: 0 end of requests, 1 failed start, 2 bad option or frame."""
    global _runner
    try:
        handlers, callables = parse_argv(argv)
        stream = open_stream()
    except (ValueError, OSError) as error:
        complain("%s\n%s" % (error, USAGE))
        return 2
    signal(SIGINT, SIG_IGN)
    os.register_at_fork(after_in_child=stream.drop_in_child)
    for output in (sys.stdout, sys.stderr):
        if output is not None:
            output.reconfigure(line_buffering=True)
    if sys.path and sys.path[0] == os.path.dirname(os.path.realpath(__file__)):
        sys.path.append(sys.path.pop(0))  # importable, but in nobody's way
    # The name that handlers import is this module, whatever else was registered under it.
    sys.modules["snakepit_bridge"] = sys.modules[__name__]
    _runner = Runner(stream, handlers, callables)
    status = _runner.run()
    _runner.close()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

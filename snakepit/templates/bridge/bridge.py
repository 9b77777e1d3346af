"""A bridge, protocol level 1 with errors, pipeline and session; run as ``bridge.py [--handlers FILE]``.

It is here to be translated: each function says what it has to become in another language.
"""

import json
import os
import re
import runpy
import signal
import sys
import time
import traceback

LANGUAGE = "python"  # yours, in lower case
RUNTIME = sys.version.split()[0]
MAX_LEVELS = 256  # of arrays and objects in a value
MAX_TEXT = 64 * 1024  # bytes of an error's message, and of its traceback

COMMANDS = {"echo": lambda args, state: args, "ping": lambda args, state: {"status": "ok"}}
sessions = {}  # name: the state that its handlers share; between requests nothing else is kept
agreed = {"started": False, "level": 0, "capabilities": [], "max_frame": 64 << 20}  # until the first ping


class Refusal(Exception):
    """An error of the protocol, raised as (code, type, message); everything else is the handler's own."""


def open_streams():
    """Return the channels of the frames, as bytes: no encoding, no translation of line ends.

    What must not fail: children inherit neither the descriptors nor the variables (close-on-exec, unset), and
    whatever handlers and libraries print is off the frames before the first of them runs.
    """
    named = os.environ.pop("SNAKEPIT_FDS", None)
    claims = os.environ.pop("SNAKEPIT_CLAIM_FD", None)
    if named:
        fds = [int(number) for number in named.split(",")]
    else:  # level 0: the frames move away from 0 and 1, which become the null device and a second stderr
        fds = [os.dup(0), os.dup(1)]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
    for fd in [*fds, *([int(claims)] if claims else [])]:
        os.set_inheritable(fd, False)
    sys.stdout.reconfigure(line_buffering=True)  # what handlers print arrives while they run
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # SIGTERM keeps its default action: nothing to do in Python
    return open(fds[0], "rb"), open(fds[1], "wb")


def read_frame():
    """Return the next payload; the end of the requests ends the process.

    This ``read`` blocks until it has as many bytes as asked for, or the end comes.  Where yours may return fewer,
    a loop belongs here.
    """
    head = requests.read(4)
    if not head:
        sys.exit(0)
    size = int.from_bytes(head, "big")  # 4 bytes, unsigned, big-endian
    payload = requests.read(size) if len(head) == 4 and size <= agreed["max_frame"] else b""
    if size == 0 or len(payload) != size:  # where the next frame begins is not known any more
        refuse_frame(f"length {size}, {len(payload)} bytes", head + payload)
        sys.exit(2)
    return payload


def write_frame(payload):
    """Write all of it and flush; a host that has gone is an ordinary end (EPIPE: see that SIGPIPE is ignored)."""
    try:
        replies.write(len(payload).to_bytes(4, "big") + payload)
        replies.flush()
    except BrokenPipeError:
        os._exit(0)


def parse(payload):
    """Return the value of strict JSON; raise ValueError for anything else.

    Test what your JSON library lets pass: NaN, 1e400, bytes that are not UTF-8, lone surrogates, trailing commas,
    control characters, nesting that overflows its stack.  Integers must be exact: if yours become doubles, refuse
    those beyond 2^53 - 1 as bad_args.  {}, [] and null are three values.
    """

    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    def finite(word):
        return float(word) if abs(float(word)) <= sys.float_info.max else refuse(word)

    try:
        value = json.loads(payload.decode("utf-8"), parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check(value, "message", MAX_LEVELS + 1)  # the message itself is one
    return value


def check(value, path, levels=MAX_LEVELS, above=()):
    """Raise ValueError, beginning with the path, for a value that JSON cannot carry.

    Nothing is converted silently: what your language has beyond JSON (dates, sets, objects, NaN) is refused.
    Where values cannot contain themselves, the levels are enough.
    """
    if isinstance(value, str):
        if lone := re.search("[\ud800-\udfff]", value):
            raise ValueError(f"{path}: text with a lone surrogate at index {lone.start()} is not UTF-8")
    elif isinstance(value, float):
        if not abs(value) <= sys.float_info.max:
            raise ValueError(f"{path}: {json.dumps(value)} is not JSON")
    elif isinstance(value, (list, dict)):
        if any(value is outer for outer in above):
            raise ValueError(f"{path}: a cycle: the value contains itself")
        if len(above) == levels:
            raise ValueError(f"{path}: more than {MAX_LEVELS} levels")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                if not isinstance(key, str):
                    raise ValueError(f"{path}: the key {key!r} is no text")
                check(key, path)
                key = key.replace("~", "~0").replace("/", "~1")
            check(item, f"{path}/{key}", levels, (*above, value))
    elif value is not None and not isinstance(value, int):
        raise ValueError(f"{path}: {type(value).__name__} is not JSON")


def reply(request_id, **fields):
    """Send one reply as compact JSON in UTF-8; refuse what cannot be sent, before any of it is written."""
    if not agreed["level"]:
        fields["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        check(fields.get("result"), "result")
    except ValueError as error:
        raise Refusal("encode_error", "EncodeError", str(error)) from None
    payload = json.dumps({"id": request_id, **fields}, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if len(payload) > agreed["max_frame"]:
        words = f"the encoded reply has {len(payload)} bytes; the limit is {agreed['max_frame']} (max_frame)"
        raise Refusal("too_large", "ResultTooLarge", words)
    write_frame(payload)


def reply_error(request_id, code, kind, message, trace=None, **more):
    """Send an error: an object if ``errors`` is agreed, else its message alone.  It always fits and always encodes."""
    message, trace = cut(message), trace and cut(trace)
    error = {"code": code, "type": kind, "message": message, "traceback": trace, "language": LANGUAGE, **more}
    try:
        reply(request_id, success=False, error=error if "errors" in agreed["capabilities"] else message)
    except Refusal:  # above a low max_frame
        reply_error(request_id, code, kind, message[:200])


def cut(text):
    """Return at most 64 KiB of UTF-8 of a text, whole characters, with a question mark for what is no Unicode."""
    return text.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore")


def refuse_frame(why, seen):
    """Answer a bad frame, never with silence: a line on stderr, and a reply under its id if that can be seen."""
    print(f"bad frame: {why}; bytes seen: {seen[:80]!r}", file=sys.stderr, flush=True)
    found = re.match(rb'\{"id":(\d{1,16})[,}]', seen)  # the way hosts write it
    reply_error(int(found[1]) if found else None, "internal", "BadFrame", f"bad frame: {why}")


def shake_hands(args):
    """Agree on level and capabilities in the first ping, load the handlers, and return the result.

    Announce only what you do.  Without an offer of version 1 stay at level 0, and say nothing of the protocol.
    """
    args = args if isinstance(args, dict) else {}
    offer = args.get("protocol") or {"versions": []}
    if 1 in offer["versions"]:
        common = [name for name in ("errors", "pipeline", "session") if name in offer["capabilities"]]
        agreed.update(level=1, capabilities=common)
    if handlers:
        COMMANDS.update(runpy.run_path(handlers)["COMMANDS"])  # your language's way to run a file
    if args.get("start_args") is not None:
        raise Refusal("bad_args", "InvalidArguments", "start_args: the handlers have no start function")
    result = {"status": "ok"}
    if agreed["level"]:
        agreed["max_frame"] = offer["max_frame"]
        about = {"language": LANGUAGE, "runtime": RUNTIME, "bridge": "1.0", "pid": os.getpid()}
        about["commands"] = {name: {"params": [], "doc": ""} for name in COMMANDS}
        result["protocol"] = {"version": 1, "max_frame": offer["max_frame"], "capabilities": common, **about}
    return result


def call(request_id, request):
    """Run a command and return its result; what a handler raises comes out of here.

    Left-out args are {}, while null, false, 0 and "" are args like any other.  A handler gets the state of its
    session, one object until ``session_end``; without a session a fresh one.
    """
    for field in ("command", *(["session"] if "session" in request else [])):
        if not isinstance(request.get(field), str):
            raise Refusal("bad_args", "InvalidArguments", f"request {request_id}: '{field}' must be a string")
    name, args = request["command"], request.get("args", {})
    if name not in COMMANDS:
        names = ", ".join(sorted(COMMANDS))  # by code point
        raise Refusal("unknown_command", "UnknownCommand", f"Unknown command: '{name}'. Available: {names}")
    state = sessions.setdefault(request["session"], {}) if "session" in request else {}
    return COMMANDS[name](args, state)


def answer(request_id, request):
    """Send exactly one reply; whatever goes wrong in a handler is that reply, and the worker lives.

    Catch everything your language can throw, also what usually ends a program (here SystemExit).
    """
    first = not agreed["started"] and request.get("command") == "ping"
    try:
        result = shake_hands(request.get("args")) if first else call(request_id, request)
        reply(request_id, success=True, result=result)
        agreed["started"] = agreed["started"] or first
        return
    except Refusal as error:
        reply_error(request_id, *error.args)
    except BaseException as error:
        kind = type(error).__name__
        trace = traceback.format_exc()
        reply_error(request_id, "handler_error", kind, str(error) or kind, trace, **details(error))
    if first:
        sys.exit(1)  # a start that failed


def details(error):
    """Return ``data`` and ``cause`` of an exception as far as it has them and JSON can carry them; {} will do."""
    found = {}
    if cause := error.__cause__:
        kind = type(cause).__name__
        found["cause"] = {"type": kind, "message": cut(str(cause)) or kind}
    try:
        check(error.data, "data")
        found["data"] = error.data
    except (AttributeError, ValueError):
        pass
    return found


def serve():
    """Take one request after the other; threads and reading ahead would only disturb the order."""
    while True:
        payload = read_frame()
        try:
            request = parse(payload)
        except ValueError as error:
            refuse_frame(str(error), payload)
            continue
        if isinstance(request, dict) and "type" in request and "command" not in request:
            if request["type"] == "session_end":
                sessions.pop(request.get("session"), None)  # messages of other types are of a later version
        elif isinstance(request, dict) and type(request.get("id")) is int:
            answer(request["id"], request)
        else:
            refuse_frame("no object with an integer id", payload)


handlers = None
words = sys.argv[1:]
while words[:1] in (["--handlers"], ["--mode"]) and len(words) > 1:  # --mode is of older hosts
    handlers = words[1] if words[0] == "--handlers" else handlers
    del words[:2]
if words:
    print(f"{sys.argv[0]}: what is {' '.join(words)!r}?", file=sys.stderr)
    sys.exit(2)
requests, replies = open_streams()
serve()

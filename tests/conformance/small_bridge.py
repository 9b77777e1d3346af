"""A small correct bridge, and one defect at a time: ``small_bridge.py DEFECT``; ``none`` has none.

Runs as a process of its own, with nothing of snakepit.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback

DEFECT = sys.argv[1]
LIMIT = 64 << 20


def has(defect):
    return defect == DEFECT


def open_streams():
    named = os.environ.pop("SNAKEPIT_FDS", None)
    os.environ.pop("SNAKEPIT_CLAIM_FD", None)
    if named:
        fds = [int(word) for word in named.split(",")]
    elif has("print"):
        print("ready", flush=True)
        fds = [0, 1]
    else:
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (0, 1)]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
    for fd in fds:
        os.set_inheritable(fd, has("inherited descriptors"))
    return fds


def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(REQUESTS, size - len(data))
        if not piece:
            break
        data += piece
        if has("short read"):
            break
    return data


def write(payload):
    data = memoryview(len(payload).to_bytes(4, "big") + payload)
    try:
        while data:
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(REPLIES, data) :]
            # With a defect the pipe does not block, and has never room for all of a large message.
            if data and has("short write"):
                return
            if data:
                select.select([REQUESTS], [], [])  # the deadlock: it waits for the host, which waits for it
    except BrokenPipeError:
        os._exit(0)


def change(value):
    """Return what a defect makes of a value."""
    if isinstance(value, dict):
        return {change(key): change(item) for key, item in value.items()}
    if isinstance(value, list):
        return [change(item) for item in value]
    if has("rounding") and isinstance(value, int) and not isinstance(value, bool):
        return int(float(value))
    if isinstance(value, str):
        if has("two bytes a character"):
            return "".join(char if char < "\U00010000" else "?" for char in value)
        if has("text ends at NUL"):
            return value.partition("\0")[0]
        if has("lone surrogates"):
            return value.encode("utf-8", "replace").decode()
    return value


def refuse_constant(name):
    if has("NaN accepted"):
        return
    raise ValueError(f"{name} is not JSON")


def finite(text):
    value = float(text)
    return value if abs(value) <= sys.float_info.max else refuse_constant(text)


def parse(payload):
    request = json.loads(payload.decode("utf-8"), parse_constant=refuse_constant, parse_float=finite)
    if not has("lone surrogates"):
        json.dumps(request, ensure_ascii=False).encode("utf-8")
    if not isinstance(request, dict) or ("type" not in request and type(request.get("id")) is not int):
        raise ValueError("no object with an integer id")
    return change(request)


class Refusal(Exception):
    """An error that is answered with its code and type."""


class Inner(Exception):
    """The cause of a Failure."""


class Failure(Exception):
    """What ``fail`` raises."""

    def __init__(self, message):
        super().__init__(message)
        self.data = {"field": "name"}


UNENCODABLE = {
    "nan": "a/0: NaN is not JSON",
    "infinity": "a/0: Infinity is not JSON",
    "lone surrogate": "a/0: text with a lone surrogate at index 1 is not UTF-8",
    "cycle": "a/0/self: a cycle: the value contains itself",
    "deep": "a/0/0/0: more than 256 levels",
    "object": "a/0: an object is not JSON",
}


def call(name, args):
    if name == "ping":
        return {"status": "ok"}
    if name == "echo":
        return args
    if name == "identity":
        return args["value"]
    if name == "fail":
        if has("success") and len(args.get("message", "")) > 1000:
            return None
        raise Failure(args.get("message", "boom")) from Inner("deep down")
    if name == "print_text":
        print(args["line"], flush=True)
        return "printed"
    if name == "child_sees":
        script = "ls -l /proc/self/fd | grep -c pipe: ; env | grep -c '^SNAKEPIT_.*FD'"
        close = not has("inherited descriptors")
        done = subprocess.run(["sh", "-c", script], stdin=0, stdout=subprocess.PIPE, close_fds=close)
        return done.stdout.decode().split()
    if name == "unencodable":
        if has("NaN sent") and args["kind"] == "nan":
            return float(args["kind"])
        raise Refusal("encode_error", "EncodeError", "result/" + UNENCODABLE[args["kind"]])
    if has("unknown command"):
        raise KeyError(name)
    names = ", ".join(sorted(COMMANDS))
    raise Refusal("unknown_command", "UnknownCommand", f"Unknown command: '{name}'. Available: {names}")


COMMANDS = ["ping", "echo", "identity", "fail", "print_text", "child_sees", "unencodable"]


class Bridge:
    """The state of the conversation."""

    level, errors, limit, held = 0, False, LIMIT, b""

    def answer(self, request):
        request_id, name = request["id"], request.get("command")
        args = request.get("args", {})
        if has("empty args"):
            args = args or {}
        try:
            if not isinstance(name, str):
                raise Refusal("bad_args", "InvalidArguments", f"request {request_id}: 'command' must be a string")
            result = call(name, args)
            offer = args.get("protocol") if name == "ping" and isinstance(args, dict) else None
            if offer and 1 in offer["versions"]:
                self.level, self.errors, self.limit = 1, "errors" in offer["capabilities"], offer["max_frame"]
                result["protocol"] = {
                    "version": 1,
                    "max_frame": self.limit,
                    "capabilities": [name for name in ("errors", "pipeline") if name in offer["capabilities"]],
                    "language": "small", "runtime": "1", "bridge": "1", "pid": os.getpid(),
                    "commands": {name: {"params": [], "doc": ""} for name in COMMANDS},
                }
            self.reply({"id": request_id, "success": True, "result": result})
        except Refusal as refusal:
            self.fail(request_id, *refusal.args, None)
        except Exception as error:
            message = (str(error) or type(error).__name__).encode()[:65536].decode(errors="ignore")
            more = {"data": error.data} if hasattr(error, "data") else {}
            if error.__cause__:
                more["cause"] = {"type": type(error.__cause__).__name__, "message": str(error.__cause__)}
            trace = traceback.format_exc()[:16000]
            self.fail(request_id, "handler_error", type(error).__name__, message, trace, **more)

    def fail(self, request_id, code, kind, message, trace, **more):
        error = {"code": code, "type": kind, "message": message, "traceback": trace, "language": "small", **more}
        self.reply({"id": request_id, "success": False, "error": error if self.errors else message})

    def reply(self, message):
        if not self.level:
            message["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        payload = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
        if has("order") and not self.held and select.select([REQUESTS], [], [], 0)[0]:
            self.held = payload
            return
        if has("flush") and message["id"]:
            payload, self.held = self.held, payload
        if payload:
            write(payload)
        if has("order") and self.held:
            payload, self.held = self.held, b""
            write(payload)
        if has("stray bytes") and message["id"]:
            os.write(REPLIES, b"\n")

    def refuse(self, seen, why, request_id=None, status=None):
        if has("silence"):
            return
        print(f"bad frame: {why}; bytes seen: {seen[:80]!r}", file=sys.stderr, flush=True)
        self.fail(request_id, "internal", "BadFrame", f"bad frame: {why}", None)
        if status is not None:
            sys.exit(status)

    def serve(self):
        while head := read(4):
            size = int.from_bytes(head, "big")
            payload = read(size) if len(head) == 4 and 0 < size <= self.limit else b""
            if len(head) < 4 or len(payload) != size or not size:
                self.refuse(head + payload, f"length {size}", status=2)
            try:
                request = parse(payload)
            except (ValueError, RecursionError) as error:
                known = payload.startswith(b'{"id":7,')
                self.refuse(payload, type(error).__name__, 7 if known else None)
                continue
            if "type" not in request or "command" in request:
                self.answer(request)


words = sys.argv[2:]
if words[:1] == ["--handlers"] and len(words) == 2:
    words, handlers = [], words[1]
else:
    handlers = None
if words and (words[0] != "--mode" or len(words) != 2):
    print(f"small_bridge: what is {words[0]!r}?", file=sys.stderr)
    sys.exit(2)
REQUESTS, REPLIES = open_streams()
signal.signal(signal.SIGINT, signal.SIG_DFL if has("SIGINT") else signal.SIG_IGN)
if has("SIGTERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if has("leaked child"):
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
if has("deadlock") or has("short write"):
    os.set_blocking(REPLIES, False)
bridge = Bridge()
if handlers:
    first = json.loads(read(int.from_bytes(read(4), "big")))
    bridge.errors = True
    bridge.fail(first["id"], "handler_error", "FileNotFoundError", f"there is no {handlers}", "none")
    sys.exit(1)
bridge.serve()
if has("survival"):
    signal.pause()

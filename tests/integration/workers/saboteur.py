"""A bridge that misbehaves on demand: one command, "do", whose argument "how" names a deed.

Speaks level 0 on stdin and stdout, or level 1 on the descriptors of SNAKEPIT_FDS.  A deed happens

- while it answers a request: ``{"how": deed, ...}``, with ``"gate"`` after the test has let it pass;
- later: ``{"how": "arm", "deed": {...}, "at": path}`` (idle, when that gate lets it go) or ``"at": "ping"``;
- in the place of the handshake's answer: SABOTEUR_START, a deed's name or its JSON; SABOTEUR_GOOD names a
  file whose existence repairs it;
- at the end of the requests: SABOTEUR_EOF, JSON.

With ``"stay"`` it does not come back from its deed.

SABOTEUR_PIPELINE announces ``pipeline`` and ``claim``; SABOTEUR_LOG names a file that gets a line a process.
"""

import json
import os
import select
import signal
import socket
import sys

FDS = os.environ.get("SNAKEPIT_FDS")
IN, OUT = (int(number) for number in FDS.split(",")) if FDS else (0, 1)
CLAIMS = int(os.environ.get("SNAKEPIT_CLAIM_FD", "-1"))
HELD = {"last": 0, "hoard": []}


# The stream -----------------------------------------------------------------------------------------


def read(size):
    data = b""
    while len(data) < size:
        if HELD.get("armed"):
            ready, _, _ = select.select([IN, HELD["armed"][0]], [], [])
            if IN not in ready:
                act_armed()
                continue
        piece = os.read(IN, size - len(data))
        if not piece:
            end_of_input()
        data += piece
    return data


def be_ready_for_term(deed):
    """Do at once what a last deed does with TERM: its time runs from the end of the requests, busy machine or not."""
    if deed.get("ignore_term") or deed["how"] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif deed["how"] == "late_after_term":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def end_of_input():
    last_deed = os.environ.get("SABOTEUR_EOF")
    if last_deed:
        perform(json.loads(last_deed), None)
    while HELD.get("ignore_eof"):
        signal.pause()
    os._exit(0)


def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(OUT, view) :]


def frame(payload):
    return len(payload).to_bytes(4, "big") + payload


def reply(request_id, result, success=True):
    """Answer a request; where none is open (idle, or at the end) there is nothing to answer."""
    if request_id is None:
        return
    message = {"id": request_id, "success": success, "result" if success else "error": result}
    write(frame(json.dumps(message).encode()))


def hang():
    while True:
        signal.pause()


def note(path, text):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


# Gates (the worker's half of tests/gates.py, which an isolated interpreter cannot import) ------------


def arrive(path, label):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    connection.sendall(b"%d %s\n" % (os.getpid(), label.encode()))
    return connection


def stop_at(path, label):
    if path:
        arrive(path, label).recv(1)


def report_hung(args):
    """Tell the test, without waiting for it, that nothing more will come of this."""
    if args.get("hung"):
        HELD["report"] = arrive(args["hung"], "hung")


def act_armed():
    connection, deed = HELD.pop("armed")
    connection.recv(1)
    connection.close()
    perform(deed, None)
    stop_at(deed.get("done"), "done")


# Deeds: (id of the open request or None, the value it would answer with, its arguments) ---------------


def do_reply(number, value, args):
    reply(number, value)


def do_print(number, value, args):
    write(b"debug: here I am\n")
    reply(number, value)


def do_stream(number, value, args):
    """Write bytes to the stream of replies."""
    write(bytes.fromhex(args["hex"]))
    reply(number, value)
    report_hung(args)


def do_stdout(number, value, args):
    """Write bytes to descriptor 1: the stream at level 0, ordinary output at level 1."""
    os.write(1, bytes.fromhex(args["hex"]))
    reply(number, value)
    report_hung(args)


def do_reply_print(number, value, args):
    answer = {"id": number, "success": True, "result": value or "good"}
    write(frame(json.dumps(answer).encode()) + b"debug: bye\n")


def do_bad_json(number, value, args):
    write(frame(b'{"id": oops'))


def do_nan(number, value, args):
    write(frame(b'{"id":%d,"success":true,"result":NaN}' % (number or 0)))


def do_array(number, value, args):
    write(frame(b"[1]"))


def do_header(number, value, args):
    write(b"\xff\xff\xff\xff")


def do_zero(number, value, args):
    write(b"\0\0\0\0")


def do_large(number, value, args):
    write((65 << 20).to_bytes(4, "big") + b"{" * 100)


def do_too_large(number, value, args):
    """Write a whole reply of so many bytes, far more than a pipe holds."""
    write(frame(b'{"id":%d,"success":true,"result":"%s"}' % (number or 0, b"x" * args["bytes"])))


def do_deep(number, value, args):
    nested = b"[" * 100000 + b"]" * 100000
    write(frame(b'{"id":%d,"success":true,"result":%s}' % (number or 0, nested)))


def do_no_success(number, value, args):
    write(frame(b'{"id":%d}' % number))


def do_half_hang(number, value, args):
    write(frame(b'{"id":0,"success":true}')[:9])
    do_hang(number, value, args)


def do_half_exit(number, value, args):
    write(frame(b'{"id":0,"success":true}')[:9])
    os._exit(args.get("code", 0))


def do_unknown_id(number, value, args):
    reply((number or HELD["last"]) + 1000, None)


def do_text_id(number, value, args):
    reply(str(number), None)


def do_twice(number, value, args):
    reply(number, value or "first")
    reply(number, "second")


def do_late(number, value, args):
    """Answer once more what was answered before."""
    reply(HELD["last"] if number is None else number - 1, "late")
    reply(number, value or "own")


def do_late_after_term(number, value, args):
    """Answer only when TERM comes: the host has given up by then."""
    # RACE: a handler of Python's would not run for a TERM that comes on the last steps before pause().
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    report_hung(args)
    signal.sigwait({signal.SIGTERM})
    reply(HELD["last"] if number is None else number, "too late")
    os._exit(0)


def do_stderr(number, value, args):
    line = b"noise " * 1000 + b"\n"
    for _ in range(args["bytes"] // len(line) + 1):
        os.write(2, line)
    reply(number, value or "quiet")


def do_stubborn(number, value, args):
    """Ignore TERM and the end of the requests from now on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    HELD["ignore_eof"] = True
    reply(number, value or os.getpid())


def do_ignore_term(number, value, args):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reply(number, value or os.getpid())


def do_ignore_eof(number, value, args):
    HELD["ignore_eof"] = True
    reply(number, value or os.getpid())


def do_hang(number, value, args):
    if args.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report_hung(args)
    hang()


def do_grandchild(number, value, args):
    """Leave a process behind that holds this one's pipes and ignores TERM, and tell its pid."""
    told, tell = os.pipe()
    if os.fork() == 0:
        if args.get("own_session"):
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(args["path"], str(os.getpid()))
        os.write(tell, b"x")
        hang()
    os.read(told, 1)
    if args.get("reply"):
        reply(number, value or os.getpid())
    else:
        os._exit(args.get("code", 3))


def do_close_out(number, value, args):
    os.close(OUT)
    do_hang(number, value, args)


def do_close_in(number, value, args):
    os.close(IN)
    reply(number, None)
    hang()


def do_exit(number, value, args):
    os.write(2, args.get("text", "").encode())
    os._exit(args["code"])


def do_signal(number, value, args):
    report_hung(args)
    os.kill(os.getpid(), args["number"])
    hang()


def do_reply_exit(number, value, args):
    reply(number, value or "last words")
    os._exit(args.get("code", 0))


def do_reply_stop(number, value, args):
    reply(number, os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)


def do_allocate(number, value, args):
    """Allocate without end, under a limit of its own."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    while True:
        HELD["hoard"].append(bytes(32 << 20))


def do_resident(number, value, args):
    """Hold so many bytes of memory, every page of it touched."""
    HELD["hoard"].append(b"x" * args["bytes"])
    reply(number, value)


def do_arm(number, value, args):
    if args["at"] == "ping":
        HELD["at_ping"] = args["deed"]
    else:
        HELD["armed"] = (arrive(args["at"], "armed"), args["deed"])
    reply(number, os.getpid())


DEEDS = {name[3:]: deed for name, deed in list(globals().items()) if name.startswith("do_")}


def perform(args, number, value=None):
    """Do the deed named, after its gate; ``number`` is the request that it may answer."""
    stop_at(args.get("gate"), "before")
    if args.get("log"):
        note(args["log"], str(args.get("value")))
    deed = DEEDS.get(args.get("how", "reply"))
    if deed is None:
        reply(number, f"no such deed: {args['how']}", success=False)
    else:
        deed(number, value, args)
    if args.get("stay"):
        hang()


# The conversation -----------------------------------------------------------------------------------


def begin(request):
    number = request["id"]
    how = os.environ.get("SABOTEUR_START", "")
    good = os.environ.get("SABOTEUR_GOOD")
    if good and os.path.exists(good):
        how = ""
    result = {"status": "ok"}
    if FDS:
        capabilities = ["errors", "session", "deadline"]
        if os.environ.get("SABOTEUR_PIPELINE"):
            capabilities += ["pipeline", "claim"]
        result["protocol"] = {"version": 1, "capabilities": capabilities}
    if how.startswith("{"):
        perform(json.loads(how), number, result)
    elif how == "silent":
        hang()
    elif how == "status":
        reply(number, {**result, "status": "starting"})
    elif how == "refuse":
        reply(number, "no licence", success=False)
    elif how == "half":
        do_half_hang(number, result, {})
    elif how == "text":
        write(frame(b"hello"))
    elif how == "print":
        write(b"welcome to my worker\n")
        reply(number, result)
    elif how == "stubborn":
        do_stubborn(number, result, {})
    else:
        reply(number, result)


def serve(request):
    number = request["id"]
    if request["command"] == "ping":
        if number == 0:
            begin(request)
        elif "at_ping" in HELD:
            perform(HELD.pop("at_ping"), number, {"status": "ok"})
        else:
            reply(number, {"status": "ok"})
    elif is_taken_back(request):
        write(frame(json.dumps({"type": "recalled", "id": number}).encode()))
    else:
        args = request["args"] or {}
        perform(args, number, args.get("value"))
    HELD["last"] = number


def is_taken_back(request):
    """Claim a request that was sent ahead; say whether the host was faster."""
    if not request.get("claim"):
        return False
    try:
        return os.read(CLAIMS, 1) == b""
    except BlockingIOError:
        return True


def main():
    start_log = os.environ.get("SABOTEUR_LOG")
    if start_log:
        note(start_log, str(os.getpid()))
    if os.environ.get("SABOTEUR_EOF"):
        be_ready_for_term(json.loads(os.environ["SABOTEUR_EOF"]))
    if os.environ.get("SABOTEUR_START") == "exit":
        good = os.environ.get("SABOTEUR_GOOD")
        if not (good and os.path.exists(good)):
            os.write(2, b"no model file\n")
            sys.exit(7)
    while True:
        request = json.loads(read(int.from_bytes(read(4), "big")).decode())
        if request.get("type") != "session_end":
            serve(request)


main()

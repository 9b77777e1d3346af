"""A bridge that misbehaves on demand: one command, "do", with a knob a kind of sabotage.

Speaks level 0 on stdin and stdout, or level 1 on the descriptors of SNAKEPIT_FDS.  SABOTEUR_START
names what goes wrong at the start; SABOTEUR_GOOD a file whose existence repairs it.
"""

import json
import os
import signal
import sys

FDS = os.environ.get("SNAKEPIT_FDS")
IN, OUT = (int(number) for number in FDS.split(",")) if FDS else (0, 1)
HELD = {}


def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(IN, size - len(data))
        if not piece:
            end_of_input()
        data += piece
    return data


def end_of_input():
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
    message = {"id": request_id, "success": success, "result" if success else "error": result}
    write(frame(json.dumps(message).encode()))


def hang():
    while True:
        signal.pause()


def begin(request):
    how = os.environ.get("SABOTEUR_START", "")
    good = os.environ.get("SABOTEUR_GOOD")
    if good and os.path.exists(good):
        how = ""
    result = {"status": "ok"}
    if FDS:
        result["protocol"] = {"version": 1, "capabilities": ["errors", "session", "deadline"]}
    if how == "print":
        write(b"welcome to my worker\n")
    elif how == "silent":
        hang()
    elif how == "status":
        result["status"] = "starting"
    elif how == "refuse":
        return reply(request["id"], "no licence", success=False)
    elif how == "half":
        write(frame(b'{"id":0,"success":true}')[:9])
        hang()
    elif how == "text":
        write(frame(b"hello"))
    elif how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        HELD["ignore_eof"] = True
    return reply(request["id"], result)


def grandchild(path, own_session):
    """Leave a process behind that holds this one's pipes, and tell its pid."""
    if os.fork() == 0:
        if own_session:
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
        hang()
    while not os.path.exists(path):
        os.sched_yield()


def do(request):
    number, args = request["id"], request["args"] or {}
    how = args.get("how", "reply")
    if how == "reply":
        reply(number, args.get("value"))
    elif how == "print":
        write(b"debug: here I am\n")
        reply(number, None)
    elif how == "reply_print":
        write(frame(json.dumps({"id": number, "success": True, "result": "good"}).encode()) + b"debug: bye\n")
    elif how == "bad_json":
        write(frame(b'{"id": oops'))
    elif how == "nan":
        write(frame(b'{"id":%d,"success":true,"result":NaN}' % number))
    elif how == "array":
        write(frame(b"[1]"))
    elif how == "header":
        write(b"\xff\xff\xff\xff")
    elif how == "zero":
        write(b"\0\0\0\0")
    elif how == "large":
        write((65 << 20).to_bytes(4, "big") + b"{" * 100)
    elif how == "deep":
        write(frame(b'{"id":%d,"success":true,"result":%s}' % (number, b"[" * 100000 + b"]" * 100000)))
    elif how == "no_success":
        write(frame(b'{"id":%d}' % number))
    elif how == "half_hang":
        write(frame(b'{"id":0,"success":true}')[:9])
        hang()
    elif how == "half_exit":
        write(frame(b'{"id":0,"success":true}')[:9])
        os._exit(0)
    elif how == "unknown_id":
        reply(number + 1000, None)
    elif how == "text_id":
        reply(str(number), None)
    elif how == "twice":
        reply(number, "first")
        reply(number, "second")
    elif how == "late":
        reply(number - 1, "late")
        reply(number, "own")
    elif how == "stderr":
        line = b"noise " * 1000 + b"\n"
        for _ in range(args["bytes"] // len(line) + 1):
            os.write(2, line)
        reply(number, "quiet")
    elif how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        HELD["ignore_eof"] = True
        reply(number, os.getpid())
    elif how == "hang":
        if args.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang()
    elif how == "grandchild":
        grandchild(args["path"], args.get("own_session"))
        if args.get("reply"):
            reply(number, os.getpid())
        else:
            os._exit(args.get("code", 3))
    elif how == "close_out":
        os.close(OUT)
        hang()
    elif how == "close_in":
        os.close(IN)
        reply(number, None)
        hang()
    elif how == "exit":
        os.write(2, args.get("text", "").encode())
        os._exit(args["code"])
    elif how == "signal":
        os.kill(os.getpid(), args["number"])
        hang()
    elif how == "reply_exit":
        reply(number, "last words")
        os._exit(args.get("code", 0))
    elif how == "reply_stop":
        reply(number, os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        reply(number, f"no such knob: {how}", success=False)


def main():
    start_log = os.environ.get("SABOTEUR_LOG")
    if start_log:
        fd = os.open(start_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b"%d\n" % os.getpid())
    if os.environ.get("SABOTEUR_START") == "exit":
        good = os.environ.get("SABOTEUR_GOOD")
        if not (good and os.path.exists(good)):
            os.write(2, b"no model file\n")
            sys.exit(7)
    while True:
        request = json.loads(read(int.from_bytes(read(4), "big")).decode())
        if request.get("type") == "session_end":
            continue
        if request["command"] == "ping":
            if request["id"] == 0:
                begin(request)
            else:
                reply(request["id"], {"status": "ok"})
        else:
            do(request)


main()

"""A worker that takes no frame above its own limit: NARROW_LIMIT, JSON, is announced as ``max_frame``.

Commands: ``size`` returns how many bytes of text and of attachments it was given, ``seen`` the longest frame since the
handshake and the sessions that have ended.
"""

import json
import os
import sys

IN, OUT = (int(number) for number in os.environ.pop("SNAKEPIT_FDS").split(","))
ANNOUNCED = json.loads(os.environ["NARROW_LIMIT"])
SEEN = {"longest": 0, "frames": 0, "batches": 0, "ended": []}


def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(IN, size - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data


def read_frame():
    payload = read(int.from_bytes(read(4), "big"))
    if SEEN["frames"]:
        SEEN["longest"] = max(SEEN["longest"], len(payload))
        if len(payload) > ANNOUNCED:
            sys.exit(f"a frame of {len(payload)} bytes")
    SEEN["frames"] += 1
    return payload


def write(message):
    payload = json.dumps(message).encode()
    view = memoryview(len(payload).to_bytes(4, "big") + payload)
    while view:
        view = view[os.write(OUT, view) :]


def run(command, args, raw):
    return SEEN if command == "seen" else [len(args.get("text", "")), raw]


while True:
    request = json.loads(read_frame())
    if "id" not in request:
        SEEN["ended"].append(request["session"])
    elif request["args"].get("initialization") if "args" in request else False:
        capabilities = ["errors", "session", "deadline", "attachments", "batch"]
        terms = {"version": 1, "max_frame": ANNOUNCED, "capabilities": capabilities, "language": "any"}
        terms.update(runtime="1", bridge="1", pid=os.getpid(), commands={})
        write({"id": request["id"], "success": True, "result": {"status": "ok", "protocol": terms}})
    elif "batch" in request:
        SEEN["batches"] += 1
        for index, args in enumerate(request["batch"]):
            write({"id": request["id"], "index": index, "success": True, "result": run(request["command"], args, 0)})
    else:
        raw = 0
        for attachment in request.get("attachments", ()):
            due = attachment["len"]
            while due:
                got = len(read_frame())
                if got != min(due, ANNOUNCED):
                    sys.exit(f"a frame of {got} bytes where {due} were due")
                due -= got
                raw += got
        write({"id": request["id"], "success": True, "result": run(request["command"], request["args"], raw)})

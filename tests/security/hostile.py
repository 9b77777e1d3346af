"""A worker that means harm: it answers the handshake and then writes whatever bytes a test tells it to.

Level 1.  ``{"write": base64, "forever": bool}`` writes the bytes, ``@ID@`` in them replaced by the request's id;
``{"fill_claims": true}`` fills the pipe of claim tokens.  HOSTILE_START is the handshake's result as JSON.
"""

import base64
import json
import os

IN, OUT = (int(number) for number in os.environ["SNAKEPIT_FDS"].split(","))
GOOD_START = '{"status": "ok", "protocol": {"version": 1, "capabilities": ["errors", "pipeline", "claim", "log"]}}'


def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(IN, size - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data


def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(OUT, view) :]


def reply(number, text):
    payload = b'{"id":%d,"success":true,"result":%s}' % (number, text.encode())
    write(len(payload).to_bytes(4, "big") + payload)


def fill_claims():
    # The read end of a pipe opened anew for writing: what descriptors alone do not forbid.
    fd = os.open("/proc/self/fd/" + os.environ["SNAKEPIT_CLAIM_FD"], os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        pass


while True:
    request = json.loads(read(int.from_bytes(read(4), "big")))
    if request["command"] == "ping":
        reply(request["id"], os.environ.get("HOSTILE_START", GOOD_START))
        continue
    args = request["args"] or {}
    if args.get("fill_claims"):
        fill_claims()
    attack = base64.b64decode(args.get("write", "")).replace(b"@ID@", b"%d" % request["id"])
    while args.get("forever"):
        write(attack)
    write(attack)
    if not attack:
        reply(request["id"], str(os.getpid()))

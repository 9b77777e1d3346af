"""The other end of a raw pipe: echoes length-prefixed frames on fds 0 and 1.

python -S -E echo_child.py [json]

With ``json`` each frame is decoded and answered with a new object, as a worker would.
"""

import json
import os
import sys

CHUNK_BYTES = 1 << 16


def main() -> None:
    """Serve until the stream ends."""
    as_json = sys.argv[1:] == ["json"]
    buffer = b""
    while True:
        while len(buffer) < 4:
            more = os.read(0, CHUNK_BYTES)
            if not more:
                return
            buffer += more
        end = 4 + int.from_bytes(buffer[:4], "big")
        if end <= len(buffer):
            frame, buffer = buffer[:end], buffer[end:]
        else:
            whole = bytearray(end)
            done = len(buffer)
            whole[:done] = buffer
            with memoryview(whole) as view:
                while done < end:
                    done += os.readv(0, [view[done:]])
            frame, buffer = whole, b""
        if as_json:
            request = json.loads(frame[4:])
            args = request["args"]
            answer = {"id": request["id"], "success": True, "result": args["a"] + args["b"]}
            body = json.dumps(answer).encode()
            frame = len(body).to_bytes(4, "big") + body
        with memoryview(frame) as view:
            done = 0
            while done < len(frame):
                done += os.write(1, view[done:])


main()

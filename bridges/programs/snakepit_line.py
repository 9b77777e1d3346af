"""The worker of ``LineAdapter``: a program that answers one line for each line, as the command ``line``."""

import json
import math
import os
import select
import subprocess
import sys
import threading
from time import monotonic

from snakepit_bridge import command, context, end_worker, on_start

READ_BYTES = 1 << 16
MAX_ANSWER_BYTES = 1 << 27
"""How long an answer may become: as long as the longest frame."""
SHOWN_BYTES = 80
"""How much of unexpected output an error shows."""
MAX_WAIT_S = 86400.0
"""Of one system call: ``poll`` counts milliseconds in 32 bits; arbitrary below that."""
GIVEN_UP = 70
"""Exit status; EX_SOFTWARE of sysexits.h."""
PART_OF_DEADLINE = 0.9
"""How much of a call's time the first answer may take: the advice has to come before the host ends the worker."""

_program = None


class NoPrompt(Exception):
    """The program does not become ready."""


class Program:
    """The process and its two pipes.

    THREAD: the main thread; ``_watch`` has a thread of its own.
    """

    def __init__(self, argv, delimiter, encoding, prompt, first_line_s):
        self._name = os.path.basename(argv[0])
        self._delimiter = delimiter.encode(encoding)
        self._end = self._delimiter if prompt is None else prompt.encode(encoding)
        # In UTF-16 and UTF-32 the same bytes may also stand across two characters.
        self._unit = len(" ".encode(encoding))
        self._encoding = encoding
        self._awaited = "line" if prompt is None else "prompt %r" % prompt
        # Only until the program has shown that its answers come at once; after that it may think as long as it likes.
        self._patience_s = math.inf if first_line_s is None else first_line_s
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self._received = bytearray()
        self._is_ready = prompt is None
        if prompt is not None:
            self._exchange(b"", self._patience_s)
            self._is_ready = True
        threading.Thread(target=self._watch, name="snakepit-program", daemon=True).start()

    def _watch(self):
        """End the worker as the program ends, whoever reads from it at that moment."""
        end_worker(self._process.wait())

    def ask(self, line):
        """Return the program's answer to a line, without delimiter or prompt."""
        self._refuse_unexpected()
        limit_s, left_s = self._patience_s, context().deadline_s
        if limit_s < math.inf and left_s is not None:
            limit_s = min(limit_s, left_s * PART_OF_DEADLINE)
        return self._exchange(line.encode(self._encoding) + self._delimiter, limit_s).decode(self._encoding)

    def _refuse_unexpected(self):
        try:
            stray = self._received or os.read(self._stdout, READ_BYTES)
        except BlockingIOError:
            return
        if stray:
            shown = stray[:SHOWN_BYTES].decode(self._encoding, "replace")
            self._give_up("%s wrote %r, which no line had asked for: one line has to answer each" % (self._name, shown))
        self._leave()

    def _exchange(self, data, limit_s):
        """Write a line, reading meanwhile, so that neither side waits for the other; return the answer."""
        view = memoryview(data)
        until = monotonic() + limit_s
        search_from = 0
        is_open = True
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        if view:
            poll.register(self._stdin, select.POLLOUT)
        while True:
            # An answer may come before its line has been read; the rest of the line would be taken for the next one.
            if not view or not is_open:
                found = self._find_end(search_from)
                if found >= 0:
                    answer = self._received[:found]
                    del self._received[: found + len(self._end)]
                    self._patience_s = math.inf
                    return answer
                search_from = max(0, len(self._received) - len(self._end) + 1)
            if len(self._received) > MAX_ANSWER_BYTES:
                self._refuse_endless()
            if not is_open:
                self._leave()
            left_s = until - monotonic()
            ready = poll.poll(None if left_s == math.inf else max(0, min(left_s, MAX_WAIT_S)) * 1000)
            if not ready and left_s <= MAX_WAIT_S:
                self._end_patience(limit_s)
            try:
                for fd, _ in ready:
                    if fd == self._stdin:
                        view = self._write(view)
                        if not view:
                            poll.unregister(self._stdin)
                    else:
                        self._read()
            except (BrokenPipeError, EOFError):
                # It has gone, perhaps after its answer, of which all is in the pipe by now.
                is_open = False
                self._read_rest()

    def _find_end(self, start):
        """Return where the delimiter or the prompt stands, or -1."""
        found = self._received.find(self._end, start)
        while found > 0 and found % self._unit:
            found = self._received.find(self._end, found + 1)
        return found

    def _write(self, view):
        try:
            return view[os.write(self._stdin, view) :]
        except BlockingIOError:
            return view

    def _read(self):
        piece = os.read(self._stdout, READ_BYTES)
        if not piece:
            raise EOFError
        self._received += piece

    def _read_rest(self):
        try:
            while len(self._received) <= MAX_ANSWER_BYTES:
                self._read()
        except (BlockingIOError, EOFError):
            pass

    def _refuse_endless(self):
        self._give_up(
            "%s wrote more than %d bytes, the limit of an answer, for one line, beginning with %r; what it ends its"
            " answers with has to be given as delimiter or prompt, which was %r"
            % (self._name, MAX_ANSWER_BYTES, bytes(self._received[:SHOWN_BYTES]), self._end.decode(self._encoding))
        )

    def _end_patience(self, limit_s):
        seen = " (it wrote %r)" % bytes(self._received[:SHOWN_BYTES]) if self._received else ""
        self._give_up(
            "no %s from %s within %.3g s%s; a program that buffers its output answers too late: use its unbuffered mode"
            " (jq --unbuffered, sed -u, grep --line-buffered) or run it through stdbuf -oL"
            % (self._awaited, self._name, limit_s, seen)
        )

    def _give_up(self, reason):
        """End the worker: nobody can tell to which line the program's next answer would belong.

        The request gets no reply, and the host tells the end of stderr with its error: a reply would make the worker
        look fit for the next request, which would then be lost.
        """
        self._process.kill()
        if not self._is_ready:
            raise NoPrompt(reason)
        sys.stderr.write("LineAdapter: %s\n" % reason)
        end_worker(GIVEN_UP, at_once=True)

    def _leave(self):
        """The program has closed a pipe: end as it ends; this request gets no answer."""
        self._process.stdin.close()
        end_worker(self._process.wait(), at_once=True)


@on_start
def begin(argv, delimiter, encoding, reply, prompt, first_line_s):
    global _program
    _program = Program(argv, delimiter, encoding, prompt, first_line_s)
    if reply == "json":
        command(lambda text: json.loads(_program.ask(text)), name="line")
    else:
        command(lambda text: _program.ask(text), name="line")

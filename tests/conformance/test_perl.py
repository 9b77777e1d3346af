"""What is particular to the Perl bridge: how it reads and writes escapes, and how little its start loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance.driver import BRIDGES_DIR, Worker, frame
from missing import give_up

BRIDGE = BRIDGES_DIR / "perl" / "snakepit_bridge.pl"


@pytest.fixture
def perl(require_runtime: Callable[[str], str]) -> str:
    """Return the path of Perl."""
    return require_runtime("perl")


@pytest.fixture
def worker(perl: str) -> Iterator[Worker]:
    """A started worker with the built-in commands."""
    with Worker([perl, str(BRIDGE)]) as process:
        process.start()
        yield process


@pytest.fixture
def start(perl: str, tmp_path: Path) -> Callable[[str], Worker]:
    """Return a function that starts a worker with a handler file of this text."""

    def start_with(code: str) -> Worker:
        (tmp_path / "handlers.pl").write_text(code, "utf-8")
        return Worker([perl, str(BRIDGE), "--handlers", str(tmp_path / "handlers.pl")])

    return start_with


ASCII = "".join(map(chr, range(0x80)))
TEXTS = {
    "ASCII": ASCII,
    "wide": ASCII + "\x80\u00ff\u6f22\ud7ff\ue000\uffff\U0001f600\U0010ffff" + ASCII,
    "bytes that stand for escapes": "\u00f5\u00f6\u00f7\u00f8\u00f9\u00fa\u00c2\u00c3",
    "dense": '"\n\\\t\0' * 50_000,
    "dense and wide": '\u00e9"\n\\' * 50_000,
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("ascii_alone", [False, True])
def test_texts_come_back(worker: Worker, case: str, ascii_alone: bool) -> None:
    """As they were, also as keys, and whether they were sent in UTF-8 or as escapes."""
    args = {"text": TEXTS[case], TEXTS[case]: ["", {}, TEXTS[case], 1.5, True, None]}
    message = {"id": 1, "command": "echo", "args": args}
    worker.send_bytes(frame(json.dumps(message, ensure_ascii=ascii_alone, indent=1).encode()))

    assert args == worker.receive()["result"]["echoed"]


def test_escapes_of_any_spelling(worker: Worker) -> None:
    """Upper and lower case digits, escaped backslashes before other escapes, characters that need no escape."""
    sent = rb'["\/\u002f\u0022\u005C\\u0041\\\u0041\uD83D\ude00","\u0009\u000A\t\\\\n\\\\\n\u007E\u0020"]'
    worker.send_bytes(frame(b'{"id":1,"command":"echo","args":%b}' % sent))

    assert ['//"\\\\u0041\\A\U0001f600', "\t\n\t\\\\n\\\\\n~ "] == worker.receive()["result"]["echoed"]


BAD_ESCAPES = [rb'"\x"', rb'"\\\x"', rb'"\u12"', rb'"\u12g4"', rb'"a\"']
BAD_SURROGATES = [rb'"\ud83d"', rb'"\ude00"', rb'"\ud83d\u0041"', rb'"\\ud83d\ude00"']
OUTSIDE_OF_STRINGS = [rb"\u0031", rb'\u0022a"', rb"[1,\n2]", rb"[\u0020]", rb"1\t", rb'\"a"', rb"\\"]
BYTES = [b'"\\n\n"', b'"\\n\0"', b'"\\n\x1f"', b'"\\n\xf8"', b'"\\n\xc0\x80"', b'"\\n\xed\xa0\x80"', b'"\\n\xfa1"']


@pytest.mark.parametrize("value", [*BAD_ESCAPES, *BAD_SURROGATES, *OUTSIDE_OF_STRINGS, *BYTES])
def test_escapes_that_are_no_json_are_refused(worker: Worker, value: bytes) -> None:
    """Bad ones, and good ones outside of strings; the bytes that stand for escapes cannot be sent."""
    worker.send_bytes(frame(b'{"id":7,"command":"echo","args":[%b]}' % value))
    reply = worker.receive()

    assert (7, "BadFrame") == (reply["id"], reply["error"]["type"])


def test_the_start_loads_no_more_than_it_needs(start: Callable[[str], Worker]) -> None:
    """Modules that take long to compile are left to handlers; true, false and bytes work without overload."""
    code = """
    use v5.26;
    command loaded => sub { [grep { exists $INC{$_} } qw(warnings.pm overload.pm Carp.pm POSIX.pm Time/HiRes.pm)] };
    command values => sub {
        my ($args) = @_;
        my $more = my $one = true;
        $more++;
        [0 + true, true ? 'yes' : 'no', false ? 'yes' : 'no', !!false eq '', "$args->{data}", 0 + $more, 0 + $one]
    };
    command strict => sub { eval 'use warnings; my $x = "a" . undef; $y = 1; 1' ? 'lax' : $@ };
    """
    with start(code) as worker:
        worker.start()
        message = {"id": 2, "command": "values", "args": {"data": None}}
        attachment = {"path": "/args/data", "kind": "bytes", "len": 3}

        assert [] == worker.call(1, "loaded")["result"]
        worker.send_bytes(frame(json.dumps({**message, "attachments": [attachment]}).encode()) + frame(b"abc"))
        result = worker.receive()["result"]
        assert [1, "yes", "no", "abc", 2, 1] == [*result[:3], *result[4:]]
        assert 'Global symbol "$y"' in worker.call(3, "strict")["result"]


def test_the_bridge_gives_no_warnings(perl: str, tmp_path: Path) -> None:
    """It runs without them; with them, its standard error stays empty."""
    text = BRIDGE.read_text("utf-8")
    quiet = "BEGIN { ${^WARNING_BITS} = '' }"
    assert 1 == text.count(quiet)
    noisy = "use warnings; no warnings qw(recursion surrogate non_unicode experimental);"
    (tmp_path / "bridge.pl").write_text(text.replace(quiet, noisy), "utf-8")

    with Worker([perl, str(tmp_path / "bridge.pl")]) as worker:
        worker.start()
        for args in (None, {}, [], "text", [TEXTS["wide"]], 1.5, {"operation": "add", "a": 1, "b": 2}):
            for command in ("ping", "echo", "compute", "info", "no_such"):
                worker.call(1, command, args)
        worker.send_bytes(frame(b'{"id":1,"command":null,"session":1,"deadline_ms":"x","batch":{}}'))
        worker.receive()
        worker.close_requests()

        assert 0 == worker.wait()
        assert "" == worker.stderr()


def test_log_of_a_thread_goes_to_stderr(start: Callable[[str], Worker]) -> None:
    """A thread of Perl has copies of all variables, the replies that wait to be written among them."""
    code = """
    command in_thread => sub {
        my ($args, $ctx) = @_;
        eval { require threads; 1 } or return 'no threads';
        threads->create(sub { $ctx->log('in the thread') })->join;
        return 'joined';
    };
    """
    with start(code) as worker:
        worker.start()
        worker.send({"id": 1, "command": "in_thread", "batch": [{}, {}]})
        replies = [worker.receive() for _ in range(2)]
        if "no threads" == replies[0]["result"]:
            give_up("this Perl has no threads")

        assert [(0, "joined"), (1, "joined")] == [(reply.get("index"), reply.get("result")) for reply in replies]
        assert "[info] in the thread\n" * 2 == worker.stderr().replace("snakepit_bridge: ", "")


def test_class_that_is_no_text_is_an_error_like_others(start: Callable[[str], Worker]) -> None:
    """Its name becomes text; the worker lives."""
    with start(r'command fail => sub { die bless { message => "no" }, "Odd\x{d800}" };') as worker:
        worker.start()
        error = worker.call(1, "fail")["error"]

        assert ("no", "Odd\ufffd") == (error["message"], error["type"])

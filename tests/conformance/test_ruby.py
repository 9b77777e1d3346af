"""What only the Ruby bridge has: blocks as commands, Ruby's values, its forks and its exits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import Bridge, Worker, bridge_of, frame, start_bridge, starter


@pytest.fixture
def ruby(require_runtime: Callable[[str], str]) -> Bridge:
    """Return the Ruby bridge."""
    require_runtime("ruby")
    return bridge_of("ruby")


@pytest.fixture
def start(ruby: Bridge, tmp_path: Path) -> Callable[[str], Worker]:
    """Return a function that starts a worker with the handler file of the given text."""
    return starter(ruby, tmp_path)


START_FAILURES = {
    "syntax error": ("command('a') {\n  1 +\n}\n", "SyntaxError", "handlers.rb:3"),
    "registered twice": (
        "command('a') { 1 }\ncommand('a') { 2 }\n",
        "ArgumentError",
        "command 'a' is registered twice: ",
    ),
    "ping": ("command('ping') { 1 }", "ArgumentError", "command 'ping' belongs to the bridge"),
    "no block": ("command('a')", "ArgumentError", 'command "a": a block is missing'),
    "twice without a place": (
        "command('a', method(:puts))\ncommand('a', method(:puts))\n",
        "ArgumentError",
        "handlers.rb:2)",
    ),
    "exit": ("exit", "SystemExit", "exit ("),
    "raised": ("\nraise 'no model'", "RuntimeError", "handlers.rb:2)"),
    "raised in on_start": ("on_start do\n  Integer('x')\nend", "ArgumentError", "handlers.rb:2)"),
    "message of two lines": ("fail %(no model\nhere)", "RuntimeError", "handlers.rb:1)\nhere"),
    "raised in a thread": ("on_start { Thread.new { raise 'late' } }", "RuntimeError", "handlers.rb:1)"),
    "a file that is missing": ("\n\nrequire 'no_such'", "LoadError", "handlers.rb:3)"),
    "raised elsewhere": ("on_start {\n  JSON.parse('{') }", "ParserError", "handlers.rb:2)"),
}


@pytest.mark.parametrize("case", START_FAILURES)
def test_handler_file_that_fails_is_answered_with_rubys_own_words(
    case: str, start: Callable[[str], Worker]
) -> None:
    """The first ping is answered with class, message and place, and the exit status is 1."""
    text, kind, words = START_FAILURES[case]
    with start(text) as worker:
        error = worker.start()["error"]

        assert ("handler_error", kind) == (error["code"], error["type"])
        assert words in error["message"]
        assert "handlers.rb:" in error["traceback"]
        assert 1 == worker.wait()


def test_blocks_methods_and_lambdas_are_commands(start: Callable[[str], Worker]) -> None:
    """Each tells its parameters and its doc; a block may return, and keeps its self."""
    text = """
    command('block', 'Halve.') { |number:, by: 2| return 0 if number.zero?; number / by }
    command def defined(first, second = 2, *more) [first, second, more] end
    command('lambda', ->(**all) { all }, doc: 'All.')
    class Counter
      def initialize; @count = 0; end
      def register; Snakepit.command('counted') { @count += 1 }; end
    end
    Counter.new.register
    """
    calls = [
        ("block", {"number": 8}),
        ("block", {"number": 0}),
        ("defined", [1]),
        ("defined", [1, {"a": 1}, 3]),
        ("lambda", {"k": None}),
        ("counted", None),
        ("counted", []),
    ]
    with start(text) as worker:
        commands = worker.start()["result"]["protocol"]["commands"]
        replies = []
        for number, (command, args) in enumerate(calls, start=1):
            worker.send({"id": number, "command": command, "args": args})
            replies.append(worker.receive())

        assert {"params": ["number", "by"], "doc": "Halve."} == commands["block"]
        assert {"params": ["first", "second"], "doc": ""} == commands["defined"]
        assert {"params": [], "doc": "All."} == commands["lambda"]
        results = [reply.get("result") for reply in replies]
        assert [4, 0, [1, 2, []], [1, {"a": 1}, [3]], {"k": None}, 1, 2] == results


VALUES: dict[str, tuple[str, Any]] = {
    "symbols": ("{ a: :b, 'c' => [:d] }", {"a": "b", "c": ["d"]}),
    "latin text": ("'é'.encode('ISO-8859-1')", "é"),
    "subclasses": ("Class.new(Hash)[1.to_s, Class.new(Array)[Class.new(String).new('x')]]", {"1": ["x"]}),
    "ASCII": ("'x'.encode('US-ASCII')", "x"),
    "large integer": ("2**70", 2**70),
    "shared": ("[1].then { |one| [one, one] }", [[1], [1]]),
    "thread": ("Thread.new { 5 }", 5),
}
REFUSED = {
    "one key twice": ("{ 'k' => 1, k: 2 }", 'result: key "k" is there twice, as String and as Symbol'),
    "number as key": ("[{ 1 => 2 }]", "result/0: key 1 is a Integer; JSON keys are String or Symbol"),
    "invalid text": ("['x\\xff']".replace("'", '"'), "result/0: text with the byte 0xff at index 1 is not UTF-8"),
    "invalid key": ("{ 'x\\xff' => 1 }".replace("'", '"'), "result: text with the byte 0xff at index 1"),
    "time": ("{ at: Time.at(0) }", "result/at: Time is not a JSON type"),
    "set": ("require 'set'; Set[1]", "result: Set is not a JSON type; convert it to a Hash or an Array"),
    "anonymous": ("Class.new.new", "result: Object is not a JSON type"),
    "rational": ("1r", "result: Rational is not a JSON type"),
    "minus infinity": ("-Float::INFINITY", "result: -Infinity is not JSON"),
}


def test_values_of_ruby_arrive_or_are_refused_with_their_path(start: Callable[[str], Worker]) -> None:
    """Symbols, subclasses and text in other encodings arrive; what may mean two things is refused."""
    cases = {**VALUES, **REFUSED}
    text = "".join(f"command('{name}') {{ {code} }}\n" for name, (code, _) in cases.items())
    with start(text) as worker:
        worker.start()

        replies = {name: worker.call(number, name) for number, name in enumerate(cases, start=1)}

        assert {name: value for name, (_, value) in VALUES.items()} == {
            name: replies[name].get("result") for name in VALUES
        }
        for name, (_, words) in REFUSED.items():
            error = replies[name]["error"]
            assert ("encode_error", True) == (error["code"], error["message"].startswith(words)), error


@pytest.mark.parametrize(
    "args",
    ['"\\q"', "1/* comment */", '"\\ud800\\u0041"', '"\\udc00"', "1" * 400 + ".5", "1" * 250 + "e99"],
    ids=["escape", "comment", "half a pair", "second half", "long", "long with exponent"],
)
def test_what_the_json_library_lets_pass_is_a_bad_frame(ruby: Bridge, args: str) -> None:
    """The library is laxer than JSON; the bridge is not."""
    with start_bridge(ruby, handlers=False) as worker:
        worker.start()

        worker.send_bytes(frame(f'{{"id":7,"command":"echo","args":{args}}}'.encode()))
        bad = worker.receive()
        worker.send_bytes(frame(b'{"id":8,"command":"echo","args":"http://\\\\q \\" // /* \\ud83d\\ude00"}'))
        good = worker.receive()

        assert (7, "BadFrame") == (bad["id"], bad["error"]["type"])
        assert 'http://\\q " // /* 😀' == good["result"]["echoed"]


def test_forked_child_does_not_answer(start: Callable[[str], Worker]) -> None:
    """A child that comes back from the handler, or logs, leaves the stream to its parent."""
    text = """
    command('split') do
      pid = fork
      context.log('in both') unless pid
      pid && Process.wait2(pid).last.exitstatus
    end
    """
    with start(text) as worker:
        worker.start()

        replies = [worker.call(1, "split"), worker.call(2, "ping")]

        assert [(1, 2), (2, "ok")] == [
            (replies[0]["id"], replies[0]["result"]),
            (replies[1]["id"], replies[1]["result"]["status"]),
        ]
        assert "[info] in both" in worker.stderr()
        assert "a forked child came back from its handler" in worker.stderr()


def test_end_of_requests_ends_a_computing_worker_and_runs_exit_blocks_of_an_idle_one(
    start: Callable[[str], Worker],
) -> None:
    """A loop that never waits is no obstacle; without one, at_exit blocks of user code run."""
    text = """
    at_exit { warn 'the end' }
    command('spin') { context.log('spinning'); loop { } }
    """
    with start(text) as idle, start(text) as busy:
        idle.start()
        busy.start()
        assert "log" == busy.call(1, "spin")["type"]

        for worker in (idle, busy):
            worker.close_requests()

        assert (0, 0) == (idle.wait(), busy.wait())
        assert ("the end\n", "") == (idle.stderr(), busy.stderr())


def test_log_of_a_thread_after_its_reply_goes_to_stderr(start: Callable[[str], Worker]) -> None:
    """Before the reply it is a message, whichever thread writes it; afterwards nobody waits for it."""
    text = """
    GATE = Queue.new
    command('begin') do
      log = context
      Thread.new { log.log('during', :debug, n: 1.5) }.join
      LATE = Thread.new { GATE.pop; log.log('after', at: Object) }
      nil
    end
    command('open') { GATE << 1; LATE.join; nil }
    """
    with start(text) as worker:
        worker.start()

        during = worker.call(1, "begin")
        replies = [worker.receive(), worker.call(2, "open")]

        assert ("during", "debug", {"n": 1.5}) == (during["message"], during["level"], during["fields"])
        assert [1, 2] == [reply["id"] for reply in replies]
        assert "snakepit_bridge: [info] after at=Object\n" == worker.stderr()


def test_traceback_is_the_users_and_names_the_causes(start: Callable[[str], Worker]) -> None:
    """No line of the bridge is in it; an anonymous class goes by the name of its parent."""
    text = """
    def inner; raise(Class.new(KeyError), "deep \\xff"); end
    command('fail') do
      inner
    rescue KeyError
      raise NotImplementedError
    end
    """
    with start(text) as worker:
        worker.start()

        error = worker.call(1, "fail")["error"]

        assert ("NotImplementedError", "NotImplementedError") == (error["type"], error["message"])
        assert {"type": "KeyError", "message": "deep \\xff"} == error["cause"]
        assert "inner'" in error["traceback"]
        assert "snakepit_bridge.rb" not in error["traceback"]


ESCAPES = {
    "each": (rb'"\"\\\/\b\f\n\r\t\u0000\u001f\u0041\u00e9"', '"\\/\b\f\n\r\t\0\x1fA\u00e9'),
    "pairs": (rb'"\ud83d\ude00\uD83D\uDE00\\\ud83d\ude00"', "\U0001f600\U0001f600\\\U0001f600"),
    "runs": (rb'"\\\\\\\"\\ud800\\"', '\\\\\\"\\ud800\\'),
    "slashes": (rb'"http://a/*b*/\"//c\\"', 'http://a/*b*/"//c\\'),
    "dense": (rb'"%b"' % (rb"\"\n\\" * 50_000), '"\n\\' * 50_000),
}
BAD_ESCAPES = {
    "letter": rb'"\x"',
    "letter after a pair": rb'"\\\x"',
    "digits": rb'"\u12"',
    "high": rb'"\ud83d"',
    "low": rb'"\ude00"',
    "low after low": rb'"\ud83d\ude00\ude00"',
    "low after no high": rb'"\\ud83d\ude00"',
    "outside": rb"\u0031",
    "comment": rb'"\"" // "',
    "comment in front": rb'/* " */ "\\"',
}


@pytest.mark.parametrize("case", ESCAPES)
def test_escapes_are_read_exactly(case: str, ruby: Bridge) -> None:
    """Whatever stands beside them, and however many they are."""
    sent, text = ESCAPES[case]
    with start_bridge(ruby) as worker:
        worker.start()
        worker.send_bytes(frame(b'{"id":1,"command":"echo","args":[%b]}' % sent))

        assert [text] == worker.receive()["result"]["echoed"]


@pytest.mark.parametrize("case", BAD_ESCAPES)
def test_escapes_that_are_no_json_are_refused(case: str, ruby: Bridge) -> None:
    """The json library would read them."""
    with start_bridge(ruby) as worker:
        worker.start()
        worker.send_bytes(frame(b'{"id":1,"command":"echo","args":[%b]}' % BAD_ESCAPES[case]))

        assert "BadFrame" == worker.receive()["error"]["type"]


THREADS = """
GATE = Queue.new
SEEN = Queue.new
ASKED = Queue.new
# Of no request: it was there before any.
Thread.new { loop { ASKED.pop; SEEN << [context.session_id, context.worker_id] } }

def see
  SEEN << yield
rescue ThreadError => e
  SEEN << e.message
end

command('within') do
  inner = Thread.new { Thread.new { Fiber.new { context.state[:thread] = context.session_id }.resume }.join }
  context.state[:fiber] = Fiber.new { context.session_id }.resume
  context.state[:each] = Enumerator.new { |found| found << context.session_id }.next
  inner.join
  nil
end
command('returned') { Thread.new { context.session_id } }
command('late') { Thread.new { GATE.pop; see { context.state[:leak] = context.session_id } }; nil }
command('late with it') { mine = context; Thread.new { GATE.pop; see { mine.state[:own] = mine.session_id } }; nil }
command('open') { GATE << 1; SEEN.pop }
command('ask') { ASKED << 1; SEEN.pop }
command('state') { context.state }
"""


def test_threads_of_a_request_have_its_context_and_no_other(start: Callable[[str], Worker]) -> None:
    """While it runs, however deep; a thread that outlives it has no context but the one that it was given."""
    with start(THREADS) as worker:
        worker.start()

        def call(command: str, session: str) -> Any:
            return worker.call(1, command, session=session)["result"]

        for session in ("A", "B"):
            assert call("within", session) is None
            assert {"thread": session, "fiber": session, "each": session} == call("state", session)
            assert session == call("returned", session)

        assert [None, "w1"] == call("ask", "A")
        assert [None] * 2 == [call(command, "A") for command in ("late", "late with it")]
        ended, own = sorted((call("open", "B"), call("open", "B")), key=len, reverse=True)
        assert ended.startswith("the request that started this thread has ended; give the thread what `context`")
        assert "A" == own
        assert "own" in call("state", "A")
        assert {"thread": "B", "fiber": "B", "each": "B"} == call("state", "B")


def test_threads_of_an_enclosed_group_have_a_context_without_session(start: Callable[[str], Worker]) -> None:
    """Nothing can be added to such a group, or taken from it; the handler itself misses nothing."""
    text = """
    ThreadGroup::Default.enclose
    command('ids') { [context.session_id, Thread.new { context.session_id }.value] }
    """
    with start(text) as worker:
        worker.start()

        assert ["A", None] == worker.call(1, "ids", session="A")["result"]


ENDS = {"an exit block": ("warn 'the end'", "the end\n"), "an exit block without end": ("Queue.new.pop", "")}


@pytest.mark.parametrize("case", ENDS)
def test_idle_worker_ends_by_itself_when_both_pipes_close(case: str, start: Callable[[str], Worker]) -> None:
    """The thread that watches the pipes gives the main thread time, also if it looks first; but not for ever."""
    block, expected = ENDS[case]
    text = f"""
    WAITS = Queue.new
    # Holds the main thread at the end of the requests until the watching thread has begun to wait for it.
    class Snakepit::Runner
      def sleep(seconds)
        WAITS << 1
        super
      end
    end
    Snakepit.runner.stream.input.define_singleton_method(:readpartial) do |*args|
      super(*args)
    rescue EOFError
      WAITS.pop
      raise
    end
    at_exit {{ {block} }}
    """
    with start(text) as worker:
        worker.start()

        worker.close_replies()
        worker.close_requests()

        assert 0 == worker.wait()
        assert expected == worker.stderr()

"""What only the PHP bridge has: declared types, empty objects, and PHP's own errors at the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import Worker, answers, bridge_of, frame, starter


@pytest.fixture
def start(require_runtime: Callable[[str], str], tmp_path: Path) -> Callable[[str], Worker]:
    """Return a function that starts a worker with the handler file of the given text."""
    require_runtime("php")
    return starter(bridge_of("php"), tmp_path)


START_FAILURES = {
    "exception": ("<?php\nfunction f() {\n  throw new Exception('no');\n}\nf();", "Exception", "no", ["3", "(5): f()"]),
    "on_start": ("<?php\non_start(function () {\n  throw new Exception('no');\n});", "Exception", "no", ["3"]),
    "warning": ("<?php\n\n$x = [];\n$x['k'];", "ErrorException", 'Undefined array key "k"', ["4"]),
    "registered twice": (
        "<?php\ncommand('a', 'strlen');\ncommand('a', 'strlen');",
        "LogicException",
        "command 'a' is registered twice",
        ["3", "(3): command()"],
    ),
}


@pytest.mark.parametrize("case", START_FAILURES)
def test_failed_start_shows_the_lines_of_the_handler_file_alone(
    case: str, start: Callable[[str], Worker], tmp_path: Path
) -> None:
    """Neither the reply nor the line on stderr shows a call of the bridge."""
    text, kind, message, (line, *calls) = START_FAILURES[case]
    path = tmp_path / "handlers.php"
    with start(text) as worker:
        error = worker.start()["error"]

        assert (kind, message) == (error["type"], error["message"])
        expected = [f"{kind}: {message} in {path}:{line}", *(f"#{n} {path}{call}" for n, call in enumerate(calls))]
        assert expected == error["traceback"].splitlines()
        assert 1 == worker.wait()
        assert f"snakepit_bridge: could not start: {error['traceback']}\n" == worker.stderr()


def test_syntax_error_names_its_place_once(start: Callable[[str], Worker], tmp_path: Path) -> None:
    """The message carries file and line, and the traceback does not repeat them."""
    with start("<?php\n\n$x = ;") as worker:
        error = worker.start()["error"]

        assert ("ParseError", f"ParseError: {error['message']}") == (error["type"], error["traceback"])
        assert error["message"].endswith(f" in {tmp_path / 'handlers.php'}:3")


@pytest.mark.parametrize("text", ["command('a', fn () => 1);\n", "<html>?</html>"])
def test_handler_file_without_php_tag_fails_the_start(text: str, start: Callable[[str], Worker]) -> None:
    """PHP would print such a file and start with no command."""
    with start(text) as worker:
        error = worker.start()["error"]

        assert error["message"].endswith("handlers.php has no <?php: PHP would print its text and run nothing")
        assert 1 == worker.wait()


@pytest.mark.parametrize("text", ["", "<?PHP $x = 1;"])
def test_handler_file_without_commands_starts(text: str, start: Callable[[str], Worker]) -> None:
    """As in every language: the built-in commands are there."""
    with start(text) as worker:
        assert {"ping", "echo", "compute", "info"} == set(worker.start()["result"]["protocol"]["commands"])


TYPES = """<?php
class Inner { function take(int $n) { return $n; } }
command('greet', fn (string $name, int|float $times = 1, $ctx = null) => $name);
command('numbers', fn (int ...$more) => $more);
command('length', 'strlen');
command('method', fn ($value) => (new Inner)->take($value));
command('callback', fn ($value) => array_map(fn (int $n) => $n, [$value]));
command('thrown', function ($value) {
    throw new TypeError('f(): Argument #1 ($value) must be of type int, string given');
});
command('returned', fn ($value): int => $value);
"""


def test_declared_types_are_checked_as_php_does(start: Callable[[str], Worker]) -> None:
    """A parameter of the command is named; what fails deeper is the handler's own error."""
    with start(TYPES) as worker:
        worker.start()

        assert [
            "greet: 'name' must be of type string, int given",
            "greet: 'times' must be of type int|float, string given",
            "greet: missing 'name'; unexpected 'nam', 'tims'; signature: greet(string $name, int|float $times = ...)",
            "numbers: 'more' must be of type int, string given",
            "length: 'string' must be of type string, int given",
        ] == answers(
            worker,
            [
                ("greet", {"name": 5}),
                ("greet", ["x", "2"]),
                ("greet", {"tims": 2, "nam": "x"}),
                ("numbers", [1, "x"]),
                ("length", 5),
            ],
        )
        for command in ("method", "callback", "thrown", "returned"):
            error = worker.call(9, command, {"value": "x"})["error"]
            assert ("handler_error", "TypeError") == (error["code"], error["type"])


def test_variadic_parameter_takes_what_is_left(start: Callable[[str], Worker]) -> None:
    """Of an array and of an object, with the context in its own place."""
    text = "<?php command('f', fn ($a, $ctx, ...$more) => [$a, $ctx->workerId, $more]);"
    with start(text) as worker:
        worker.start()

        calls: list[tuple[str, Any]] = [("f", [1, 2, 3]), ("f", [1]), ("f", {"q": 2, "a": 1})]
        assert [[1, "w1", [2, 3]], [1, "w1", []], [1, "w1", {"q": 2}]] == answers(worker, calls)


def test_empty_object_is_sent_back_as_it_came(start: Callable[[str], Worker]) -> None:
    """It is read like an array, also in the place of the args; a parameter declared as an array gets an array."""
    text = """<?php
    command('same', fn ($args) => $args);
    command('value', fn ($value) => $value);
    command('read', fn ($args) => [$args['o']['k'] ?? 'none', count($args['o']), [...$args['o']], isset($args['k'])]);
    command('add', function ($args) { $args['o']['k'] = 1; return $args; });
    command('array', fn (array $args) => $args);
    command('options', fn (string $name = '', ?array $options = null) => $options);
    command('made', fn ($ctx) => [new ArrayObject(), new ArrayObject(['a' => new ArrayObject([1])]), (object) [], []]);
    command('log', function (array $args, $ctx) { $ctx->log('m', 'info', $args['fields']); });
    """
    nested = {"a": {}, "b": [], "c": [{}, {"d": {}}], "0": {"0": {"0": {}}}}
    with start(text) as worker:
        worker.start()

        assert [
            {},
            nested,
            {},
            {"0": {}},
            ["none", 0, [], False],
            {"o": {"k": 1}},
            [],
            {"o": {}},
            [],
            [],
            [{}, {"a": {"0": 1}}, {}, []],
        ] == answers(
            worker,
            [
                ("same", {}),
                ("same", nested),
                ("value", {"value": {}}),
                ("value", {"value": {"0": {}}}),
                ("read", {"o": {}}),
                ("add", {"o": {}}),
                ("array", {}),
                ("array", {"o": {}}),
                ("options", {"options": {}}),
                ("options", ["x", {}]),
                ("made", None),
            ],
        )
        worker.send({"id": 20, "command": "log", "args": {"fields": {}}})
        assert ["log", {}] == [(message := worker.receive())["type"], message["fields"]]


def test_traceback_of_a_handler_is_its_own(start: Callable[[str], Worker], tmp_path: Path) -> None:
    """With the calls inside PHP, without those of the bridge; closures belong to no class of it."""
    text = """<?php
function inner($x) { throw new DomainException('no'); }
command('f', fn () => array_map(fn ($x) => inner($x), [1]));
command('w', fn () => fopen('/nowhere/at-all', 'r'));
command('scope', fn () => isset(self::$instance));
"""
    path = tmp_path / "handlers.php"
    with start(text) as worker:
        worker.start()

        thrown = worker.call(1, "f")["error"]["traceback"].splitlines()
        warned = worker.call(2, "w")["error"]["traceback"].splitlines()

        assert [f"DomainException: no in {path}:2", f"#0 {path}(3): inner()"] == thrown[:2]
        assert thrown[2].startswith("#1 [internal function]: {closure")
        assert [f"#2 {path}(3): array_map()"] == thrown[3:]
        assert [f"#0 {path}(4): fopen()"] == warned[1:]
        assert "Error" == worker.call(3, "scope")["error"]["type"]


def test_batch_with_a_claim_is_answered_item_by_item(start: Callable[[str], Worker]) -> None:
    """An integer that PHP would round refuses its own item; each item takes its own byte of the claims."""
    with start("<?php command('id', fn ($value) => $value);") as worker:
        worker.start()
        worker.claim(3)
        worker.send({"id": 1, "command": "id", "batch": [[1], [2**70], [3]], "claim": True})

        replies = [worker.receive() for _ in range(3)]

        assert [(0, True), (1, False), (2, True)] == [(reply["index"], reply["success"]) for reply in replies]
        worker.send({"id": 2, "command": "id", "args": [1], "claim": True})
        assert {"type": "recalled", "id": 2} == worker.receive()


def test_time_limit_of_a_call_ends_with_it(start: Callable[[str], Worker]) -> None:
    """That of the handler file is for each call."""
    text = """<?php
    set_time_limit(%d);
    command('limited', function (bool $fails) { set_time_limit(1); return $fails ? throw new Exception('no') : 1; });
    command('limit', fn () => ini_get('max_execution_time'));
    """
    for limit in (0, 300):
        with start(text % limit) as worker:
            worker.start()

            for fails in (False, True):
                assert [str(limit)] == answers(worker, [("limited", {"fails": fails}), ("limit", None)])[1:]


ERROR_HANDLERS = {
    "keeps it": "return true;",
    "throws": "throw new ErrorException($message, 0, $level, $file, $line);",
}


@pytest.mark.parametrize("case", ERROR_HANDLERS)
def test_worker_ends_when_nobody_reads_its_replies(case: str, start: Callable[[str], Worker]) -> None:
    """Also where an error handler of user code hears of it in the place of the bridge."""
    text = f"""<?php
    command('replace', function () {{
        set_error_handler(function ($level, $message, $file, $line) {{ {ERROR_HANDLERS[case]} }});
    }});
    """
    with start(text) as worker:
        worker.start()
        worker.call(1, "replace")

        worker.close_replies()
        worker.send({"id": 2, "command": "replace", "args": {}})

        assert 0 == worker.wait()


def test_long_texts_are_searched_to_their_end(require_runtime: Callable[[str], str], tmp_path: Path) -> None:
    """Whatever PCRE's limit without its JIT, which stays as it is for the patterns of user code."""
    require_runtime("php")
    bridge = bridge_of("php")
    options = ("-d", "pcre.jit=0", "-d", "pcre.backtrack_limit=500")
    php = dataclasses.replace(bridge, argv=(bridge.argv[0], *options, *bridge.argv[1:]))
    with starter(php, tmp_path)("<?php command('limit', fn () => ini_get('pcre.backtrack_limit'));") as worker:
        worker.start()
        replies = []
        for value in (b"{}", b"12345678901234567890123", b"1e400"):
            args = b'{"text":"%b","n":%b}' % (rb"\n" * 5_000, value)
            worker.send_bytes(frame(b'{"id":1,"command":"echo","args":%b}' % args))
            replies.append(worker.receive())

        assert {} == replies[0]["result"]["echoed"]["n"]
        assert replies[1]["error"]["message"].startswith("args/n: integer 12345678901234567890123 is beyond 2^63-1")
        assert replies[2]["error"]["message"].startswith("bad frame: number 1e400 is out of range")
        assert ["500"] == answers(worker, [("limit", None)])

"""What only the Java bridge does: reading ahead behind slow handlers, compiling by itself, exceptions of any kind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import Bridge, Worker, bridge_of, dumps, start_bridge
from conformance.schemas import LISTS, NOT_BYTES, disagreements

from snakepit import JavaAdapter
from snakepit._conformance.finding import Finding

SLOW_MS = 250  # more than the bridge's own 100 ms: the watcher then waits for the pipe, not the main thread

TYPES = [
    *("boolean", "Boolean", "String", "byte", "Byte", "short", "Short", "int", "Integer", "long", "Long"),
    *("float", "Float", "double", "Double", "BigInteger", "BigDecimal", "Number", "Object"),
    *("byte[]", "byte[][]", "int[]", "Integer[]", "String[][]", "Object[]", "List<Byte>[]", "String..."),
    *("List", "List<String>", "List<?>", "List<? extends Number>", "List<Object>", "List<byte[]>", "List<List<Byte>>"),
    *("Map", "Map<String, Byte>", "Map<String, Object>", "Map<String, List<Integer>>"),
    *("Optional", "Optional<Byte>", "Optional<int[]>", "Optional<Optional<String>>", "Optional<byte[]>"),
]

APP = """
package com.acme.snakepit.app;

import java.util.*;
import java.util.concurrent.*;
import snakepit.SnakepitBridge.*;

public class App {
    static final CountDownLatch NEVER = new CountDownLatch(1);
    static final Thread OWN = new Thread(() -> {
        try { NEVER.await(); } catch (InterruptedException left) { return; }
    });

    public static class Deep extends RuntimeException {
        public final Object data;
        Deep(Object data) { super("deep"); this.data = data; }
    }
    public static class Once extends RuntimeException {
        int asked;
        public Object getData() {
            return new AbstractMap<String, Object>() {
                @Override public Set<Map.Entry<String, Object>> entrySet() {
                    if (asked++ > 0) throw new IllegalStateException("asked again");
                    return Map.<String, Object>of("a", 1).entrySet();
                }
            };
        }
    }
    public static class NoCause extends RuntimeException {
        @Override public Throwable getCause() { throw new LinkageError("no cause"); }
    }
    public static class NoMessage extends RuntimeException {
        @Override public String getMessage() { throw new LinkageError("no message"); }
    }

    @OnStart void begin() { OWN.start(); }
    @Command int fill(int size, Context ctx) {
        List<Object> all = new ArrayList<>();
        ctx.workerState().put("all", all);
        try { while (true) all.add(new byte[size]); } catch (OutOfMemoryError full) { return 1; }
    }
    @Command void deep(Object value) { throw new Deep(value); }
    @Command void once() { throw new Once(); }
    @Command void no_cause() { throw new NoCause(); }
    @Command void no_message() { throw new NoMessage(); }
    @Command int size(String text) { return text.length(); }

    @Command void trace() {
        try { inner(); }
        catch (IllegalStateException error) { throw new IllegalArgumentException("outer", error); }
    }
    void inner() { throw new IllegalStateException("inner"); }
    @Command void reflected() throws Exception {
        try { App.class.getDeclaredMethod("target").invoke(null); }
        catch (java.lang.reflect.InvocationTargetException error) { throw (RuntimeException) error.getCause(); }
    }
    static void target() { Objects.requireNonNull(null, "deepest"); }

    @Command int sum(Map<String, Integer> args) {
        int sum = 0;
        for (int value : args.values()) sum += value;
        return sum;
    }
}
"""


@pytest.fixture
def java(require_runtime: Callable[[str], str]) -> Bridge:
    """Return the Java bridge."""
    require_runtime("java")
    return bridge_of("java")


def test_request_behind_a_slow_one_is_served(java: Bridge) -> None:
    """Whether it comes while the slow handler runs or after it, and however long it is."""
    large = "x" * 200_000
    with start_bridge(java) as worker:
        worker.start()

        for request_id in (1, 4):
            assert SLOW_MS == worker.call(request_id, "stall", {"ms": SLOW_MS})["result"]
            assert large == worker.call(request_id + 1, "identity", {"value": large})["result"]
            assert 1 == worker.call(request_id + 2, "identity", {"value": 1})["result"]
        worker.send({"id": 7, "command": "stall", "args": {"ms": SLOW_MS}})
        for request_id in (8, 9, 10):
            worker.send({"id": request_id, "command": "identity", "args": {"value": large}})

        assert [7, 8, 9, 10] == [worker.receive()["id"] for _ in range(4)]
        worker.close_requests()
        assert 0 == worker.wait()


def test_attachment_behind_a_slow_request_is_whole(java: Bridge) -> None:
    """The bytes are put together from what was read ahead and what was not."""
    data = bytes(range(256)) * 1000
    entry = {"path": "/args/data", "kind": "bytes", "len": len(data)}
    with start_bridge(java) as worker:
        worker.start()
        worker.send({"id": 1, "command": "stall", "args": {"ms": SLOW_MS}})
        worker.send({"id": 2, "command": "reverse", "args": {"data": None}, "attachments": [entry]}, data)

        assert SLOW_MS == worker.receive()["result"]
        assert [data[::-1]] == worker.receive_attachments(worker.receive())


def start_with(java: Bridge, folder: Path, source: str) -> tuple[dict[str, object], int]:
    """Return the answer to the first ping of a worker with a source file that it compiles itself, and its status."""
    path = folder / "Own.java"
    path.write_text(source)
    with Worker([*java.argv, "--handlers", str(path)]) as worker:
        reply = worker.start()
        worker.close_requests()
        return reply, worker.wait()


def test_source_is_compiled_by_the_worker_itself(java: Bridge, tmp_path: Path) -> None:
    """A bridge that was started by hand needs no step before."""
    source = """
package own;

import java.util.Map;
import snakepit.SnakepitBridge.*;

public class Own {
    @Command(value = "shout", doc = "Say it loud.")
    static String shout(String text, Context ctx) {
        return text.toUpperCase();
    }

    @Command
    Object all(Map<String, Object> args) {
        return args;
    }
}
"""
    reply, status = start_with(java, tmp_path, source)

    commands = reply["result"]["protocol"]["commands"]  # type: ignore[index]
    schema = {
        "type": "object",
        "properties": {"text": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["text"],
        "additionalProperties": False,
    }
    assert {"params": ["text"], "doc": "Say it loud.", "schema": schema} == commands["shout"]
    assert {"params": [], "doc": ""} == commands["all"]
    assert 0 == status


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@Command int x( { return 1; }", "Own.java:2: error: "),
        ('@Command("a") int x() { return 1; } @Command("a") int y() { return 1; }', "command 'a' is defined twice: "),
        ("@Command int ping() { return 1; }", "command 'ping' belongs to the bridge"),
        ("@Command int x(Thread t) { return 1; }", "Own.x: parameter 't' is java.lang.Thread, which no JSON value"),
        ("int x() { return 1; }", "has no method with @Command"),
        ("Own(int a) {} @Command int x() { return 1; }", "Own needs a constructor without parameters"),
    ],
)
def test_handlers_that_cannot_be(java: Bridge, tmp_path: Path, body: str, message: str) -> None:
    """The first ping is answered with the reason, javac's own words where they are javac's, and the status is 1."""
    source = f"import snakepit.SnakepitBridge.*;\nclass Own {{ {body} }}\n"
    reply, status = start_with(java, tmp_path, source)

    error = reply["error"]
    assert isinstance(error, dict)
    assert "handler_error" == error["code"]
    assert message in error["message"]
    assert 1 == status


@pytest.fixture(scope="module")
def types(require_runtime: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command line of a worker with a command for each type."""
    require_runtime("java")
    imports = "import java.math.*; import java.util.*; import snakepit.SnakepitBridge.*;"
    methods = [
        f'@Command(value = "{name}", doc = "Take it.") void take{number}({name} v) {{}}'
        for number, name in enumerate(TYPES)
    ]
    path = tmp_path_factory.mktemp("types") / "Types.java"
    path.write_text("\n".join([imports, "class Types {", *methods, "}"]))
    return list(JavaAdapter(path).argv())


def test_schemas_say_what_is_accepted(types: list[str]) -> None:
    """For every type and many values the schema and the bridge agree, but where JSON Schema has no word for it."""
    with Worker(types) as worker:
        commands = worker.start()["result"]["protocol"]["commands"]
        schemas = {name: told["schema"] for name, told in commands.items() if "schema" in told}

        stricter, looser = disagreements(worker, schemas)

        assert {*TYPES} == schemas.keys()
        assert [] == stricter
        for name, largest in {"float": 2**24, "Float": 2**24, "double": 2**53, "Double": 2**53}.items():
            assert all(abs(int(shown)) > largest for shown in looser.pop(name))
        no_bytes = [shown for shown in LISTS if shown not in ("[]", "[None]", "[b'bytes']")]
        assert {
            "BigInteger": ["1e+39"],
            "byte[]": NOT_BYTES,
            "Optional<byte[]>": NOT_BYTES,
            "byte[][]": no_bytes,
            "List<byte[]>": no_bytes,
        } == looser


def test_schemas_of_java_types(types: list[str]) -> None:
    """Ranges, generics; null where it is no mismatch; an Optional is not required."""
    with Worker(types) as worker:
        commands = worker.start()["result"]["protocol"]["commands"]

    of = {name: commands[name]["schema"]["properties"]["v"] for name in TYPES}
    null = {"type": "null"}
    byte = {"type": "integer", "minimum": -128, "maximum": 127}
    assert byte == of["byte"]
    assert {"anyOf": [byte, null]} == of["Byte"] == of["Optional<Byte>"]
    assert {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1} == of["long"]
    assert {"anyOf": [{"type": "array", "items": of["int"]}, null]} == of["int[]"]
    assert {"anyOf": [{"type": "object", "additionalProperties": of["Byte"]}, null]} == of["Map<String, Byte>"]
    assert {} == of["Object"] == of["Optional"]
    assert {"description": "bytes"} == of["byte[]"] == of["Optional<byte[]>"]
    optional = {name for name in TYPES if not commands[name]["schema"]["required"]}
    assert {name for name in TYPES if name.startswith("Optional")} == optional
    assert "schema" not in commands["ping"]


def test_descriptions_that_do_not_fit_are_left_out(types: list[str]) -> None:
    """A worker starts also where the handshake's limit is small."""
    with Worker(types) as worker:
        commands = worker.start(max_frame=4096)["result"]["protocol"]["commands"]

        assert {"params": ["v"], "doc": ""} == commands["int"]
        assert worker.call(1, "int", {"v": 1})["success"]


@pytest.fixture(scope="module")
def app(require_runtime: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command line of a worker in a small heap, with a thread of its own that never ends."""
    require_runtime("java")
    path = tmp_path_factory.mktemp("app") / "App.java"
    path.write_text(APP)
    return list(JavaAdapter(path, java_options=["-Xmx24m"]).argv())


@pytest.fixture
def own(app: list[str]) -> Iterator[Worker]:
    """Return such a worker, started."""
    with Worker(app) as worker:
        worker.start()
        yield worker


def nest(levels: int) -> list[Any]:
    """Return a list of so many levels."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_data_as_deep_as_a_report_can_hold(own: Worker) -> None:
    """The report takes one of the 256 levels; deeper data is left out, and the worker lives."""
    held = own.call(1, "deep", {"value": nest(255)})["error"]
    deeper = own.call(2, "deep", {"value": nest(256)})["error"]

    assert ("Deep", "deep", nest(255)) == (held["type"], held["message"], held["data"])
    assert ("Deep", "deep") == (deeper["type"], deeper["message"])
    assert "data" not in deeper
    assert 3 == own.call(3, "size", {"text": "abc"})["result"]


def test_exceptions_that_cannot_be_described(own: Worker) -> None:
    """What raises in its own methods is a report without what these would have told; data is read once."""
    once = own.call(1, "once")["error"]
    no_cause = own.call(2, "no_cause")["error"]
    no_message = own.call(3, "no_message")["error"]

    assert {"a": 1} == once["data"]
    assert ("handler_error", "NoCause") == (no_cause["code"], no_cause["type"])
    assert "<getMessage() of NoMessage raised LinkageError>" == no_message["message"]
    assert 3 == own.call(4, "size", {"text": "abc"})["result"]


def test_tracebacks_show_the_frames_of_the_users_code(own: Worker) -> None:
    """Those of a package with the bridge's name in its own too, and reflection of the user's; none of the bridge."""
    shown = {name: own.call(1, name)["error"]["traceback"].splitlines() for name in ("trace", "reflected")}

    place = "\tat com.acme.snakepit.app.App."
    lines = {name: [line.split("(")[0] for line in text] for name, text in shown.items()}
    assert [
        "java.lang.IllegalArgumentException: outer",
        f"{place}trace",
        "Caused by: java.lang.IllegalStateException: inner",
        f"{place}inner",
        f"{place}trace",
    ] == lines["trace"][:5]
    assert f"{place}target" in lines["reflected"]
    assert f"{place}reflected" == lines["reflected"][-1]


def test_map_of_a_certain_type_is_a_parameter_like_others(own: Worker) -> None:
    """Only a `Map<String, Object>` called `args` takes everything; what does not fit is `InvalidArguments`."""
    bound = own.call(1, "sum", {"args": {"a": 1, "b": 2}})
    wrong = own.call(2, "sum", {"args": {"a": "x"}})["error"]
    loose = own.call(3, "sum", {"a": 1})["error"]

    assert 3 == bound["result"]
    assert {"InvalidArguments"} == {wrong["type"], loose["type"]}
    assert "'args' must be Map<String, Integer>" in wrong["message"]
    assert "missing 'args'" in loose["message"]


def test_request_that_the_heap_cannot_hold_ends_the_worker(own: Worker) -> None:
    """Outside a handler nobody can be answered: the status says it, whatever threads the handlers have started."""
    text = dumps({"id": 1, "command": "size", "args": {"text": "x" * (20 << 20)}})
    with contextlib.suppress(Finding):
        own.send_frame(text)

    assert 70 == own.wait()
    assert "snakepit_bridge: the bridge cannot go on: OutOfMemoryError: " in own.stderr()


def test_heap_without_room_is_no_silence(own: Worker) -> None:
    """Whether or not there is enough left for the answer and for words on stderr, the worker answers or ends."""
    with contextlib.suppress(Finding):
        own.call(1, "fill", {"size": 1000})
    own.close_requests()

    assert own.wait() in {0, 70}

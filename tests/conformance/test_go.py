"""What only a Go worker does: panics, a command registered twice, values that Go has and JSON has not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import (
    BRIDGES_DIR,
    BUILD_TIMEOUT_S,
    Bridge,
    Worker,
    bridge_of,
    prepare,
    start_bridge,
)
from conformance.schemas import INEXACT, INEXACT_32, LISTS, NOT_BYTES, disagreements

TYPES = """
package main

import (
	"encoding/json"
	"fmt"
	"math/big"
	"time"

	"worker/snakepit"
)

type Point struct {
	X int8 `json:"x"`
	Y *float64
	Tag string `json:"tag,omitempty"`
	Hidden chan int `json:"-"`
	hidden int
}
type Labelled struct {
	Point
	Label string `json:"label"`
}
type Node struct {
	Value int `json:"value"`
	Next *Node `json:"next"`
	Others map[string][]Node `json:"others,omitempty"`
}
type Pair[T any] struct{ A, B T }
type Wide[T any] struct { V Pair[Pair[Pair[T]]] }
type Seconds int64
type Text string
type Letter struct{}

func (*Letter) UnmarshalJSON(text []byte) error {
	if string(text) == `"text"` {
		return nil
	}
	return fmt.Errorf("not text")
}

// one registers a command with a single parameter v of a type.
func one[T any](name string) {
	snakepit.Command(name, func(struct { V T `json:"v"` }, *snakepit.Context) (any, error) { return nil, nil })
}

// whole registers a command whose args are of a type.
func whole[T any](name string) {
	snakepit.Command(name, func(T, *snakepit.Context) (any, error) { return nil, nil })
}

func main() {
	one[bool]("bool")
	one[string]("string")
	one[Text]("Text")
	one[int]("int")
	one[int8]("int8")
	one[int16]("int16")
	one[int32]("int32")
	one[Seconds]("Seconds")
	one[time.Duration]("Duration")
	one[uint8]("uint8")
	one[uint16]("uint16")
	one[uint32]("uint32")
	one[uint64]("uint64")
	one[float64]("float64")
	one[float32]("float32")
	one[big.Int]("big.Int")
	one[*big.Int]("*big.Int")
	one[json.Number]("json.Number")
	one[json.RawMessage]("json.RawMessage")
	one[time.Time]("Time")
	one[Letter]("Letter")
	one[any]("any")
	one[fmt.Stringer]("Stringer")
	one[chan int]("chan")
	one[*string]("*string")
	one[**int8]("**int8")
	one[[]byte]("[]byte")
	one[[][]byte]("[][]byte")
	one[[]string]("[]string")
	one[*[]*int8]("*[]*int8")
	one[[]any]("[]any")
	one[[2]int8]("[2]int8")
	one[[3]byte]("[3]byte")
	one[map[string]int8]("map[string]int8")
	one[map[string]any]("map[string]any")
	one[map[Text]*string]("map[Text]*string")
	one[map[int]string]("map[int]string")
	one[Point]("Point")
	one[*Point]("*Point")
	one[[]Labelled]("[]Labelled")
	one[Node]("Node")
	whole[Wide[Wide[Wide[Wide[int]]]]]("wide")
	whole[Point]("whole Point")
	whole[*Labelled]("whole *Labelled")
	whole[struct{}]("whole nothing")
	whole[map[string]int8]("whole map[string]int8")
	whole[any]("whole any")
	whole[[]int]("whole []int")
	whole[big.Int]("whole big.Int")
	snakepit.Doc("int", "Take an integer.")
	snakepit.Run()
}
"""

STRUCTS = """
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"time"

	"worker/snakepit"
)

type Base struct {
	ID     int    `json:"id"`
	Secret string `json:"secret"`
}
type Other struct {
	ID    int `json:"id"`
	Extra int
}
type Named struct{ Name string }
type lower struct{ Low int }
type Number int
type number int
type Pair[T any] struct{ A, B T }
type Left struct{ Base; L int }
type Right struct{ Base; R int }
type Loop struct {
	*Loop
	N int
}
type Word struct { Plain string; ByTag string `json:"Extra"` }
type Late struct{ Word }

type Kept struct { Base; X int }
type Tagged struct { Base `json:"base"`; X int }
type Dashed struct { Base `json:"-"`; X int }
type CalledDash struct { Base `json:"-,"`; X int }
type OuterWins struct { Base; Own string `json:"id"` }
type OuterWinsFirst struct { Own string `json:"secret"`; Base }
type Pointer struct { *Base; X int }
type NilPointer struct { *Base; X int }
type Unexported struct { lower; X int }
type UnexportedTagged struct { lower `json:"low"`; X int }
type UnexportedPointer struct { *lower `json:"low"`; X int }
type Clash struct { Base; Other; X int }
type ClashBelow struct { Base; Other; ID string `json:"id"` }
type TagWins struct { Other; Word }
type DepthWins struct { Late; Other }
type Diamond struct { Left; Right }
type NotStructs struct { Number; number; fmt.Stringer }
type Generic struct { Pair[int]; X int }
type OddNames struct { A int `json:"a'b"`; B int `json:"b-c/d"`; C int `json:",omitempty"`; d int }
type Renamed struct { Named `json:",omitempty"`; N int `json:"Name"` }
type Dates struct { When *time.Time `json:"when"`; N int }
type Empty struct { Base `json:"base,omitempty"`; P *Base `json:"p,omitempty"`; N int `json:"n,omitempty"` }

var examples = map[string]any{}

// both is a value as this bridge and as encoding/json sees it.
func both(value any) any {
	text, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	return []any{value, string(text)}
}

// add has a value of a type as an example, and the type as args.
func add[T any](value T) {
	name := fmt.Sprintf("%T", value)
	examples[name] = both(value)
	snakepit.Command(name, func(args T, _ *snakepit.Context) (any, error) { return both(args), nil })
}

type deep struct{ data any }

func (d deep) Error() string { return "deep" }
func (d deep) Data() any     { return d.data }

type marshals func()

func (m marshals) MarshalJSON() ([]byte, error) {
	m()
	return nil, nil
}

type Kind struct {
	Kind string `json:"kind"`
}
type Level struct {
	V any `json:"v"`
}

var endings = map[string]func(){
	"return":     func() {},
	"panic(nil)": func() { panic(nil) },
	"panic":      func() { panic("text") },
	"Goexit":     runtime.Goexit,
}

func main() {
	base := Base{7, "s"}
	add(Kept{base, 1})
	add(Tagged{base, 1})
	add(Dashed{base, 1})
	add(CalledDash{base, 1})
	add(OuterWins{base, "own"})
	add(OuterWinsFirst{"own", base})
	add(Pointer{&base, 1})
	add(NilPointer{nil, 1})
	add(Unexported{lower{2}, 1})
	add(UnexportedTagged{lower{2}, 1})
	add(UnexportedPointer{&lower{2}, 1})
	add(Clash{base, Other{8, 9}, 1})
	add(ClashBelow{base, Other{8, 9}, "own"})
	add(TagWins{Other{8, 9}, Word{"p", "t"}})
	add(DepthWins{Late{Word{"p", "t"}}, Other{8, 9}})
	add(Diamond{Left{base, 1}, Right{base, 2}})
	add(NotStructs{3, 4, nil})
	add(Generic{Pair[int]{1, 2}, 3})
	add(OddNames{1, 2, 3, 4})
	add(Loop{&Loop{nil, 1}, 2})
	add(Renamed{Named{"n"}, 1})
	add(Dates{nil, 1})
	add(Empty{})

	late := make(chan string)
	logged := make(chan bool)
	snakepit.OnStart(func(args Kind, ctx *snakepit.Context) error {
		go func() {
			ctx.Log(<-late, "info", nil)
			logged <- true
		}()
		endings[args.Kind]()
		return nil
	})
	snakepit.Command("log_late", func(any, *snakepit.Context) (bool, error) {
		late <- "of the start"
		return <-logged, nil
	})
	snakepit.Command("examples", func(any, *snakepit.Context) (any, error) { return examples, nil })
	snakepit.Command("deep", func(args Level, _ *snakepit.Context) (any, error) { return nil, deep{args.V} })
	snakepit.Command("end", func(args Kind, ctx *snakepit.Context) (any, error) {
		count, _ := ctx.WorkerState["count"].(int)
		ctx.WorkerState["count"] = count + 1
		endings[args.Kind]()
		return count, nil
	})
	snakepit.Command("marshal", func(args Kind, _ *snakepit.Context) (any, error) {
		return marshals(endings[args.Kind]), nil
	})
	defer os.Exit(9) // what main has deferred is for a main that ends
	snakepit.Run()
}
"""

ENDINGS = [
    *(("end", "panic(nil)"), ("end", "Goexit")),
    *(("marshal", "panic(nil)"), ("marshal", "Goexit"), ("marshal", "panic")),
]


@pytest.fixture
def go(require_runtime: Callable[[str], str]) -> Bridge:
    """Return the Go bridge, built."""
    require_runtime("go")
    bridge = bridge_of("go")
    prepare(bridge)
    return bridge


def build(folder: Path, code: str) -> Path:
    """Build a program with the bridge copied into its module."""
    (folder / "main.go").write_text(code)
    (folder / "go.mod").write_text("module worker\n\ngo 1.19\n")
    (folder / "snakepit").mkdir()
    shutil.copy(BRIDGES_DIR / "go" / "snakepit_bridge.go", folder / "snakepit")
    env = {**os.environ, "GOPROXY": "off"}
    subprocess.run(["go", "build", "-o", "worker", "."], cwd=folder, env=env, check=True, timeout=BUILD_TIMEOUT_S)
    return folder / "worker"


@pytest.fixture(scope="module")
def types(require_runtime: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program with a command for each type."""
    require_runtime("go")
    return build(tmp_path_factory.mktemp("types"), TYPES)


@pytest.fixture(scope="module")
def structs(require_runtime: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program with structs of all kinds, and functions that do not return."""
    require_runtime("go")
    return build(tmp_path_factory.mktemp("structs"), STRUCTS)


@pytest.fixture
def own(structs: Path) -> Iterator[Worker]:
    """Return a started worker of that program."""
    with Worker([str(structs)]) as started:
        start_with(started, "return")
        yield started


def start_with(worker: Worker, kind: str) -> Any:
    """Return the answer to the first ping of a worker whose start ends like this."""
    handshake = {"versions": [1], "max_frame": 1 << 20, "capabilities": ["errors", "batch", "log"]}
    args = {"worker_id": "w1", "initialization": True, "protocol": handshake, "start_args": {"kind": kind}}
    return worker.call(0, "ping", args)


@pytest.fixture
def worker(go: Bridge) -> Iterator[Worker]:
    """Return a started worker."""
    with start_bridge(go) as started:
        started.start()
        yield started


def test_panic_is_a_reply_with_its_stack(worker: Worker) -> None:
    """Text and a run-time error alike; the traceback begins in the handler, and the worker lives."""
    text = worker.call(1, "panic_text")["error"]
    index = worker.call(2, "panic_index", {"size": 3})["error"]

    assert ("handler_error", "panic", "just text") == (text["code"], text["type"], text["message"])
    assert ("handler_error", "boundsError") == (index["code"], index["type"])
    assert "index out of range [3] with length 0" in index["message"]
    for error in (text, index):
        lines = error["traceback"].splitlines()
        assert lines[0].startswith("panic: ")
        assert "main.go:" in lines[3]
    assert "alive" == worker.call(3, "identity", {"value": "alive"})["result"]


def test_command_registered_twice_fails_the_start(go: Bridge) -> None:
    """The first ping is answered with both places, and the exit status is 1."""
    with Worker(go.argv, env={"REGISTER_TWICE": "1"}) as worker:
        reply = worker.start()

        assert "handler_error" == reply["error"]["code"]
        message = reply["error"]["message"]
        assert "command 'again' is registered twice, first at " in message
        assert 2 == message.count("main.go:")
        assert 1 == worker.wait()


def test_values_without_a_place_in_json_are_refused(worker: Worker) -> None:
    """Each is named with its path."""
    kinds = ("channel", "date", "bad UTF-8", "integer keys")

    messages = {kind: worker.call(1, "unencodable", {"kind": kind})["error"]["message"] for kind in kinds}

    assert {
        "channel": "result/a/0: chan int is not a JSON type",
        "date": "result/a/0: time.Time is not a JSON type; convert it, for example with Format or Seconds",
        "bad UTF-8": "result/a/0: text with the byte 0xff at index 1 is not UTF-8; return []byte for bytes",
        "integer keys": "result/a/0: map[int]int is not a JSON type; its keys are no strings",
    } == messages


def test_floats_stay_floats_and_integers_exact(worker: Worker) -> None:
    """Go has both kinds of numbers, and the host sees the difference."""
    values = [1.0, -0.0, 1e21, 5e-324, 2**63 - 1, -(2**63), 2**200]

    echoed = worker.call(1, "identity", {"value": values})["result"]

    assert list(map(repr, values)) == list(map(repr, echoed))


def test_worker_of_the_page_for_users_is_built_and_serves(tmp_path: Path, go: Bridge) -> None:
    """The program printed there, with the bridge copied into its module, needs nothing else."""
    page = (BRIDGES_DIR.parent / "docs" / "languages" / "go.md").read_text("utf-8")
    (code,) = re.findall(r"^```go\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    program = build(tmp_path, code)
    handshake = {"versions": [1], "max_frame": 1 << 20, "capabilities": ["errors"]}
    args = {"worker_id": "w1", "initialization": True, "protocol": handshake, "start_args": {"prefix": "> "}}
    with Worker([str(program)]) as worker:
        listed = worker.call(0, "ping", args)["result"]["protocol"]["commands"]

        text = worker.call(1, "render", {"markdown": "hello", "width": 2})["result"]
        error = worker.call(2, "render", {"markdown": ""})["error"]

        assert (["markdown", "width"], "Indent a text.") == (listed["render"]["params"], listed["render"]["doc"])
        assert "  > hello" == text
        assert ("handler_error", "nothing to render") == (error["code"], error["message"])


def test_schemas_say_what_is_accepted(types: Path) -> None:
    """For every type and many values the schema and the bridge agree, but where JSON Schema has no word for it."""
    with Worker([str(types)]) as worker:
        commands = worker.start()["result"]["protocol"]["commands"]
        schemas = {name: told["schema"] for name, told in commands.items() if "schema" in told}

        stricter, looser = disagreements(worker, schemas)

        assert 46 == len(schemas)
        assert [] == stricter
        assert "'text'" not in looser.pop("Letter")  # what it takes is its own affair
        assert {
            "big.Int": ["1e+39"],
            "*big.Int": ["1e+39"],
            "float64": INEXACT,
            "float32": INEXACT_32,
            "Time": ["'text'"],
            "[]byte": NOT_BYTES,
            "[][]byte": [shown for shown in LISTS if shown not in ("[]", "[None]", "[b'bytes']")],
            "json.RawMessage": ["b'bytes'", "[b'bytes']"],
        } == looser


def test_schemas_of_go_types(types: Path) -> None:
    """Ranges, nested structs in the order of their fields; an end for a recursive type and for one of 4096 fields."""
    with Worker([str(types)]) as worker:
        commands = worker.start()["result"]["protocol"]["commands"]

    of = {name: told["schema"]["properties"]["v"] for name, told in commands.items() if "v" in told["params"]}
    point = {
        "type": "object",
        "properties": {
            "x": {"type": "integer", "minimum": -128, "maximum": 127},
            "Y": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "tag": {"type": "string"},
        },
        "required": ["x"],
        "additionalProperties": False,
    }
    assert {"type": "integer", "minimum": 0, "maximum": 2**64 - 1} == of["uint64"]
    assert {"anyOf": [{"type": "integer", "minimum": -128, "maximum": 127}, {"type": "null"}]} == of["**int8"]
    assert point == of["Point"] == commands["whole Point"]["schema"]
    assert ["x", "Y", "tag"] == list(of["Point"]["properties"])
    assert {"description": "bytes"} == of["[]byte"]
    assert {} == of["Node"]["properties"]["next"]
    assert {"V"} == commands["wide"]["schema"]["properties"].keys()
    assert 200_000 > len(str(commands["wide"]["schema"]))
    for name in ("whole any", "whole []int", "whole big.Int", "ping", "compute"):
        assert "schema" not in commands[name]


def test_descriptions_that_do_not_fit_are_left_out(types: Path) -> None:
    """A worker starts also where the handshake's limit is small."""
    with Worker([str(types)]) as worker:
        commands = worker.start(max_frame=4096)["result"]["protocol"]["commands"]

        assert {"params": ["v"], "doc": ""} == commands["int"]
        assert worker.call(1, "int", {"v": 1})["success"]


def test_snakepit_commands_shows_types(types: Path) -> None:
    """In the table, by name: an optional field with a question mark."""
    words = [sys.executable, "-m", "snakepit", "commands", str(types), "--level", "1"]

    shown = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=True).stdout

    assert re.search(r"^ *int +v: integer +Take an integer\.", shown, re.MULTILINE), shown
    assert re.search(r"^ *whole Point +x: integer, Y\?: number or null, tag\?: string", shown, re.MULTILINE), shown


def test_structs_are_what_encoding_json_makes_of_them(own: Worker) -> None:
    """Embedded ones among them, by depth, tag and conflict; the same names, in the same order, back in args."""
    examples = own.call(1, "examples")["result"]

    for name, (ours, text) in examples.items():
        theirs = json.loads(text)
        assert theirs == ours, name
        assert [*theirs] == [*ours], name
        # The fields of a missing embedded struct would be needed; encoding/json cannot set the other one either.
        if name not in ("main.NilPointer", "main.UnexportedPointer"):
            assert {"id": 2, "success": True, "result": [theirs, text]} == own.call(2, name, theirs), name


def test_schemas_have_the_fields_of_encoding_json(structs: Path) -> None:
    """No field that is hidden, and each name once."""
    with Worker([str(structs)]) as worker:
        handshake = start_with(worker, "return")["result"]["protocol"]["commands"]
        examples = worker.call(1, "examples")["result"]

        for name in examples.keys() - {"main.NilPointer", "main.Empty"}:  # whose examples lack fields
            assert [*json.loads(examples[name][1])] == handshake[name]["params"], name
            assert [*handshake[name]["schema"]["properties"]] == handshake[name]["params"], name
        assert ["base", "p", "n"] == handshake["main.Empty"]["params"]


def test_functions_that_do_not_return_are_errors(own: Worker) -> None:
    """A panic with nil and runtime.Goexit too, in a handler and in its result; the worker and its state live."""
    for count in range(3):
        errors = [own.call(1, command, {"kind": kind})["error"] for command, kind in ENDINGS]

        assert [
            *("panic called with nil argument", "runtime.Goexit was called in place of a return"),
            *("panic called with nil argument", "runtime.Goexit was called in place of a return", "text"),
        ] == [re.sub(r" \(use GODEBUG.*", "", error["message"]) for error in errors]
        assert {"handler_error"} == {error["code"] for error in errors}
        assert all("main.go:" in error["traceback"] for error in errors)
        assert 3 * count + 2 == own.call(2, "end", {"kind": "return"})["result"]


def test_items_behind_one_that_does_not_return_are_served(own: Worker) -> None:
    """And the requests behind that batch; in the end the status is 0."""
    kinds = ["return", "Goexit", "return", "Goexit", "Goexit", "return", "Goexit"]
    own.send({"id": 1, "command": "end", "batch": [{"kind": kind} for kind in kinds]})
    replies = [own.receive() for _ in kinds]

    assert [*range(7)] == [reply["index"] for reply in replies]
    assert ["return" == kind for kind in kinds] == [reply["success"] for reply in replies]
    assert 7 == own.call(2, "end", {"kind": "return"})["result"]
    own.close_requests()
    assert 0 == own.wait()


@pytest.mark.parametrize("kind", ["panic(nil)", "Goexit"])
def test_start_that_does_not_return_fails(structs: Path, kind: str) -> None:
    """The first ping is answered, and the exit status is 1."""
    with Worker([str(structs)]) as worker:
        reply = start_with(worker, kind)

        assert "handler_error" == reply["error"]["code"]
        assert 1 == worker.wait()


def test_data_as_deep_as_a_report_can_hold(own: Worker) -> None:
    """The report takes one of the 256 levels; deeper data is left out."""
    nested: list[Any] = []
    for _ in range(254):
        nested = [nested]

    held = own.call(1, "deep", {"v": nested})["error"]
    deeper = own.call(2, "deep", {"v": [nested]})["error"]

    assert ("deep", nested) == (held["message"], held["data"])
    assert "deep" == deeper["message"]
    assert "data" not in deeper


def test_log_of_the_start_goes_to_stderr_after_it(own: Worker) -> None:
    """No message names a request that was never made."""
    assert own.call(1, "log_late")["result"]

    assert "snakepit_bridge: [info] of the start" in own.stderr()

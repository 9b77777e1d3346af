"""An adapter's callbacks are called in their order and on their threads; an error in one costs one call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import HANDLERS, LIMIT_S, adapter, config, handler_pool

from snakepit import (
    Adapter,
    CommandAdapter,
    CommandTimeout,
    InvalidArguments,
    PoolBroken,
    PythonAdapter,
    SnakepitExecutor,
    UnknownCommand,
    WorkerSpec,
    WorkerStartError,
)

import gates
from gates import Gate
from leaks import is_gone

RUBY_BRIDGE = str(Path(__file__).resolve().parent.parent / "conformance" / "ruby" / "bridge.rb")


class Watched(PythonAdapter):
    """Notes each callback with its thread, and raises where told to."""

    def __init__(self) -> None:
        super().__init__(HANDLERS, env={"PYTHONPATH": gates.DIRECTORY})
        self.calls: list[tuple[str, str, Any]] = []
        self.raising: dict[str, BaseException] = {}

    def _note(self, name: str, detail: Any = None) -> None:
        self.calls.append((name, threading.current_thread().name, detail))
        if name in self.raising:
            raise self.raising[name]

    def supported_commands(self) -> Collection[str]:
        self._note("supported_commands")
        return ("run", "pid", "hold")

    def validate_command(self, command: str, args: Any) -> None:
        self._note("validate_command", args)
        if isinstance(args, dict) and args.get("value") == "bad":
            raise InvalidArguments("value must not be bad")

    def prepare_args(self, command: str, args: Any) -> Any:
        self._note("prepare_args", args)
        return (
            {**(args or {}), "value": f"prepared {(args or {}).get('value')}"} if command == "run" else args
        )

    def command_timeout(self, command: str, args: Any) -> float | None:
        self._note("command_timeout", args)
        return 30.0

    def process_response(self, command: str, result: Any) -> Any:
        self._note("process_response", result)
        return {"shaped": result}

    def environment(self, worker: WorkerSpec) -> Mapping[str, str]:
        self._note("environment", worker)
        return {"DEVICE": str(worker.slot)}


def test_every_callback_is_called_in_order() -> None:
    """validate, prepare, time-out on the caller's thread; process_response before the future settles."""
    kind = Watched()
    with handler_pool(1, adapter=kind, name="w") as ex:
        result = ex.execute("run", {"value": 1})
        me = threading.current_thread().name

    assert {"shaped": "prepared 1"} == result
    names = [name for name, _, _ in kind.calls if name != "environment"]
    assert [
        "supported_commands",
        "validate_command",
        "prepare_args",
        "command_timeout",
        "process_response",
    ] == names
    threads = {name: thread for name, thread, _ in kind.calls}
    assert [me] * 4 == [threads[name] for name in names[:4]]
    assert ("snakepit-w-manager", "snakepit-w-watchdog") == (
        threads["process_response"],
        threads["environment"],
    )
    details = {name: detail for name, _, detail in kind.calls}
    assert ({"value": 1}, {"value": 1}) == (details["validate_command"], details["prepare_args"])
    assert ({"value": "prepared 1"}, "prepared 1") == (
        details["command_timeout"],
        details["process_response"],
    )
    assert WorkerSpec("w-0-1", 0, 1, "w") == details["environment"]


@pytest.mark.parametrize(
    "name", ["supported_commands", "validate_command", "prepare_args", "command_timeout"]
)
def test_a_raising_callback_of_the_caller_raises_there(name: str) -> None:
    """An exception in a callback comes out of submit; nothing is accepted and the next call works."""
    kind = Watched()
    with handler_pool(1, adapter=kind) as ex:
        kind.raising[name] = ZeroDivisionError(name)
        with pytest.raises(ZeroDivisionError, match=name):
            ex.submit("run", {"value": 1})
        results = list(ex.map("run", [{"value": 1}], return_exceptions=True))
        kind.raising.clear()

        assert [ZeroDivisionError] == [type(error) for error in results]
        assert {"shaped": "prepared 2"} == ex.execute("run", {"value": 2})
        assert 1 == ex.stats().requests


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("shape"), SystemExit("shape"), KeyboardInterrupt("shape")]
)
def test_a_raising_process_response_hurts_its_call_only(error: BaseException) -> None:
    """Whatever process_response raises is that future's exception; the pool's thread lives on."""
    kind = Watched()
    with handler_pool(1, adapter=kind) as ex:
        kind.raising["process_response"] = error
        failed = ex.submit("run", {"value": 1})
        assert error is failed.exception(LIMIT_S)
        kind.raising.clear()

        assert {"shaped": "prepared 2"} == ex.execute("run", {"value": 2})
        assert (1, 1) == (ex.stats().errors, ex.stats().completed)


def test_validation_refuses_in_submit() -> None:
    """What the adapter does not know or allow raises in submit, with the way out."""
    with handler_pool(1, adapter=Watched()) as ex:
        with pytest.raises(UnknownCommand, match=r"Unknown command: 'fly'\. Available: hold, pid, run"):
            ex.submit("fly", {})
        with pytest.raises(InvalidArguments, match="must not be bad"):
            ex.submit("run", {"value": "bad"})

        assert 0 == ex.stats().requests


def test_environment_by_slot() -> None:
    """Each worker has its own environment, also the next incarnation of its slot."""
    with handler_pool(3, adapter=_ByDevice()) as ex:
        ex.wait_ready(workers=3)
        seen = {}
        for n in range(3):
            view = ex.session(f"s{n}")
            seen[view.execute("pid")] = view.execute("env", {"name": "DEVICE"})

        by_slot = {worker.pid: str(worker.slot) for worker in ex.workers()}
        assert by_slot == seen


class _ByDevice(PythonAdapter):
    def __init__(self) -> None:
        super().__init__(HANDLERS, env={"PYTHONPATH": gates.DIRECTORY, "DEVICE": "none"})

    def environment(self, worker: WorkerSpec) -> Mapping[str, str]:
        return {"DEVICE": str(worker.slot)}


def test_a_raising_environment_is_a_failed_start() -> None:
    """The reason is in the WorkerStartError; the pool breaks with its budget instead of hanging."""
    kind = Watched()
    kind.raising["environment"] = ZeroDivisionError("no device")
    with handler_pool(1, adapter=kind, config=config(restart_budget=2)) as ex:
        error = ex.submit("run", {}).exception(LIMIT_S)

    assert isinstance(error, PoolBroken)
    assert "no device" in str(error.__cause__)


def test_start_args_reach_on_start() -> None:
    """start_args arrive in on_start, before the first request."""
    with handler_pool(1, adapter=adapter(start_args={"text": "warm"})) as ex:
        assert "warm" == ex.execute("started_with")


def test_a_failing_on_start_is_a_start_error() -> None:
    """An exception in on_start is the WorkerStartError's text, with its traceback."""
    with (
        handler_pool(1, adapter=adapter(start_args={"no": 1}), config=config(restart_budget=1)) as ex,
        pytest.raises(WorkerStartError, match="no"),
    ):
        ex.wait_ready(timeout=LIMIT_S)


def test_a_worker_is_ready_only_after_on_start(gate: Gate) -> None:
    """While on_start runs the worker is starting, and requests wait."""
    with handler_pool(1, adapter=adapter(start_args={"gate": gate.path})) as ex:
        future = ex.submit("run", {"value": 1})
        gate.wait_started()

        assert (1, 0, 1) == (ex.stats().starting, ex.stats().available, ex.stats().queued)
        with pytest.raises(TimeoutError, match=r"1 ready workers were not there within 0\.1 s"):
            ex.wait_ready(timeout=0.1)
        gate.open()

        assert 1 == future.result(LIMIT_S)


def test_env_cwd_and_a_bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """env is added, cwd is the worker's, and inherit_env=False leaves the host's variables out."""
    monkeypatch.setenv("FROM_HOST", "yes")
    script = tmp_path / "where.py"
    script.write_text(
        "import os\nfrom snakepit_bridge import command\n\n\n@command\ndef where(name):\n"
        "    return [os.getcwd(), os.environ.get(name)]\n"
    )
    kept = PythonAdapter(script, env={"MINE": "1"}, cwd=tmp_path)
    bare = PythonAdapter(script, env={"MINE": "1"}, cwd=tmp_path, inherit_env=False)

    with SnakepitExecutor(kept, 1) as ex:
        answers = [ex.execute("where", [name]) for name in ("MINE", "FROM_HOST")]
    with SnakepitExecutor(bare, 1) as ex:
        bare_answers = [ex.execute("where", [name]) for name in ("MINE", "FROM_HOST")]

    folder = str(tmp_path.resolve())
    assert [[folder, "1"], [folder, "yes"]] == answers
    assert [[folder, "1"], [folder, None]] == bare_answers


class RubyAdapter(Adapter):
    """The custom adapter that the documentation of Snakepit 0.1.2 shows, in Python."""

    def __init__(self, ruby: str, report_s: float = 120.0) -> None:
        self.ruby = ruby
        self.report_s = report_s

    def executable_path(self) -> str:
        return self.ruby

    def script_path(self) -> str:
        return RUBY_BRIDGE

    def script_args(self) -> Sequence[str]:
        return ["--mode", "pool-worker"]

    def supported_commands(self) -> Collection[str]:
        return ["ping", "process_data", "generate_report"]

    def validate_command(self, command: str, args: Any) -> None:
        if command == "process_data" and "data" not in args:
            raise InvalidArguments("Missing required field: data")

    def prepare_args(self, command: str, args: Any) -> Any:
        return {**args, "data": args["data"].strip()} if command == "process_data" else args

    def process_response(self, command: str, result: Any) -> Any:
        return {**result, "processed": True} if command == "generate_report" else result

    def command_timeout(self, command: str, args: Any) -> float | None:
        return self.report_s if command == "generate_report" else 30.0


def test_the_ruby_adapter_of_the_seed(require_runtime: Callable[[str], str]) -> None:
    """A custom adapter and a level 0 bridge in Ruby work as in Snakepit 0.1.2."""
    with handler_pool(2, adapter=RubyAdapter(require_runtime("ruby"))) as ex:
        pong = ex.submit("ping", {"n": 1}).result(LIMIT_S)
        processed = ex.execute("process_data", {"data": "  ruby  "})
        with pytest.raises(InvalidArguments, match="Missing required field"):
            ex.submit("process_data", {})
        with pytest.raises(UnknownCommand, match="'fly'"):
            ex.submit("fly", {})
        reports = list(ex.map("generate_report", [{"n": n} for n in range(5)], return_exceptions=True))
        pids = [worker.pid for worker in ex.workers()]

    assert "ok" == pong["status"]
    assert processed
    assert 5 == len(reports)
    assert all(is_gone(pid or 0) for pid in pids)


def test_one_adapter_serves_two_pools() -> None:
    """An adapter owns no process: two pools of the same one have workers of their own."""
    kind = adapter()
    with handler_pool(1, adapter=kind) as one, handler_pool(1, adapter=kind) as other:
        assert one.execute("pid") != other.execute("pid")


def test_the_commands_of_a_command_adapter() -> None:
    """commands= is the list that submit checks."""
    from integration.workers.pools import SABOTEUR, saboteur

    kind = saboteur(commands=["do"])
    assert isinstance(kind, CommandAdapter)
    assert SABOTEUR in kind.argv()
    with SnakepitExecutor(kind, 1, config=config()) as ex:
        assert 1 == ex.execute("do", {"value": 1})
        with pytest.raises(UnknownCommand):
            ex.submit("ping", {})


def test_the_adapters_timeout_sees_the_prepared_args(gate: Gate) -> None:
    """command_timeout is asked with what prepare_args made."""

    class Short(Watched):
        def prepare_args(self, command: str, args: Any) -> Any:
            return {**args, "value": "short"}

        def command_timeout(self, command: str, args: Any) -> float | None:
            return 0.1 if args["value"] == "short" else None

    with handler_pool(1, adapter=Short()) as ex:
        assert isinstance(ex.submit("hold", {"gate": gate.path}).exception(LIMIT_S), CommandTimeout)

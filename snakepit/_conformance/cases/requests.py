"""Cases of rules 3 and 8 and of the built-in commands: replies, errors and their words."""

from __future__ import annotations

import time
from typing import Any

from ..case import Trial, case
from ..finding import Finding, show_json
from ..messages import describe_error
from ..survey import FULL_ECHO, FULL_PING

__all__ = ()

BAD_ARGS = ("bad_args", "InvalidArguments")

# name: (payload with the id 7, code and type of the error, how its message begins)
REFUSED: dict[str, tuple[bytes, tuple[str, str], str]] = {
    "command missing": (b'{"id":7,"args":{}}', BAD_ARGS, "request 7: 'command' must be a string"),
    "command a number": (b'{"id":7,"command":5}', BAD_ARGS, "request 7: 'command' must be a string"),
}
FIELDS: dict[str, tuple[str, bytes, str]] = {
    "session": (
        "session a number",
        b'{"id":7,"command":"ping","args":{},"session":5}',
        "request 7: 'session' must be a string",
    ),
    "deadline": (
        "deadline a string",
        b'{"id":7,"command":"ping","args":{},"deadline_ms":"5"}',
        "request 7: 'deadline_ms' must be a number",
    ),
    "batch": (
        "batch no array",
        b'{"id":7,"command":"ping","batch":{}}',
        "request 7: 'batch' must be an array",
    ),
}


@case("rule 8", "A request that cannot be served gets its error under its id, in these words")
def impossible_requests_are_refused_in_the_same_words(trial: Trial) -> None:
    cases = dict(REFUSED)
    for capability, (name, payload, words) in FIELDS.items():
        if f"capability {capability}" in trial.survey.offers:
            cases[name] = (payload, BAD_ARGS, words)
    with trial.worker() as worker:
        before = worker.stderr()
        for name, (payload, (code, kind), words) in cases.items():
            worker.send_frame(payload)
            what = f"an impossible request ({name}) was not refused in the words of the protocol"
            trial.expect_error(worker.receive(), 7, code, kind, words, what, worker)
            trial.survive(worker)
        trial.expect(before, worker.stderr(), "the caller's mistake was complained of on stderr", worker)


@case("rule 8", "An unknown command is `unknown_command`, and the message lists those there are, sorted", levels=(1, 0))
def unknown_command_lists_what_there_is(trial: Trial) -> None:
    names = ", ".join(trial.survey.commands)
    with trial.worker() as worker:
        for number, name in enumerate(("no such", "", "__proto__", "toString", "ping "), start=1):
            begin = f"Unknown command: '{name}'. Available: "
            reply = worker.call(number, name)
            what = "a wrong error for an unknown command"
            trial.expect_error(reply, number, "unknown_command", "UnknownCommand", begin, what, worker)
            if names:
                message = describe_error(reply)[2]
                trial.expect(begin + names, message, f"{what}: it lists other names than the handshake", worker)
        trial.survive(worker)


@case("batch", "An empty batch is refused as a whole: no item would answer", "capability batch")
def empty_batch_is_not_met_with_silence(trial: Trial) -> None:
    with trial.worker() as worker:
        worker.send({"id": 7, "command": "ping", "batch": []})
        words = "request 7: 'batch' must not be empty"
        trial.expect_error(worker.receive(), 7, *BAD_ARGS, words, "an empty batch was not refused", worker)
        trial.survive(worker)


@case("batch", "One reply an item, in order, with its index", "capability batch", "command compute")
def batch_items_are_answered_one_by_one(trial: Trial) -> None:
    items = [{"operation": "divide", "a": n, "b": n % 2} for n in range(20)]
    with trial.worker() as worker:
        worker.send({"id": 1, "command": "compute", "batch": items})
        for index in range(len(items)):
            reply = worker.receive()
            seen = (reply.get("id"), reply.get("index"), reply.get("success"))
            trial.expect((1, index, index % 2 == 1), seen, "an item of a batch got another's reply", worker)


@case("rule 3", "A handler's exception is a reply with its type, message and traceback", "command fail")
def exception_of_a_handler_is_a_reply(trial: Trial) -> None:
    with trial.worker() as worker:
        reply = worker.call(1, "fail", {"message": "broken: é"})
        what = "an exception was not answered with its type and message"
        trial.expect_error(reply, 1, "handler_error", "Failure", "broken: é", what, worker)
        error = reply["error"]
        if isinstance(error, dict) and not error.get("traceback"):
            raise Finding("an exception was answered without a traceback", received=show_json(reply))
        trial.survive(worker)


@case("rule 3", "A hundred failures in a row are a hundred replies from one process", "command fail", levels=(1, 0))
def handler_exceptions_do_not_end_the_worker(trial: Trial) -> None:
    with trial.worker() as worker:
        for number in range(1, 101):
            message = describe_error(worker.call(number, "fail", {"message": f"m{number}"}))[2]
            trial.expect(f"m{number}", message, "an exception was not answered with its message", worker)
        trial.survive(worker)


@case("rule 3", "Message and traceback of an error have at most 64 KiB each", "command fail", "capability errors")
def long_error_message_is_capped(trial: Trial) -> None:
    with trial.worker() as worker:
        error = worker.call(1, "fail", {"message": "é" * 200_000})["error"]
        for key, least in (("message", 60_000), ("traceback", 0)):
            size = len((error[key] or "").encode())
            if not least < size <= 65_536:
                raise Finding(
                    f"a long {key} was not cut to 64 KiB",
                    expected=f"{least + 1} to 65536 bytes of UTF-8",
                    received=f"{size} bytes",
                    hint="cut at a character's boundary: the limit counts bytes",
                )


@case("section 12", "`ping` has the fields of Snakepit 0.1.2", FULL_PING, levels=(1, 0))
def builtin_ping(trial: Trial) -> None:
    with trial.worker() as worker:
        result = worker.call(1, "ping", {"n": [1]}).get("result")
        _check_fields(result, {"status": "ok", "worker_id": "w1", "echo": {"n": [1]}})
        _check_numbers(result, "uptime", "requests_handled", "timestamp")


@case("section 12", "`echo` gives its args back", FULL_ECHO, levels=(1, 0))
def builtin_echo(trial: Trial) -> None:
    with trial.worker() as worker:
        result = worker.call(1, "echo", {"n": [1]}).get("result")
        _check_fields(result, {"status": "ok", "echoed": {"n": [1]}})
        _check_numbers(result, "timestamp")


@case("section 12", "`compute` knows the four operations", "command compute", levels=(1, 0))
def builtin_compute(trial: Trial) -> None:
    due = {"add": 8, "subtract": 4, "multiply": 12, "divide": 3}
    with trial.worker() as worker:
        for number, (operation, value) in enumerate(due.items(), start=1):
            result = worker.call(number, "compute", {"operation": operation, "a": 6, "b": 2}).get("result")
            _check_fields(result, {"status": "ok", "operation": operation, "inputs": {"a": 6, "b": 2}, "result": value})
            _check_numbers(result, "timestamp")


@case("section 12", "`info` tells about bridge and system", "command info", levels=(1, 0))
def builtin_info(trial: Trial) -> None:
    with trial.worker() as worker:
        result = worker.call(1, "info").get("result")
        _check_fields(result, {"status": "ok"})
        _check_numbers(result, "timestamp")
        if not all(isinstance(result.get(key), dict) for key in ("bridge_info", "system_info")):
            raise Finding("`info` lacks the objects bridge_info and system_info", received=show_json(result))


@case("section 12", "`random` draws from three distributions", "command random", levels=(1, 0))
def builtin_random(trial: Trial) -> None:
    draws: dict[str, tuple[dict[str, Any], float, float]] = {
        "uniform": ({"min": -1, "max": 0}, -1, 0),
        "integer": ({"min": 0, "max": 3}, 0, 3),
        "normal": ({"mean": 5, "std": 0}, 5, 5),
    }
    with trial.worker() as worker:
        for number, (kind, (args, least, most)) in enumerate(draws.items(), start=1):
            result = worker.call(number, "random", {"type": kind, **args}).get("result")
            _check_fields(result, {"status": "ok", "type": kind})
            _check_numbers(result, "value", "timestamp")
            if not least <= result["value"] <= most:
                raise Finding("a number out of its range", sent=worker.sent, received=show_json(result))


def _check_fields(result: Any, due: dict[str, Any]) -> None:
    seen = {key: result.get(key) for key in due} if isinstance(result, dict) else result
    if seen != due:
        raise Finding("the result lacks fields of section 12", expected=show_json(due), received=show_json(result))


def _check_numbers(result: Any, *keys: str) -> None:
    wrong = [key for key in keys if isinstance(result.get(key), bool) or not isinstance(result.get(key), int | float)]
    if wrong:
        raise Finding(f"not a number: {', '.join(wrong)}", received=show_json(result), hint="PROTOCOL.md, section 12")
    if "timestamp" in keys and abs(result["timestamp"] - time.time()) > 366 * 86400:
        raise Finding("`timestamp` is not in seconds since 1970", received=show_json(result["timestamp"]))

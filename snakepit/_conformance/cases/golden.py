"""One case a golden transcript."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..case import Case, Trial, register
from ..survey import FULL_ECHO, FULL_PING
from ..transcripts import Scenario, load_scenarios, replay

__all__ = ()

# How the name of a transcript begins: its group.  The longest counts; all others are of section 12.
_GROUP_OF = {
    "attachments": "attachments",
    "bad_args": "rule 8",
    "bad_frames": "rule 2",
    "bad_length": "rule 2",
    "batch": "batch",
    "big_integers": "rule 4",
    "claim": "claim",
    "compute_errors": "rule 8",
    "deadline": "deadline",
    "echo": "rule 4",
    "encode": "rule 3",
    "handler_error": "rule 3",
    "kinds": "rule 4",
    "level0": "section 3",
    "level1": "section 4",
    "log": "log",
    "nesting": "rule 4",
    "nul_text": "rule 4",
    "pipeline": "pipeline",
    "session": "session",
    "start_failure": "rule 3",
    "too_large": "rule 3",
    "unknown_command": "rule 8",
}
_CAPABILITY_OF_KEY = {
    "session": "session",
    "deadline_ms": "deadline",
    "attachments": "attachments",
    "batch": "batch",
    "claim": "claim",
}


def _group(name: str) -> str:
    beginnings = [beginning for beginning in _GROUP_OF if name.startswith(beginning)]
    return _GROUP_OF[max(beginnings, key=len)] if beginnings else "section 12"


def _needs(scenario: Scenario) -> Iterator[str]:
    asked: dict[int, str] = {}
    for step in scenario.steps:
        message = step.get("message", {})
        if step["from"] == "host":
            name = message.get("command")
            if name is not None:
                asked[message["id"]] = name
            yield from (f"capability {word}" for key, word in _CAPABILITY_OF_KEY.items() if key in message)
            if isinstance(message.get("args"), dict) and message["args"].get("start_args"):
                yield "command started"
        elif message.get("type") == "log":
            yield "capability log"
        elif "type" not in message:
            error = message.get("error")
            if isinstance(error, dict):
                yield "capability errors"
            text = error.get("message", "") if isinstance(error, dict) else error or ""
            name = asked.get(message.get("id", -1), "ping")
            if not text.startswith("Unknown command: ") and name != "ping":
                yield f"command {name}"
                yield from [FULL_ECHO] if name == "echo" else []
    if scenario.name == "pipeline_order":
        yield "capability pipeline"
    if scenario.name == "ping" or scenario.level == 0:
        yield FULL_PING
    if scenario.name.startswith("unknown_command_"):
        yield from ("command compute", "command echo", "command info")


def _play(scenario: Scenario, trial: Trial) -> None:
    with trial.worker(bare=not scenario.handlers, handshake=False) as worker:
        replay(scenario, worker, trial.survey.result)


for _scenario in load_scenarios():
    _required = frozenset(_needs(_scenario))
    register(
        Case(
            name=_scenario.name.replace("_", "-"),
            title=_scenario.header["about"].rstrip("."),
            group=_group(_scenario.name),
            level=_scenario.level,
            needs=_required,
            run=partial(_play, _scenario),
            languages=_scenario.languages,
            limit="claim" if "capability claim" in _required else None,
        )
    )

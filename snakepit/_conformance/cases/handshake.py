"""Cases of the first ping: levels, limits, capabilities."""

from __future__ import annotations

from ..case import Trial, case
from ..finding import Finding, show_json
from ..peer import CAPABILITIES, MAX_FRAME
from ..survey import Survey

__all__ = ()


@case("section 4", "The first ping is answered with protocol 1, and nothing is sent before")
def handshake(trial: Trial) -> None:
    with trial.worker(handshake=False) as worker:
        reply = worker.start()
        result = reply.get("result")
        protocol = result.get("protocol") if isinstance(result, dict) else None
        if reply.get("id") != 0 or not isinstance(protocol, dict):
            raise Finding(
                "the answer to the first ping has no `protocol`",
                sent=worker.sent,
                expected='{"id": 0, "success": true, "result": {"status": "ok", "protocol": {"version": 1, ...}}}',
                received=show_json(reply),
                hint="a bridge of level 0 is tested with --level 0",
            )
        further = sorted(set(protocol["capabilities"]) - set(CAPABILITIES))
        trial.expect([], further, "capabilities that the host did not offer", worker)
        if protocol["max_frame"] > MAX_FRAME:
            raise Finding(
                "a limit above the one that the host offered",
                expected=f"max_frame <= {MAX_FRAME}",
                received=f"{protocol['max_frame']}",
            )
        if "ping" not in protocol["commands"]:
            raise Finding("`ping` is not among the commands", received=show_json(sorted(protocol["commands"])))
        if protocol["language"] != protocol["language"].lower():
            raise Finding("the language is not in lower case", received=protocol["language"])


@case("section 3", "A host of level 0 is served on stdin and stdout", levels=(0,))
def level0_host_is_served(trial: Trial) -> None:
    with trial.worker() as worker:
        reply = worker.call(1, "ping", {}, timestamp="2024-01-01T00:00:00.000Z")
        trial.expect((1, True), (reply.get("id"), reply.get("success")), "a ping was not answered", worker)
        if "protocol" in reply["result"]:
            raise Finding("a host that did not offer protocol 1 was answered with it", received=show_json(reply))


@case("section 4", "No version in common: the worker stays at level 0")
def no_version_in_common(trial: Trial) -> None:
    offer = {"versions": [999], "max_frame": MAX_FRAME, "capabilities": list(CAPABILITIES)}
    args = {"worker_id": "w1", "initialization": True, "protocol": offer, "start_args": None}
    with trial.worker(handshake=False) as worker:
        result = worker.call(0, "ping", args).get("result")
        if not isinstance(result, dict) or result.get("status") != "ok" or "protocol" in result:
            raise Finding(
                "an offer without version 1 was not answered as by a bridge of level 0",
                sent=worker.sent,
                expected='{"status": "ok"} without `protocol`',
                received=show_json(result),
            )


@case("section 4", "The agreed limit holds, not the default: a longer frame ends the worker with status 2")
def length_above_the_agreed_limit_ends_the_worker(trial: Trial) -> None:
    limit = 65536
    with trial.worker(max_frame=limit) as worker:
        worker.send_bytes((limit + 1).to_bytes(4, "big"))
        what = "a length above the agreed limit was not refused"
        trial.expect_error(worker.receive(), None, "internal", "BadFrame", "bad frame: ", what, worker)
        trial.expect(2, worker.wait(), "the wrong exit status after it", worker)


@case("section 4", "Without SNAKEPIT_CLAIM_FD the capability `claim` is not agreed")
def claim_is_announced_only_with_its_descriptor(trial: Trial) -> None:
    with trial.worker(handshake=False, claim=False) as worker:
        agreed = worker.start()["result"]["protocol"]["capabilities"]
        trial.expect(False, "claim" in agreed, "`claim` was announced without its descriptor", worker)


@case("section 4", "Only what both know is agreed")
def capabilities_are_those_of_both(trial: Trial) -> None:
    offer = {"versions": [1], "max_frame": MAX_FRAME, "capabilities": ["errors", "of a later version"]}
    args = {"worker_id": "w1", "initialization": True, "protocol": offer, "start_args": None}
    with trial.worker(handshake=False) as worker:
        answered = Survey(worker.call(0, "ping", args).get("result") or {}, frozenset(), ())
        due = ["errors"] if "capability errors" in trial.survey.offers else []
        agreed = answered.protocol.get("capabilities")
        trial.expect(due, agreed, "other capabilities than both know", worker)

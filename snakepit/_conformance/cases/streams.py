"""Cases of rule 1: nothing that handlers, libraries or children print or read touches the frames."""

from __future__ import annotations

from ..case import Trial, case
from ..finding import Finding, show_bytes
from ..peer import Worker

__all__ = ()

PRINT_HINT = (
    "without SNAKEPIT_FDS move descriptors 0 and 1 to other numbers before any user code runs, put the null device"
    " in the place of 0 and make 1 the same as 2; with it leave 1 alone"
)


def _output(worker: Worker) -> str:
    return worker.stdout() if worker.level else worker.stderr()


def _check_output(worker: Worker, before: str, line: str) -> None:
    if _output(worker) != before + line:
        place = "stdout" if worker.level else "stderr"
        raise Finding(
            f"what the handler wrote did not arrive on {place}",
            sent=worker.sent,
            expected=line.rstrip(),
            received=show_bytes(_output(worker)[len(before) :].encode()) or "nothing",
            hint=PRINT_HINT,
        )


@case("rule 1", "What a handler prints is ordinary output", "command print_text", levels=(1, 0))
def print_in_a_handler_does_not_touch_the_frames(trial: Trial) -> None:
    with trial.worker() as worker:
        before = _output(worker)
        reply = worker.call(1, "print_text", {"line": "printed line"})
        trial.expect("printed", reply.get("result"), "a handler that prints was not answered", worker, PRINT_HINT)
        _check_output(worker, before, "printed line\n")
        trial.survive(worker)


@case("rule 1", "What native code writes to descriptor 1 is ordinary output", "command write_fd_1", levels=(1, 0))
def native_write_does_not_touch_the_frames(trial: Trial) -> None:
    with trial.worker() as worker:
        before = _output(worker)
        reply = worker.call(1, "write_fd_1", {"line": "native line\n"})
        trial.expect("written", reply.get("result"), "a handler that writes was not answered", worker, PRINT_HINT)
        _check_output(worker, before, "native line\n")
        trial.survive(worker)


@case("rule 1", "A child that reads its stdin sees the null device", "command child_reads_stdin", levels=(1, 0))
def child_of_a_handler_reads_no_frames(trial: Trial) -> None:
    with trial.worker() as worker:
        worker.send({"id": 1, "command": "child_reads_stdin", "args": {}})
        # At level 0 a host would wait; a request that lies in the pipe is what a child could steal.
        worker.send({"id": 2, "command": "ping", "args": {}})
        trial.expect("", worker.receive().get("result"), "a child read what belongs to the bridge", worker, PRINT_HINT)
        reply = worker.receive()
        trial.expect((2, True), (reply["id"], reply["success"]), "the request after it was lost", worker, PRINT_HINT)


@case(
    "rule 1",
    "A child inherits no descriptor of the protocol",
    "command child_sees",
    levels=(1, 0),
    limit="close-on-exec",
)
def child_of_a_handler_inherits_no_frame_descriptor(trial: Trial) -> None:
    with trial.worker() as worker:
        seen = worker.call(1, "child_sees").get("result")
        pipes = seen[0] if isinstance(seen, list) and seen else seen
        what = "a child inherited descriptors of the protocol (one pipe is its own output)"
        trial.expect("1", pipes, what, worker, "mark the descriptors close-on-exec right after they are opened")


@case("rule 1", "A child inherits no variable of the protocol", "command child_sees", limit="unset-env")
def child_of_a_handler_inherits_no_variable(trial: Trial) -> None:
    with trial.worker() as worker:
        seen = worker.call(1, "child_sees").get("result")
        variables = seen[1] if isinstance(seen, list) and len(seen) > 1 else seen
        what = "a child inherited SNAKEPIT_FDS or SNAKEPIT_CLAIM_FD"
        trial.expect("0", variables, what, worker, "remove both variables after reading them")


@case("rule 1", "The frames may be sockets, which cannot be opened again by name", limit="sockets")
def frames_over_sockets(trial: Trial) -> None:
    _serve_over_sockets(trial)


@case("rule 1", "Stdin and stdout may be sockets, which cannot be opened again by name", levels=(0,))
def level0_frames_over_sockets(trial: Trial) -> None:
    _serve_over_sockets(trial)


def _serve_over_sockets(trial: Trial) -> None:
    with trial.worker(sockets=True) as worker:
        trial.survive(worker)
        worker.close_requests()
        trial.expect(0, worker.wait(), "the wrong exit status", worker)

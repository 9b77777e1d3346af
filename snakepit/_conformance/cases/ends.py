"""Cases of rules 5, 6 and 7 and of section 10: how a worker is started, and how it ends."""

from __future__ import annotations

import signal

from ..case import BARE, Trial, case
from ..finding import Finding, GoneFinding, show_bytes, show_json
from ..messages import describe_error
from ..peer import Worker
from ..survey import HANDLERS, MIRROR

__all__ = ()

LINE = "command-line"
END_HINT = "a read of 0 bytes is the end of the requests: leave the loop and exit with 0"
CHILD_HINT = "end what the bridge has started, and let nothing that it starts inherit the descriptors"


@case("rule 5", "The end of the requests ends an idle worker with status 0", levels=(1, 0))
def end_of_requests_ends_an_idle_worker(trial: Trial) -> None:
    with trial.worker() as worker:
        before = worker.stderr()
        _end(trial, worker)
        trial.expect(before, worker.stderr(), "an ordinary end was complained of on stderr", worker)


@case("rule 5", "The end of the requests before the first one ends the worker with status 0", levels=(1, 0))
def end_of_requests_ends_a_fresh_worker(trial: Trial) -> None:
    with trial.worker(handshake=False) as worker:
        _end(trial, worker)


def _end(trial: Trial, worker: Worker) -> None:
    children = worker.descendants()
    worker.close_requests()
    try:
        status = worker.wait()
    except Finding as finding:
        finding.what = f"survival of the end of the requests: {finding.what}"
        finding.hint = END_HINT
        raise
    trial.expect(0, status, "the wrong exit status after the end of the requests", worker, END_HINT)
    if rest := worker.receive_end():
        raise Finding("bytes after the last reply", expected="nothing", received=show_bytes(rest))
    if left := worker.leaked(children):
        raise Finding(
            f"a leaked child: {len(left)} process(es) outlive the worker",
            expected="none",
            received=", ".join(f"{process.pid} {process.name()}" for process in left),
            hint=CHILD_HINT,
        )


@case("rule 5", "Nothing that the bridge has started outlives it", levels=(1, 0))
def no_child_is_left(trial: Trial) -> None:
    with trial.worker() as worker:
        trial.survive(worker)
        _end(trial, worker)


@case(
    "rule 5",
    "The end of the requests ends a worker whose handler only waits",
    "command hang",
    "capability log",
    limit="busy-eof",
)
def end_of_requests_ends_a_waiting_worker(trial: Trial) -> None:
    with trial.worker() as worker:
        trial.expect("hanging", worker.call(1, "hang").get("message"), "no log message from the handler", worker)
        worker.close_requests()
        trial.expect(0, worker.wait(), "the wrong exit status after the end of the requests", worker)


@case("rule 5", "Replies that cannot be written any more end the worker with status 0", levels=(1, 0), limit="sigpipe")
def host_that_stops_reading_ends_the_worker(trial: Trial) -> None:
    with trial.worker() as worker:
        worker.close_replies()
        worker.send({"id": 1, "command": "ping", "args": {}})
        hint = "catch the failed write (EPIPE; ignore SIGPIPE where it would kill the process) and exit with 0"
        trial.expect(0, worker.wait(), "the wrong exit status when nobody reads the replies", worker, hint)


@case("rule 6", "SIGTERM ends an idle worker by its default action", levels=(1, 0))
def sigterm_ends_the_worker(trial: Trial) -> None:
    with trial.worker() as worker:
        worker.process.terminate()
        _check_sigterm(trial, worker)


@case("rule 6", "SIGTERM ends a busy worker by its default action", "command hang", "capability log")
def sigterm_ends_a_busy_worker(trial: Trial) -> None:
    with trial.worker() as worker:
        trial.expect("log", worker.call(1, "hang").get("type"), "no log message from the handler", worker)
        worker.process.terminate()
        _check_sigterm(trial, worker)


def _check_sigterm(trial: Trial, worker: Worker) -> None:
    hint = "install no handler for SIGTERM: it would wait for the runtime that it should end"
    status = worker.wait()
    # A bridge of 0.1.2 may have a handler that exits at once.
    if trial.level or status != 0:
        trial.expect(-signal.SIGTERM, status, "SIGTERM does not have its default action", worker, hint)


@case("rule 6", "SIGINT is ignored: Ctrl-C is the host's business", levels=(1, 0), limit="sigint")
def sigint_is_ignored(trial: Trial) -> None:
    with trial.worker() as worker:
        try:
            for request_id in (1, 2):  # twice: some runtimes forget the first
                worker.process.send_signal(signal.SIGINT)
                trial.survive(worker, request_id)
        except GoneFinding as finding:
            finding.what = f"SIGINT is not ignored: {finding.what}"
            raise


@case("rule 7", "It starts and serves with LC_ALL=C and no variable that names libraries", MIRROR, levels=(1, 0))
def bare_environment_is_enough(trial: Trial) -> None:
    with trial.worker(env=BARE) as worker:
        worker.send(trial.mirror.request(1, "é漢😀"))
        value = trial.mirror.value(worker.receive().get("result"))
        hint = "set the encoding of both streams by hand (or read and write bytes): the locale is not yours"
        trial.expect("é漢😀", value, "text changed in the locale C", worker, hint)


def _refuse_option(trial: Trial, *options: str) -> None:
    with trial.worker(*options, handshake=False) as worker:
        # A bridge that takes no notice serves; it must not be waited for in vain.
        worker.close_requests()
        status = worker.wait()
        if status != 2:
            raise Finding(
                f"the command line {' '.join(options)!r} was not refused",
                expected="a line on stderr and exit status 2",
                received=f"exit status {status}",
                hint="a bridge is started as `bridge [--handlers FILE] [--mode X]`; refuse anything else",
            )
        if not worker.stderr().strip():
            raise Finding(f"the command line {' '.join(options)!r} was refused without a word on stderr")


@case("section 10", "An option that does not exist is a line on stderr and exit status 2", limit=LINE)
def unknown_option_is_exit_status_2(trial: Trial) -> None:
    _refuse_option(trial, "--no-such")


@case("section 10", "`--handlers` without its file is a line on stderr and exit status 2", limit=LINE)
def option_without_value_is_exit_status_2(trial: Trial) -> None:
    _refuse_option(trial, "--handlers")


@case("section 10", "A word that is no option is a line on stderr and exit status 2", limit=LINE)
def stray_word_is_exit_status_2(trial: Trial) -> None:
    _refuse_option(trial, "stray")


@case("section 10", "`--mode pool-worker`, which adapters of 0.1.2 pass, is accepted", levels=(1, 0))
def mode_option_is_accepted(trial: Trial) -> None:
    with trial.worker("--mode", "pool-worker") as worker:
        trial.survive(worker)


@case("section 10", "A handler file that is not there is told in the first reply, with exit status 1", HANDLERS)
def missing_handler_file_fails_the_start(trial: Trial) -> None:
    path = "/nowhere/at_all.py"
    with trial.worker("--handlers", path, handshake=False, bare=True) as worker:
        reply = worker.start()
        code, _, message = describe_error(reply)
        if reply.get("success") is not False or code not in ("handler_error", None) or path not in message:
            raise Finding(
                "a missing handler file was not told",
                sent=worker.sent,
                expected=f"an error with the code handler_error whose message names {path}",
                received=show_json(reply),
                hint="load the handlers while the first ping is answered; its failure is that ping's error",
            )
        trial.expect(1, worker.wait(), "the wrong exit status after it", worker)

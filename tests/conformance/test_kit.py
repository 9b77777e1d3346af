"""The conformance kit finds what it promises to find, passes what is right, and says what it did not try."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conformance.table import make_table

from snakepit._bridges import bridge_path
from snakepit._cli.commands import group
from snakepit._conformance.case import CASES, GROUPS
from snakepit._conformance.finding import Finding
from snakepit._conformance.limits import KNOWN_LIMITS
from snakepit._conformance.messages import decode, find_fault
from snakepit._conformance.runner import Suite, select_cases
from snakepit._conformance.survey import NoStartError, Target
from snakepit.testing import conformance

from leaks import is_gone, wait_until

SCRIPT = str(Path(__file__).with_name("small_bridge.py"))
BOUND_S = 20.0
SILENT_S = 3.0  # for defects that are found by waiting: arbitrary, a start takes 0.1 s on an idle machine

# (defect, case, words of the finding)
DEFECTS = [
    ("order", "answers-in-order", "answers in the wrong order"),
    ("order", "requests-in-one-write-are-read", "answers in the wrong order"),
    ("print", "level0-host-is-served", "text among the frames"),
    ("stray bytes", "each-reply-is-flushed", "stray bytes among the frames"),
    ("stray bytes", "no-child-is-left", "bytes after the last reply"),
    ("rounding", "integers-are-exact-or-refused", "rounding: the integer 9007199254740993"),
    ("NaN accepted", "nan-is-refused", "a bad frame (NaN) was not refused"),
    ("NaN sent", "nan-is-not-sent", "NaN is not JSON"),
    ("unknown command", "unknown-command-lists-what-there-is", "a wrong error for an unknown command"),
    ("two bytes a character", "unicode-arrives-as-sent", "lost unicode: 4-byte characters"),
    ("text ends at NUL", "nul-characters-arrive-as-sent", "lost unicode: U+0000"),
    ("lone surrogates", "lone-surrogates-are-refused", "a bad frame (lone surrogate) was not refused"),
    ("empty args", "empty-values-arrive-as-sent", "a value changed: []"),
    ("short read", "requests-split-at-every-byte-are-read", "bad frame: length"),
    ("inherited descriptors", "child-of-a-handler-inherits-no-frame-descriptor", "a child inherited descriptors"),
    ("SIGINT", "sigint-is-ignored", "SIGINT is not ignored"),
    ("success", "long-error-message-is-capped", "another form than the case needs: KeyError: 'error'"),
]
SILENT = [
    ("flush", "each-reply-is-flushed", "a missed flush"),
    ("flush", "level0-host-is-served", "a missed flush"),
    ("silence", "bad-frames-are-answered-and-the-worker-lives", "no reply within"),
    ("survival", "end-of-requests-ends-an-idle-worker", "survival of the end of the requests"),
    ("survival", "level0-end-of-requests-ends-an-idle-worker", "survival of the end of the requests"),
    ("deadlock", "large-requests-do-not-deadlock", "a deadlock with 16 MiB"),
    ("deadlock", "level0-large-requests-do-not-deadlock", "a deadlock with 16 MiB"),
    ("short write", "large-messages-pass-both-ways", "the frame is not complete"),
    ("leaked child", "no-child-is-left", "a leaked child"),
    ("SIGTERM", "sigterm-ends-the-worker", "did not end within"),
]


def small(defect: str = "none", level: int = 1, timeout_s: float = BOUND_S) -> Suite:
    """Return the suite of the small bridge with one defect."""
    return Suite(Target((sys.executable, SCRIPT, defect), timeout_s), level)


def find(defect: str, name: str, timeout_s: float = BOUND_S) -> Finding:
    """Return what one case finds in the small bridge with one defect."""
    (case,) = select_cases(1, [name])
    outcome = small(defect, timeout_s=timeout_s).run(case)
    assert outcome.finding is not None, f"{outcome.status}: {outcome.reason}"
    return outcome.finding


@pytest.mark.parametrize("level", [0, 1])
def test_small_correct_bridge_passes_all_that_applies(level: int) -> None:
    """It has few commands and two capabilities: what it has is tried, and the rest is said to be not applicable."""
    suite = small(level=level)
    outcomes = list(suite.run_all(select_cases(level)))

    failed = [(str(outcome.case), str(outcome.finding)) for outcome in outcomes if outcome.status == "failed"]
    passed = {str(outcome.case) for outcome in outcomes if outcome.status == "passed"}
    skipped = {str(outcome.case): outcome.reason for outcome in outcomes if outcome.status == "not applicable"}
    assert [] == failed
    found_by = {name for _, name, _ in DEFECTS + SILENT if level or name.startswith("level0-")}
    assert found_by <= passed
    assert all(skipped.values())
    if level:
        assert "the bridge does not have: capability batch" == skipped["empty-batch-is-not-met-with-silence"]


@pytest.mark.parametrize(("defect", "name", "words"), DEFECTS)
def test_defect_is_found_and_named(defect: str, name: str, words: str) -> None:
    """The finding of the case says what the defect is."""
    finding = find(defect, name)

    assert words in str(finding)


@pytest.mark.parametrize(("defect", "name", "words"), SILENT)
def test_defect_that_leaves_the_host_waiting_is_found_and_named(defect: str, name: str, words: str) -> None:
    """A worker that says nothing is waited for within the bound, and the finding says what it looks like."""
    finding = find(defect, name, SILENT_S)

    assert words in str(finding)


def test_text_on_stdout_at_level_0_is_found_before_anything_else() -> None:
    """With such a bridge no conversation is possible; the finding shows the text and says what to do."""
    with pytest.raises(Finding, match="text among the frames") as caught:
        small("print", level=0).survey  # noqa: B018  # the look at it starts the bridge

    assert "ready" in str(caught.value.received)
    assert "descriptor" in str(caught.value.hint)


def test_leaked_child_is_ended_by_the_kit() -> None:
    """The kit leaves no process behind, not even that of a bridge that does."""
    finding = find("leaked child", "no-child-is-left", SILENT_S)

    pids = [int(word.split()[0]) for word in str(finding.received).split(", ")]
    assert pids
    wait_until(lambda: all(is_gone(pid) for pid in pids), BOUND_S, f"the end of {pids}")


def test_finding_shows_what_was_sent_expected_and_received() -> None:
    """Long texts are shortened, control characters escaped, and a hint says where to look."""
    finding = find("rounding", "integers-are-exact-or-refused")

    parts = finding.parts()
    assert {"sent", "expected", "received", "hint"} <= parts.keys()
    assert '"n":9007199254740993' in parts["sent"]
    assert all(len(text) < 1200 for text in parts.values())


def test_bridge_without_level_0_fails_one_case_for_it(tmp_path: Path) -> None:
    """The other cases of level 0 are not applicable: the reason is said once."""
    script = tmp_path / "bridge.sh"
    script.write_text(f'#!/bin/sh\n[ "$SNAKEPIT_FDS" ] || exit 3\nexec {sys.executable} {SCRIPT} none "$@"\n')
    script.chmod(0o755)
    suite = Suite(Target((str(script),), BOUND_S))

    outcomes = {
        case.name: suite.run(case)
        for case in select_cases(1, ["level0-host-is-served", "level0-each-reply-is-flushed", "each-reply-is-flushed"])
    }

    assert "failed" == outcomes["level0-host-is-served"].status
    assert "status 3" in str(outcomes["level0-host-is-served"].finding)
    assert "a host of level 0 is not served" == outcomes["level0-each-reply-is-flushed"].reason
    assert "passed" == outcomes["each-reply-is-flushed"].status


def test_what_a_language_cannot_do_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case whose rule the table names is not run, and says why."""
    limits = {"small": {"sigint": "signals are out of its reach"}}
    monkeypatch.setattr("snakepit._conformance.runner.KNOWN_LIMITS", limits)
    (case,) = select_cases(1, ["sigint-is-ignored"])

    outcome = small().run(case)

    assert ("cannot", "small: signals are out of its reach") == (outcome.status, outcome.reason)


def test_table_of_the_protocol_and_that_of_the_kit_are_one() -> None:
    """Each row of section 15 that names a rule without conditions is a known limit, and each limit has a row."""
    text = bridge_path("PROTOCOL.md").read_text("utf-8").partition("\n## 15. ")[2]
    rows = re.findall(r"^\| (\w+) \| `([a-z0-9-]+)` \|", text, re.MULTILINE)

    named = {(language, rule) for language, rules in KNOWN_LIMITS.items() for rule in rules}
    assert named == {(language.lower(), rule) for language, rule in rows}


def test_limits_of_cases_are_known_rules() -> None:
    """A case names a rule that some language cannot keep, or that one day might not."""
    ends = {"busy-eof", "command-line", "sigint", "sigpipe"}
    descriptors = {"claim", "close-on-exec", "sockets", "unset-env"}

    assert {"nul-text", *ends, *descriptors} == {case.limit for case in CASES if case.limit}


def test_table_of_languages_counts_and_notes() -> None:
    """A cell counts what applies, and a footnote says what the language cannot do."""
    rows = {
        "passed": ("each-reply-is-flushed", "rule 2", None),
        "failed": ("large-messages-pass-both-ways", "rule 2", None),
        "not applicable": ("batch", "batch", None),
        "cannot": ("sigint-is-ignored", "rule 6", "sigint"),
    }
    cases = [
        {"name": name, "group": place, "status": status, "limit": limit, "reason": "small: out of reach"}
        for status, (name, place, limit) in rows.items()
    ]

    record = {"language": "small", "runtime": "1", "passed": 1, "applicable": 2, "cases": cases}
    lines = make_table([record]).split("\n")

    cells = {line.split(":")[0]: line.split("|")[2].strip() for line in lines if line.startswith("| R")}
    assert {"| Rule 2": "1/2", "| Rule 6": "[^small-sigint]"}.items() <= cells.items()
    assert "| **All** | **1/2** |" in lines
    assert "[^small-sigint]: Small cannot keep `sigint`: out of reach." in lines


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/nowhere/at/all"], "cannot be started"),
        ([sys.executable, "-c", "import sys; sys.exit('no such model')"], "no such model"),
        ([sys.executable, SCRIPT, "none", "--no-such"], "what is '--no-such'?"),
        ([sys.executable, SCRIPT, "none", "--handlers", "missing.py"], "there is no missing.py"),
    ],
)
def test_bridge_that_does_not_start_is_said_with_its_stderr(argv: list[str], words: str) -> None:
    """It is no finding: nothing could be tried."""
    with pytest.raises(NoStartError) as caught:
        Suite(Target(tuple(argv), BOUND_S)).survey  # noqa: B018  # the look at it starts the bridge

    assert words in str(caught.value)


def test_cases_have_stable_names_and_a_place() -> None:
    """Names are lower case with hyphens, once each; every case has a group, and every group a case."""
    names = [case.name for case in CASES]

    assert sorted(set(names)) == sorted(names)
    assert [] == [name for name in names if not name.replace("-", "").isalnum() or name != name.lower()]
    assert set(GROUPS) == {case.group for case in CASES}
    assert all(case.title and not case.title.endswith(".") for case in CASES)


def run_command(*words: str) -> tuple[int, str, str]:
    """Run ``snakepit conformance`` in a process; return status, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "snakepit", "conformance", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    return done.returncode, done.stdout, done.stderr


def test_command_prints_a_line_a_case_and_a_badge() -> None:
    """The status is 0, and the last line counts."""
    words = ("--only", "integers*", "--only", "empty-batch*", "--", sys.executable, SCRIPT, "none")

    status, out, err = run_command(*words)

    *lines, badge = out.splitlines()
    assert (0, "") == (status, err)
    assert ["n/a", "ok"] == sorted(line.split()[0] for line in lines)
    assert "level 1: 1/1 (1 not applicable)" == badge


def test_command_shows_a_finding_and_fails() -> None:
    """What was sent, expected and received stands below the line of the case."""
    status, out, _ = run_command("--only", "integers*", "--", sys.executable, SCRIPT, "rounding")

    assert 1 == status
    assert "FAIL" == out.split()[0]
    labels = [line.split()[0] for line in out.splitlines()[2:-1]]
    assert ["sent", "expected", "received", "hint"] == labels[:4]
    assert "level 1: 0/1" == out.splitlines()[-1]


def test_command_prints_json() -> None:
    """One object, with all that the lines say."""
    status, out, _ = run_command("--json", "--only", "integers*", "--", sys.executable, SCRIPT, "rounding")

    told: dict[str, Any] = json.loads(out)
    assert 1 == status
    assert ("level 1: 0/1", "small", 0, 1) == (told["badge"], told["language"], told["passed"], told["applicable"])
    assert ["failed"] == [case["status"] for case in told["cases"]]
    assert "rounding" in told["cases"][0]["finding"]["what"]


def test_command_that_cannot_try_is_status_2() -> None:
    """Nothing to start, nothing that starts, a case that does not exist."""
    results = [
        run_command("--", "/nowhere/at/all"),
        run_command(),
        run_command("--only", "no such", "--", sys.executable, SCRIPT, "none"),
    ]

    assert [2, 2, 2] == [status for status, _, _ in results]
    assert all(err for _, _, err in results)


def test_command_stops_at_a_first_ping_without_answer() -> None:
    """One finding, and no wait for each of the others."""
    result = CliRunner().invoke(
        group, ["conformance", "--timeout", "0.5", "--", sys.executable, "-c", "import signal; signal.pause()"],
        standalone_mode=False,
    )

    assert 1 == result.return_value
    assert "no reply within 0.5 s" in result.output
    assert "nothing else was tried" in result.output


test_small_bridge_as_a_user_would = conformance(
    [sys.executable, SCRIPT, "none"], only=["handshake", "integers*", "each-reply-is-flushed"], timeout=BOUND_S
)


def test_user_sees_the_finding_or_the_reason() -> None:
    """A failed case fails its test without a traceback through the kit; one that does not apply is skipped."""
    check = conformance([sys.executable, SCRIPT, "rounding"], timeout=BOUND_S)
    cases = {case.name: case for case in select_cases(1)}

    with pytest.raises(pytest.fail.Exception, match="rounding"):
        check(cases["integers-are-exact-or-refused"])
    with pytest.raises(pytest.skip.Exception, match="capability batch"):
        check(cases["empty-batch-is-not-met-with-silence"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"argv": "ruby bridge.rb"}, TypeError, "sequence of words"),
        ({"argv": []}, ValueError, "program"),
        ({"argv": ["x"], "level": 2}, ValueError, "level must be 0 or 1, not 2"),
        ({"argv": ["x"], "timeout": 0}, ValueError, "timeout"),
        ({"argv": ["x"], "only": ["no such"]}, ValueError, "no case of level 1 is named 'no such'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    """Before a test is made of them."""
    with pytest.raises(error, match=words):
        conformance(**arguments)


@pytest.mark.parametrize("payload", [b"NaN", b"[Infinity]", b'"\xff"', b'"\\ud800"', b'{"\\udfff":1}', b"[1,]", b""])
def test_replies_are_read_strictly(payload: bytes) -> None:
    """What is not JSON in UTF-8 is no reply, also where Python's parser would take it."""
    with pytest.raises(ValueError):
        decode(payload)


ERROR = {"code": "internal", "type": "T", "message": "m", "traceback": None, "language": "x"}


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": 1},
        {"id": 1, "success": True},
        {"id": -1, "success": True, "result": 1},
        {"id": 2**53, "success": True, "result": 1},
        {"id": True, "success": True, "result": 1},
        {"id": 1, "success": True, "result": 1, "error": "both"},
        {"id": 1, "success": True, "result": 1, "command": "echo"},
        {"id": 1, "success": True, "result": 1, "index": -1},
        {"id": 1, "success": True, "result": 1, "timestamp": "now"},
        {"id": None, "success": True, "result": 1},
        {"id": 1, "success": 1, "result": 1},
        {"id": 1, "success": False, "error": {**ERROR, "code": 7}},
        {"id": 1, "success": False, "error": {**ERROR, "message": "m" * 65537}},
        {"id": 1, "success": False, "error": {**ERROR, "cause": "text"}},
        {"id": 1, "success": False},
        {"id": 1, "success": True, "result": {"status": "ok", "protocol": {"version": 2}}},
        {"id": 1, "success": True, "result": None, "attachments": [{"path": "a", "kind": "bytes", "len": 1}]},
        {"id": 1, "success": True, "result": None, "attachments": [{"path": "/a", "kind": "bytes", "len": -1}]},
        {"type": "log", "id": 1, "level": "info", "message": "m"},
        {"type": "recalled"},
        {"type": "unheard of", "id": 1},
    ],
    ids=str,
)
def test_structure_of_replies_is_checked(message: Any) -> None:
    """The kit refuses what the schema refuses, without needing a validator."""
    assert find_fault(message)

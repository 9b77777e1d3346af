"""What only the R bridge has: vectors, factors and data frames as JSON, and the handler files of R."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import Worker, answers, bridge_of, starter


@pytest.fixture
def start(require_runtime: Callable[[str], str], tmp_path: Path) -> Callable[[str], Worker]:
    """Return a function that starts a worker with the handler file of the given text."""
    require_runtime("Rscript")
    return starter(bridge_of("r"), tmp_path)


START_FAILURES = {
    "syntax error": ("x <- 1\ny <- (2\n}", "simpleError", "handlers.R:3:1: unexpected '}'"),
    "registered twice": (
        "commands$a <- function() 1\ncommands$a <- function() 2\n",
        "simpleError",
        "handlers.R:2: command 'a' is registered twice",
    ),
    "ping": ("commands$ping <- function() 1", "simpleError", "command 'ping' belongs to the bridge"),
    "no function": ("\n\ncommands$a <- 5", "simpleError", "handlers.R:3: command 'a' is no function"),
    "class": (
        "stop(structure(class = c('Odd', 'error', 'condition'), list(message = 'm', call = NULL)))",
        "Odd",
        "handlers.R:1: m",
    ),
}


@pytest.mark.parametrize("case", START_FAILURES)
def test_handler_file_that_fails_is_answered_with_rs_own_words(case: str, start: Callable[[str], Worker]) -> None:
    """The first ping is answered with class, message and line, and the exit status is 1."""
    text, kind, words = START_FAILURES[case]
    with start(text) as worker:
        error = worker.start()["error"]

        assert ("handler_error", kind) == (error["code"], error["type"])
        assert words in error["message"]
        assert 1 == worker.wait()


VALUES: dict[str, tuple[str, Any]] = {
    "data frame": (
        "data.frame(a = 1:2, b = c('x', NA), f = factor(c('u', 'v')))",
        [{"a": 1, "b": "x", "f": "u"}, {"a": 2, "b": None, "f": "v"}],
    ),
    "one row": ("data.frame(a = 1)", [{"a": 1}]),
    "no row": ("data.frame(a = integer())", []),
    "list column": (
        "local({ d <- data.frame(i = 1:2); d$l <- list(1:2, 'z'); d })",
        [{"i": 1, "l": [1, 2]}, {"i": 2, "l": "z"}],
    ),
    "named vector": ("c(a = 1)", {"a": 1}),
    "length 1": ("c(TRUE)", True),
    "kept array": ("I(5)", [5]),
    "length 0": ("character()", []),
    "matrix": ("matrix(1:4, 2)", [[1, 3], [2, 4]]),
    "one column": ("matrix(1:2, 2)", [[1], [2]]),
    "array": ("array(1:8, c(2, 2, 2))", [[[1, 5], [3, 7]], [[2, 6], [4, 8]]]),
    "matrix of a list": ("matrix(list(1, 'a', 2, 'b'), 2, byrow = TRUE)", [[1, "a"], [2, "b"]]),
    "place of a match": ("regexpr('n', 'banana')", 3),
    "attributes": ("list(x = structure(5, unit = 'cm'), y = na.omit(c(TRUE, NA)))", {"x": 5, "y": True}),
    "factor": ("factor('q')", "q"),
    "missing": ("list(NA, NA_real_, NA_character_, NULL)", [None] * 4),
    "latin text": (r"iconv('\u00e9', 'UTF-8', 'latin1')", "é"),
    "numbers": ("c(0.1, 1 / 3, 1e300, 1e21, -0.0, 5e-324, 100000)", [0.1, 1 / 3, 1e300, 1e21, 0, 5e-324, 100000]),
    "empty object": ("setNames(list(), character())", {}),
}
REFUSED = {
    "date": ("Sys.Date()", "result: Date is not JSON; convert it, for example with format()"),
    "time column": ("data.frame(t = Sys.time())", "result/0/t: POSIXct is not JSON"),
    "function": ("list(f = sum)", "result/f: a function is not JSON"),
    "model": ("structure(list(1), class = 'lm')", "result: lm is not JSON; convert it to a list"),
    "integer64": ("structure(1, class = 'integer64')", "result: integer64 is not JSON"),
    "one name twice": ("list(a = 1, a = 2)", "result: two values have the name 'a'"),
    "large": ("2^60", "result: integer 1152921504606846976 is beyond 2^53-1"),
    "in a frame": ("data.frame(z = c(1, NaN))", "result/1/z: NaN is not JSON"),
    "in a matrix": ("list(q = matrix(c(1, -Inf), 1))", "result/q/0/1: -Infinity is not JSON"),
    "bytes as text": (r"'\xff'", "result: text that is not UTF-8"),
}


def test_values_of_r_become_json_by_the_documented_rule(start: Callable[[str], Worker]) -> None:
    """Each value arrives as written in docs/languages/r.md, and what has no rule is refused with its path."""
    values = [code for code, _ in VALUES.values()] + [code for code, _ in REFUSED.values()]
    with start(f"values <- list({', '.join(values)})\ncommands$value <- function(k) values[[k]]") as worker:
        worker.start()

        found = answers(worker, [("value", {"k": k}) for k in range(1, len(values) + 1)])

        assert [value for _, value in VALUES.values()] == found[: len(VALUES)]
        refused = dict(zip(REFUSED, found[len(VALUES) :], strict=True))
        assert {} == {
            case: refused[case] for case, (_, words) in REFUSED.items() if not refused[case].startswith(words)
        }


def test_message_of_bytes_is_text(start: Callable[[str], Worker]) -> None:
    """Text that R has marked as bytes is shown as the UTF-8 that it is."""
    code = r"""
    commands$fail <- function() {
      x <- "caf\xc3\xa9 \xff"
      Encoding(x) <- "bytes"
      stop(structure(class = c("odd", "error", "condition"), list(message = x, call = NULL)))
    }
    """
    with start(code) as worker:
        worker.start()

        assert "café <ff>" == worker.call(1, "fail")["error"]["message"]


def test_file_with_line_directives_starts(start: Callable[[str], Worker]) -> None:
    """The comments above a handler are found where they are, whatever number the file gives to its lines."""
    with start("#line 100 \"other.R\"\n#' Doubles.\ncommands$double <- function(x) 2 * x\n") as worker:
        reply = worker.start()

        assert "Doubles." == reply["result"]["protocol"]["commands"]["double"]["doc"]
        assert 6 == worker.call(1, "double", {"x": 3})["result"]


def test_args_are_vectors_and_come_back_as_sent(start: Callable[[str], Worker]) -> None:
    """Arrays of one type are vectors, with NA for null; others are lists; none changes on its way back."""
    sent = {
        "a": [1, 2.5, None], "b": [None], "c": ["x"], "d": [True, 1], "e": [[1, 2], [3]], "f": {}, "g": [],
        "h": [{"k": 1}], "i": ["a", None], "j": [True, None], "k": 2**40, "l": "\U0001f600\n\x01",
    }  # fmt: skip
    classes = {
        "a": "numeric", "b": "list", "c": "AsIs", "d": "list", "e": "list", "f": "list", "g": "list",
        "h": "list", "i": "character", "j": "logical", "k": "numeric", "l": "character",
    }  # fmt: skip
    text = "commands$id <- function(value) value\ncommands$classes <- function(args, ctx) lapply(args, class)"
    with start(text) as worker:
        worker.start()

        assert [sent, classes] == answers(worker, [("id", {"value": sent}), ("classes", sent)])


def test_parameters_are_bound_and_documented(start: Callable[[str], Worker]) -> None:
    """Defaults, the rest, the context by its name; comments above a command are its doc string."""
    text = """
    #' Add up.
    #' Twice.
    #
    NULL
#' Join.
commands$join <- function(a, b = 2, ..., ctx) list(a, b, length(list(...)), ctx$worker_id)
commands$whole <- function(args) args
"""
    calls = [
        ("join", [1]),
        ("join", {"b": 7, "a": 1}),
        ("join", [1, 2, 3]),
        ("join", 7),
        ("join", {"b": 1}),
        ("whole", [1, "a"]),
    ]
    with start(text) as worker:
        commands = worker.start()["result"]["protocol"]["commands"]

        assert {"params": ["a", "b"], "doc": "Join."} == commands["join"]
        assert [
            [1, 2, 0, "w1"],
            [1, 7, 0, "w1"],
            [1, 2, 1, "w1"],
            [7, 2, 0, "w1"],
            "join: missing 'a'; signature: join(a, b = 2, ...)",
            [1, "a"],
        ] == answers(worker, calls)


def test_mistakes_of_the_caller_are_all_named(start: Callable[[str], Worker]) -> None:
    """What is missing, what is unexpected, what is too much, with the signature; a long default is cut."""
    text = """
commands$fit <- function(data, formula, ctx, weights = c("aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc", "dddddddddd")) 1
commands$none <- function() 1
"""
    signature = 'signature: fit(data, formula, weights = c("aaaaaaaaaa", "bbbbbbbbbb", "cccccc...)'
    with start(text) as worker:
        worker.start()

        assert [
            f"fit: missing 'data', 'formula'; unexpected 'b', 'dat'; {signature}",
            f"fit: missing 'formula'; {signature}",
            f"fit: takes at most 3 positional arguments, got 4; {signature}",
            "none: unexpected 'x'; signature: none()",
        ] == answers(worker, [("fit", {"dat": 1, "b": 2}), ("fit", [1]), ("fit", [1, 2, 3, 4]), ("none", {"x": 1})])


def test_batch_with_a_value_that_r_cannot_hold_is_answered_item_by_item(start: Callable[[str], Worker]) -> None:
    """It refuses its own item; each item takes its own byte of the claims."""
    with start("commands$id <- function(value) value") as worker:
        worker.start()
        worker.claim(4)
        batch = [[1], [2**70], [{"k": [0.5, "a\0"]}], [3]]
        worker.send({"id": 1, "command": "id", "batch": batch, "claim": True})

        replies = [worker.receive() for _ in batch]

        assert [(0, True), (1, False), (2, False), (3, True)] == [
            (reply["index"], reply["success"]) for reply in replies
        ]
        assert f"args/0: integer {2**70} is beyond 2^53-1 and would be rounded; send it as text" == (
            replies[1]["error"]["message"]
        )
        assert "args/0/k/1: text with U+0000 cannot exist in R; send it as bytes" == replies[2]["error"]["message"]
        worker.send({"id": 2, "command": "id", "args": [1], "claim": True})
        assert {"type": "recalled", "id": 2} == worker.receive()


def test_start_args_that_r_cannot_hold_fail_the_start(start: Callable[[str], Worker]) -> None:
    """They would be rounded without a word."""
    with start("on_start <- function(args, ctx) NULL") as worker:
        protocol = {"versions": [1], "max_frame": 2**20, "capabilities": ["errors"]}
        error = worker.call(0, "ping", {"protocol": protocol, "start_args": {"n": [2**60]}})["error"]

        assert "bad_args" == error["code"]
        assert error["message"].startswith(f"args/start_args/n/0: integer {2**60} is beyond 2^53-1")
        assert 1 == worker.wait()


def test_traceback_shows_the_calls_of_the_handler(start: Callable[[str], Worker], tmp_path: Path) -> None:
    """With lines of its files, without the bridge's own calls and without the data."""
    (tmp_path / "library.R").write_text("outer <- function(f) {\n\n  lapply(1, f)\n}\n")
    text = f"""source("{tmp_path / "library.R"}")
commands$f <- function(data) {{
  inner <- function(x) stop('no')
  inner(data)
}}
commands$whole <- function(args, ctx) {{
  outer(function(x) {{
    stop('no')
  }})
}}
"""
    with start(text) as worker:
        worker.start()

        named = worker.call(1, "f", {"data": ["secret"]})["error"]["traceback"].splitlines()
        whole = worker.call(2, "whole")["error"]["traceback"].splitlines()

        assert ["f(data = data) at handlers.R#2", "inner(data) at handlers.R#4", 'stop("no") at handlers.R#3'] == named
        assert "whole(args, ctx) at handlers.R#6" == whole[0]
        assert whole[1].startswith("outer(function(x) {") and whole[1].endswith(" at handlers.R#7")
        assert [
            "lapply(1, f) at library.R#3",
            "FUN(X[[i]], ...) at handlers.R#7",
            'stop("no") at handlers.R#8',
        ] == whole[2:]


def test_traceback_of_a_failed_start_begins_in_the_handler_file(start: Callable[[str], Worker]) -> None:
    """At the line of the expression that failed."""
    with start("helper <- function() stop('no')\n\nx <- helper()") as worker:
        error = worker.start()["error"]

        assert ["helper() at handlers.R#3", 'stop("no") at handlers.R#1'] == error["traceback"].splitlines()


def test_traceback_of_an_endless_recursion_is_short(start: Callable[[str], Worker]) -> None:
    """The outermost and the innermost calls; of an overflow of the C stack R leaves the handler alone."""
    text = """
f <- function(n) {
  f(n + 1)
}
commands$limit <- function(depth) {
  options(expressions = depth)
  f(1)
}
commands$fail <- function() stop('other')
commands$one <- function() 1
"""
    with start(text) as worker:
        worker.start()

        nested = worker.call(1, "limit", {"depth": 400})["error"]
        overflow = worker.call(2, "limit", {"depth": 500000})["error"]

        lines = nested["traceback"].splitlines()
        assert "expressionStackOverflowError" == nested["type"]
        assert ["limit(depth = depth) at handlers.R#5", "f(1) at handlers.R#7", "f(n + 1) at handlers.R#3"] == lines[:3]
        assert 101 == len(lines)
        assert lines[50].startswith("... (") and lines[50].endswith(" more calls)")
        assert {"f(n + 1) at handlers.R#3"} == {*lines[2:50], *lines[51:]}
        assert "CStackOverflowError" == overflow["type"]
        assert ["limit(...) at handlers.R#5", "... (R drops the calls when its C stack overflows)"] == (
            overflow["traceback"].splitlines()
        )
        assert ["fail() at handlers.R#9", 'stop("other") at handlers.R#9'] == (
            worker.call(3, "fail")["error"]["traceback"].splitlines()
        )
        assert 1 == worker.call(4, "one")["result"]


def test_close_all_connections_spares_those_of_the_frames(start: Callable[[str], Worker]) -> None:
    """Those of the handlers are closed, diversions end, and the worker lives, also after rm(list = ls())."""
    text = """
commands$close <- function() {
  rm(list = ls(globalenv()), envir = globalenv())
  own <- textConnection("text")
  sink(textConnection("taken", "w", local = TRUE))
  closeAllConnections()
  list(inherits(try(readLines(own), silent = TRUE), "try-error"), sink.number())
}
"""
    with start(text) as worker:
        worker.start()

        assert [True, 0] == worker.call(1, "close")["result"]
        assert [True, 0] == worker.call(2, "close")["result"]


def test_handler_that_closes_the_frames_is_named(start: Callable[[str], Worker]) -> None:
    """The one of base does not know them."""
    with start("commands$close <- function() base::closeAllConnections()") as worker:
        worker.start()
        worker.send({"id": 1, "command": "close", "args": {}})

        assert 70 == worker.wait()
        assert "a handler closed the connections of the frames" in worker.stderr()


def test_end_of_the_requests_leaves_no_temporary_directory(
    start: Callable[[str], Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R removes its own when it quits."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with start("commands$file <- function() { path <- tempfile(); writeLines('x', path); path }") as worker:
        worker.start()
        assert Path(worker.call(1, "file")["result"]).is_relative_to(folder)

        worker.close_requests()

        assert 0 == worker.wait()
        assert [] == list(folder.iterdir())


def test_print_of_a_warning_goes_to_stderr_at_once(start: Callable[[str], Worker]) -> None:
    """R would keep it until a top level that never comes."""
    with start("commands$w <- function() { warning('careful'); 1 }") as worker:
        worker.start()

        assert 1 == worker.call(1, "w")["result"]
        assert "careful" in worker.stderr()


def test_interrupt_that_a_handler_lets_through_is_its_error(start: Callable[[str], Worker]) -> None:
    """Ctrl-C is held back, until a handler asks for it with allowInterrupts()."""
    code = "commands$i <- function() allowInterrupts({ tools::pskill(Sys.getpid(), 2L); repeat Sys.sleep(0.01) })"
    with start(code + "\ncommands$one <- function() 1") as worker:
        worker.start()

        error = worker.call(1, "i")["error"]

        assert ("handler_error", "interrupt", "interrupted") == (error["code"], error["type"], error["message"])
        assert 1 == worker.call(2, "one")["result"]

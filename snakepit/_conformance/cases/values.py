"""Cases of rule 4: values arrive as sent, or are refused."""

from __future__ import annotations

from itertools import product
from typing import Any

from ..case import Trial, case
from ..finding import Finding, show_json
from ..messages import describe_error
from ..survey import ECHO, MIRROR
from ..transcripts import json_type
from .reading import check_bad_frames

__all__ = ()

EMPTY: tuple[Any, ...] = ({}, [], None, 0, False, "")
TEXTS = {
    "Latin": "naïve Ångström",
    "Chinese": "漢字",
    "4-byte characters": "😀\U0001d518\U0010ffff",
    "a combining mark": "e\u0301",
    "line ends": "a\r\nb\u2028c\u2029d\u0085e",
    "controls": "".join(map(chr, (*range(1, 32), 127, 128, 159))),
    "a byte order mark inside": "a\ufeffb",
    "the last of the basic plane": "\ud7ff\ue000\uffff",
    "quotes": "\"\\/'`</script>\\u0041",
    "digits": "0123 1e5 -0 null true",
}
INTEGERS = (
    *(2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**62 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1),
    *(2**64 - 1, 2**64 + 1, 10**40),
)
NUMBERS = (
    *(1.5, -0.25, 0.1, 1e21, 1e-7, 5e-324, 1.7976931348623157e308, 123456789.12345679),
    *(2**31, -(2**31) - 1, 2**53 - 1),
)


@case("rule 4", "{}, [], null, 0, false and empty text arrive as sent, alone and inside others", MIRROR, levels=(1, 0))
def empty_values_arrive_as_sent(trial: Trial) -> None:
    values = [*EMPTY, list(EMPTY), {str(n): value for n, value in enumerate(EMPTY)}, [[]], [{}], {"a": {}}, {"a": []}]
    _check_values(trial, {}, values)


@case("rule 4", "Absent args mean {}", ECHO, levels=(1, 0))
def absent_args_are_an_empty_object(trial: Trial) -> None:
    (echo,) = (mirror for mirror in trial.survey.mirrors if mirror.command == "echo")
    with trial.worker() as worker:
        worker.send({"id": 1, "command": "echo"})
        trial.expect({}, echo.value(worker.receive().get("result")), "absent args are not {}", worker)


@case("rule 4", "Text of any script arrives as sent, 4-byte characters and controls too", MIRROR, levels=(1, 0))
def unicode_arrives_as_sent(trial: Trial) -> None:
    _check_values(trial, TEXTS, [{text: text for text in TEXTS.values()}])


@case("rule 4", "U+0000 arrives as sent", MIRROR, levels=(1, 0), limit="nul-text")
def nul_characters_arrive_as_sent(trial: Trial) -> None:
    _check_values(trial, {"U+0000": "a\0b", "U+0000 alone": "\0"}, [{"\0": 1}])


@case("rule 4", "Escaped text is the same text, surrogate pairs too", MIRROR, levels=(1, 0))
def escapes_are_characters(trial: Trial) -> None:
    with trial.worker() as worker:
        worker.send_frame(trial.raw_request(1, rb'"\ud83d\ude00 \u00e9 \u6f22 \b\f\n\r\t\"\\\/"'))
        value = trial.mirror.value(worker.receive().get("result"))
        trial.expect('😀 é 漢 \b\f\n\r\t"\\/', value, "lost unicode: escaped text changed", worker)


def _check_values(trial: Trial, named: dict[str, Any], more: list[Any]) -> None:
    """Check that values come back, out of a field of args and as the args themselves."""
    pairs = [*named.items(), *((show_json(value, 100), value) for value in more)]
    with trial.worker() as worker:
        for number, (mirror, (name, value)) in enumerate(product(trial.survey.mirrors, pairs), start=1):
            worker.send(mirror.request(number, value))
            reply = worker.receive()
            received = mirror.value(reply.get("result"))
            if not reply.get("success") or not _same(value, received):
                kind = "lost unicode" if named else "a value changed"
                raise Finding(
                    f"{kind}: {name}",
                    sent=worker.sent,
                    expected=show_json(value),
                    received=show_json(received if reply.get("success") else reply),
                    hint="lengths count bytes, text is UTF-8 in both directions"
                    if named
                    else "no default takes the place of an empty value; an empty array is no empty object",
                )


def _same(expected: Any, actual: Any) -> bool:
    if json_type(expected) != json_type(actual):
        return False
    if isinstance(expected, dict):
        return expected.keys() == actual.keys() and all(_same(value, actual[key]) for key, value in expected.items())
    if isinstance(expected, list):
        return len(expected) == len(actual) and all(map(_same, expected, actual))
    return bool(expected == actual)


@case("rule 4", "Integers arrive exact or are refused by name, never rounded (2^53 + 1)", MIRROR, levels=(1, 0))
def integers_are_exact_or_refused(trial: Trial) -> None:
    with trial.worker() as worker:
        for number, value in enumerate(INTEGERS, start=1):
            worker.send(trial.mirror.request(number, {"n": value}))
            reply = worker.receive()
            received = trial.mirror.value(reply.get("result"))
            refused = not reply.get("success") and str(value) in describe_error(reply)[2]
            exact = reply.get("success") and received == {"n": value} and isinstance(received["n"], int)
            if not (exact or (refused and abs(value) >= 2**53)):
                raise Finding(
                    f"rounding: the integer {value} did not come back",
                    sent=worker.sent,
                    expected=f"{value}, or an error `bad_args` whose message names it",
                    received=show_json(received if reply.get("success") else reply),
                    hint="a parser that reads integers as doubles must refuse those beyond 2^53 - 1",
                )
            if refused and describe_error(reply)[0] not in ("bad_args", "encode_error", None):
                raise Finding("a refused integer has the wrong code", expected="bad_args", received=show_json(reply))


@case("rule 4", "Doubles arrive exact, from the smallest to the largest", MIRROR, levels=(1, 0))
def doubles_arrive_exact(trial: Trial) -> None:
    with trial.worker() as worker:
        for number, value in enumerate(NUMBERS, start=1):
            worker.send(trial.mirror.request(number, [value]))
            received = trial.mirror.value(worker.receive().get("result"))
            if not _same([value], received):
                raise Finding(
                    "a number changed",
                    sent=worker.sent,
                    expected=repr(value),
                    received=show_json(received),
                    hint="17 significant digits bring every double back",
                )


@case("rule 4", "The names NaN, Infinity and -Infinity are refused, and numbers beyond doubles", levels=(1, 0))
def nan_is_refused(trial: Trial) -> None:
    texts = {"NaN": b"NaN", "Infinity": b"[Infinity]", "-Infinity": b"[-Infinity]", "out of range": b"1e400"}
    _check_refused(trial, texts)


@case("rule 4", "Lone surrogates are refused, in texts and keys", levels=(1, 0))
def lone_surrogates_are_refused(trial: Trial) -> None:
    texts = {
        "lone surrogate": rb'"\ud800"',
        "lone surrogate in a key": rb'{"\uDFFF":1}',
        "surrogates in the wrong order": rb'"\udc00\ud800"',
    }
    _check_refused(trial, texts)


@case("rule 4", "What is not UTF-8 is refused", levels=(1, 0))
def invalid_utf_8_is_refused(trial: Trial) -> None:
    texts = {
        "not UTF-8": b'"\xff"',
        "surrogate in UTF-8": b'"\xed\xa0\x80"',
        "an overlong form": b'"\xc0\xaf"',
        "a character cut short": b'"\xe6\xbc"',
    }
    _check_refused(trial, texts)


@case("rule 4", "JSON is strict: no comments, no trailing commas, no bare control characters", levels=(1, 0))
def json_is_strict(trial: Trial) -> None:
    texts = {
        "a trailing comma": b"[1,]",
        "single quotes": b"'a'",
        "a comment": b"[1/*c*/]",
        "a leading zero": b"01",
        "a plus sign": b"+1",
        "a point without digits": b"1.",
        "a bare control character": b'"a\x01b"',
        "a bare word": b"[True]",
        "an unknown escape": rb'"\x41"',
    }
    _check_refused(trial, texts)


def _check_refused(trial: Trial, texts: dict[str, bytes]) -> None:
    check_bad_frames(trial, {name: (trial.raw_request(7, text), 7) for name, text in texts.items()})


@case("rule 4", "A result of NaN or Infinity is an encode_error", "command unencodable", levels=(1, 0))
def nan_is_not_sent(trial: Trial) -> None:
    with trial.worker() as worker:
        for number, kind in enumerate(("nan", "infinity"), start=1):
            reply = worker.call(number, "unencodable", {"kind": kind})
            what = f"a result of {kind} was not refused"
            trial.expect_error(reply, number, "encode_error", "EncodeError", "result/a/0: ", what, worker)
        trial.survive(worker)

"""What JSON may carry: exact or refused, with the path."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from snakepit._wire import values as _values
from snakepit._wire.values import MAX_DEPTH, decode_json, encode_value, insert_attachments
from snakepit.errors import EncodeError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
)
WITH_BYTES = st.recursive(
    JSON | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
)


class Colour(enum.StrEnum):
    RED = "red"


class MyList(list):  # type: ignore[type-arg]
    pass


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@settings(deadline=None, derandomize=True, max_examples=50)
@given(JSON)
def test_values_arrive_as_sent(value: Any) -> None:
    """What is admitted arrives unchanged, types included."""
    text, attachments = encode_value(value, "/args")

    assert () == attachments
    if max(map(abs, integers(value)), default=0) < 1 << 63:
        assert repr(value) == repr(decode_json(text))
    assert value == json.loads(text)


def integers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in integers(item)]
    if isinstance(value, list):
        return [number for item in value for number in integers(item)]
    return [value] if type(value) is int else []


@settings(deadline=None, derandomize=True, max_examples=50)
@given(WITH_BYTES)
def test_bytes_travel_beside_the_text(value: Any) -> None:
    """Bytes are taken out of the text and put back in their places."""
    text, attachments = encode_value(value, "/args")
    message = {
        "args": json.loads(text),
        "attachments": [{"path": path, "kind": "bytes", "len": len(data)} for path, data in attachments],
    }

    insert_attachments(message, [data for _, data in attachments])

    assert value == message["args"]


def test_falsy_values_stay_what_they_are() -> None:
    """False, 0, empty text, null and empty containers arrive as sent; a tuple becomes an array."""
    value = {"a": False, "b": 0, "c": "", "d": None, "e": [], "f": {}, "g": (1, 2), "h": -0.0}

    text, _ = encode_value(value, "/args")

    assert b'{"a":false,"b":0,"c":"","d":null,"e":[],"f":{},"g":[1,2],"h":-0.0}' == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(math.nan, "/args: nan is not JSON", id="nan"),
        pytest.param({"a": [1, math.inf]}, "/args/a/1: inf is not JSON", id="infinity"),
        pytest.param({"a": {"b": {1}}}, "/args/a/b: set is not a JSON type; convert it", id="set"),
        pytest.param([datetime.date(2020, 1, 1)], "/args/0: datetime.date is not a JSON type", id="date"),
        pytest.param(decimal.Decimal(1), "/args: decimal.Decimal is not a JSON type", id="decimal"),
        pytest.param({"a": object()}, "/args/a: object is not a JSON type", id="object"),
        pytest.param({1: 2}, "/args: key 1 is int; JSON keys are str", id="int key"),
        pytest.param({"x": {None: 2}}, "/args/x: key None is NoneType", id="null key"),
        pytest.param({"a": "\ud800x"}, "/args/a: text with a lone surrogate at index 0", id="surrogate"),
        pytest.param(["ok", ("\udc00",)], "/args/1/0: text with a lone surrogate", id="surrogate in a tuple"),
        pytest.param({"\ud800": 1}, "/args: key '\\ud800': text with a lone surrogate", id="surrogate key"),
        pytest.param({"a/b~c": {2}}, "/args/a~1b~0c: set is not", id="escaped path"),
        pytest.param(Colour.RED, "Colour is not a JSON type", id="enum"),
        pytest.param(MyList(), "MyList is not a JSON type", id="subclass"),
        pytest.param({"a": b"x", "b": {1}}, "/args/b: set is not a JSON type", id="beside bytes"),
        pytest.param({"a": b"x", 1: 2}, "/args: key 1 is int", id="key beside bytes"),
        pytest.param(10**5000, "/args: Exceeds the limit", id="huge integer"),
    ],
)
def test_refused_with_its_path(value: Any, message: str) -> None:
    """What JSON cannot carry exactly is refused, and the message says where it stands."""
    with pytest.raises(EncodeError) as caught:
        encode_value(value, "/args")

    assert message in str(caught.value)


def test_value_that_changes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that another thread repairs between the walks is refused all the same."""

    def refuse(value: Any) -> bytes:
        raise ValueError("changed")

    monkeypatch.setattr(_values, "_encode", refuse)

    with pytest.raises(EncodeError, match="/args: the value cannot be encoded as JSON"):
        encode_value({"a": 1}, "/args")


def test_depth() -> None:
    """MAX_DEPTH levels pass, one more is refused; with bytes inside too."""
    encode_value(nested(MAX_DEPTH - 1), "/args")

    with pytest.raises(EncodeError, match="nested deeper than 256 levels, or a cycle"):
        encode_value(nested(MAX_DEPTH + 1), "/args")
    deep: Any = b"x"
    for _ in range(MAX_DEPTH + 2):
        deep = {"k": deep}
    with pytest.raises(EncodeError, match=r"k\.\.\.: nested deeper|nested deeper than 256"):
        encode_value(deep, "/args")


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_cycle(kind: str) -> None:
    """A value that contains itself is refused, with a short message."""
    value: Any = [] if kind == "list" else {}
    if kind == "list":
        value.append(value)
    else:
        value["self"] = value

    with pytest.raises(EncodeError, match="a cycle") as caught:
        encode_value(value, "/args")

    assert 200 > len(str(caught.value))


@pytest.mark.parametrize("raw", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_every_kind_of_bytes(raw: Any) -> None:
    """bytes, bytearray and memoryview are attachments, also as the whole value."""
    assert (b"null", (("/args", b"abc"),)) == encode_value(raw, "/args")
    assert (b"[1,null]", (("/args/1", b"abc"),)) == encode_value((1, raw), "/args")


@pytest.mark.parametrize(
    "path",
    [
        *("/args/9", "/args/x", "/nothing/0", "/args/0/deep/er", "", "/", "args", "x/args/0"),
        *("/args/-1", "/args/+0", "/args/00", "/args/0_0", "/args/\u0660", "/args/ 0", "/args/1", "/args"),
        *("/a~", "/a~2", "/attachments/0/path"),
    ],
)
def test_attachment_that_leads_nowhere(path: str) -> None:
    """A pointer to no place in the message, or to one that is not null, is an error, not a new member."""
    message = {"args": [None, 3], "a~": None, "a~2": None, "attachments": [{"path": path, "kind": "bytes", "len": 1}]}

    with pytest.raises((LookupError, TypeError, ValueError)):
        insert_attachments(message, [b"x"])


def test_attachment_to_a_missing_member() -> None:
    """A pointer to a member that the object does not have is an error."""
    message = {"args": {}, "attachments": [{"path": "/args/img", "kind": "bytes", "len": 1}]}

    with pytest.raises(KeyError, match="/args/img"):
        insert_attachments(message, [b"x"])

"""The Python bridge writes large texts by another way than small ones: the same JSON must come of it."""

from __future__ import annotations

import json
import random
from types import ModuleType
from typing import Any

import pytest
from unit.bridge import load_bridge

SEED = 20261128


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the bridge as a module."""
    return load_bridge(monkeypatch)


def texts(large: int) -> list[str]:
    """Return texts above the limit: plain, sparse and dense in what JSON escapes, of every width of characters."""
    source = random.Random(SEED)
    print(f"seed {SEED}")
    escaped = [chr(code) for code in (*range(32), 34, 92)]
    made = []
    for letters in ("abc ", "é ß", "日本 x", "😀 a"):
        plain = "".join(source.choices(letters, k=large + 1))
        made += [plain, plain + "".join(escaped), "".join(source.choices([*letters, *escaped], k=large + 1))]
        sparse = list(plain)
        for character in escaped:
            sparse[source.randrange(large)] = character
        made.append("".join(sparse))
    return [*made, "\\" * large + "n", '"' * (large + 1), "\u2028\x7f\x00" * large]


def test_large_texts_become_the_same_json(bridge: ModuleType) -> None:
    """Alone, in an object, as a key beside one, and deep inside."""
    for text in texts(bridge.LARGE_TEXT):
        for value in (text, {"a": text}, {text[:9000]: [text]}, [[[{"b": [1, text, None]}]]]):
            dump = bridge.encoder_of(value)

            assert bridge.dumps_large is dump
            assert json.dumps(value, ensure_ascii=False, separators=(",", ":")) == dump(value)


@pytest.mark.parametrize("value", ["x", None, 1, [], {}, ["a"] * 17, {"a": {"b": ("c", 1.5)}}])
def test_small_values_are_written_by_the_shortest_way(bridge: ModuleType, value: Any) -> None:
    """Nothing is asked of each of their texts."""
    assert bridge.dumps is bridge.encoder_of(value)


@pytest.mark.parametrize("value", [{1: "a"}, [b"x"], {"a": [object()]}, {"a": {2: 3}}])
def test_other_values_are_looked_at_one_by_one(bridge: ModuleType, value: Any) -> None:
    """What is not of JSON's own types throughout has no encoder here."""
    assert bridge.encoder_of(value) is None

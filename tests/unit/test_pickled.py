"""Pickles without copies: what is large is a part of its own, or a buffer beside the pickle."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from snakepit._wire.blocks import LARGE_BYTES
from snakepit._wire.pickled import Pickled, dump, is_large, is_plain


class Array:
    """Holds memory, and pickles it as an out-of-band buffer, as arrays do."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Array, (pickle.PickleBuffer(self.memory),)


def load(pickled: bytes | Pickled) -> Any:
    """Load what was dumped, with copies of its buffers."""
    if isinstance(pickled, bytes):
        return pickle.loads(pickled)
    return pickle.loads(b"".join(pickled.parts), buffers=[bytearray(buffer) for buffer in pickled.buffers])


PICKLERS = pytest.mark.parametrize("pickler", [pickle.Pickler, cloudpickle.CloudPickler])


@PICKLERS
@pytest.mark.parametrize("value", [None, [1, "two", b"three"], "x" * 1000, Array(bytearray(100)), list(range(2000))])
def test_small_values_are_bytes(pickler: Any, value: Any) -> None:
    """Without large content there is one piece of bytes."""
    pickled = dump(pickler, value)

    assert isinstance(pickled, bytes)
    assert repr(getattr(value, "memory", value)) == repr(getattr(load(pickled), "memory", load(pickled)))


@PICKLERS
def test_large_bytes_are_not_copied(pickler: Any) -> None:
    """However deep it stands, a large bytes object is itself a part."""
    large = b"x" * LARGE_BYTES
    value = {"deep": [(large,), "y" * LARGE_BYTES], "small": b"z"}

    pickled = dump(pickler, value)

    assert isinstance(pickled, Pickled)
    assert any(part is large for part in pickled.parts)
    assert value == load(pickled)
    assert len(pickled) == len(b"".join(pickled.parts))


@PICKLERS
def test_a_bytearray_stays_its_owners(pickler: Any) -> None:
    """A large bytearray can be changed and resized as soon as it is pickled."""
    value = bytearray(LARGE_BYTES)

    pickled = dump(pickler, value)
    value[0] = 1
    value.extend(b"more")

    assert bytearray(LARGE_BYTES) == load(pickled)


@PICKLERS
def test_large_buffers_are_beside_the_pickle(pickler: Any) -> None:
    """The memory of a large buffer is the owner's own; a small one is in the pickle."""
    large, small = bytearray(b"l" * LARGE_BYTES), bytearray(b"s" * 10)

    pickled = dump(pickler, [Array(large), Array(small), Array(memoryview(bytes(large)))])
    assert isinstance(pickled, Pickled)
    large[0] = 0
    first, second, third = load(pickled)

    assert [LARGE_BYTES, LARGE_BYTES] == [len(buffer) for buffer in pickled.buffers]
    assert 0 == pickled.buffers[0][0] == first.memory[0]
    assert (small, b"l" * LARGE_BYTES) == (second.memory, third.memory)
    assert (False, True) == (memoryview(first.memory).readonly, memoryview(third.memory).readonly)
    assert len(pickled) == 2 * LARGE_BYTES + len(b"".join(pickled.parts))


@PICKLERS
def test_a_buffer_with_gaps_is_pickles_own_error(pickler: Any) -> None:
    """Memory that is not contiguous cannot be a buffer."""
    with pytest.raises(pickle.PicklingError, match="contiguous"):
        dump(pickler, Array(memoryview(bytearray(4 * LARGE_BYTES))[::2]))


class Numbers:
    """Stands in for an array of numpy."""

    def __init__(self, nbytes: int, hasobject: bool = False) -> None:
        self.nbytes = nbytes
        self.dtype = SimpleNamespace(hasobject=hasobject)


def test_what_is_plain_and_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Primitives, tuples of them and arrays of numbers need no cloudpickle; long text, bytes and arrays are large."""
    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace(ndarray=Numbers))  # type: ignore[arg-type]
    plain: list[Any] = [1, 1.5, None, True, "x", b"y", (1, "two"), Numbers(8)]
    large: list[Any] = ["x" * LARGE_BYTES, b"x" * LARGE_BYTES, Numbers(LARGE_BYTES)]

    assert is_plain(plain) and not is_large(plain)
    assert [True] * 3 == [is_plain([value]) and is_large([value]) for value in large]
    assert [False] * 4 == [is_plain([value]) for value in ([1], ((1,),), len, Numbers(8, hasobject=True))]
    monkeypatch.delitem(sys.modules, "numpy")
    assert not is_plain([Numbers(8)])

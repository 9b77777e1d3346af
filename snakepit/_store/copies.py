"""Copies of values whose parts are of built-in types, several times as fast as ``copy.deepcopy``.

Pure; runs on the threads of the store's callers.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ("NotPlain", "copy_plain", "copy_tree")

_LEAVES: Final = frozenset((str, int, float, bool, bytes, type(None)))


class NotPlain(Exception):
    """The value has parts of another type, or one part in two places: only deepcopy knows how to copy it."""


def copy_plain(value: Any, seen: set[int]) -> Any:
    """Return a copy of a value that is a tree of dicts, lists, tuples, text, bytes, numbers, bools and None.

    Args:
        value: Anything; other threads may change it meanwhile.
        seen: Empty; what was copied.

    Raises:
        NotPlain: It is something else; raised here.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is dict or kind is list:
        # A cycle comes by here too.
        if id(value) in seen:
            raise NotPlain
        seen.add(id(value))
        if kind is list:
            return [item if type(item) in _LEAVES else copy_plain(item, seen) for item in value]
        if not _LEAVES.issuperset(map(type, value)):
            raise NotPlain
        return {key: item if type(item) in _LEAVES else copy_plain(item, seen) for key, item in value.items()}
    if kind is tuple:
        return tuple([copy_plain(item, seen) for item in value])
    raise NotPlain


def copy_tree(value: Any) -> Any:
    """Return a copy of what ``copy_plain`` has returned."""
    kind = type(value)
    if kind is dict:
        return {key: item if type(item) in _LEAVES else copy_tree(item) for key, item in value.items()}
    if kind is list:
        return [item if type(item) in _LEAVES else copy_tree(item) for item in value]
    if kind is tuple:
        return tuple([copy_tree(item) for item in value])
    return value

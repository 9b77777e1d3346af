"""All cases; importing this collects them in ``case.CASES``, in the order of the report."""

from __future__ import annotations

from ..case import CASES, GROUPS
from . import ends, golden, handshake, reading, requests, streams, values

__all__ = ("ends", "golden", "handshake", "reading", "requests", "streams", "values")

_ORDER = {name: number for number, name in enumerate(GROUPS)}
CASES.sort(key=lambda case: _ORDER[case.group])

"""What a language cannot do: the table of PROTOCOL.md, section 15."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ("KNOWN_LIMITS",)

KNOWN_LIMITS: Mapping[str, Mapping[str, str]] = {}
"""``{language: {name of the rule: reason}}``; a case whose rule is named here is not run for that language."""

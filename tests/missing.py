"""What a test does that lacks something which the project's own files install."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ("HOW_TO_INSTALL", "give_up")

HOW_TO_INSTALL = "sh tests/install_runtimes.sh"


def give_up(what: str) -> NoReturn:
    """Skip the test, or fail it with ``CI=true``: there what was skipped would pass for tested."""
    message = f"{what}; to install it: {HOW_TO_INSTALL}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)

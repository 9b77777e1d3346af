"""PoolConfig and the time-outs that users give: validated, with the name of what is wrong."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from snakepit._clock import INHERIT, check_timeout, pick_timeout
from snakepit.config import PoolConfig

FIELDS = {field.name: field for field in attrs.fields(PoolConfig)}
OPTIONAL_SECONDS = ("worker_idle_timeout_s", "max_worker_age_s")
SECONDS = sorted(name for name in FIELDS if name.endswith("_s") and name not in OPTIONAL_SECONDS)
COUNTS = {
    "restart_budget": 1,
    "max_frame_bytes": 1024,
    "max_message_bytes": 1024,
    "max_queued_bytes": 1,
    "stderr_tail_bytes": 0,
    "max_sessions": 1,
}
OPTIONAL_COUNTS = {"min_workers": 0, "max_requests_per_worker": 1, "max_worker_rss_bytes": 1}


def test_defaults() -> None:
    """The documented defaults."""
    config = PoolConfig()

    expected = {
        "worker_init_timeout_s": 20,
        "startup_timeout_s": 10,
        "health_check_interval_s": 30,
        "health_check_timeout_s": 5,
        "shutdown_grace_s": 2,
        "kill_grace_s": 1,
        "restart_backoff_s": 0.1,
        "restart_backoff_factor": 2,
        "restart_backoff_cap_s": 10,
        "restart_backoff_jitter": 0.2,
        "restart_budget": 5,
        "max_frame_bytes": 64 << 20,
        "max_message_bytes": 1 << 30,
        "max_queued_bytes": 256 << 20,
        "stderr_tail_bytes": 4096,
        "session_ttl_s": 3600,
        "max_sessions": 10_000,
        "session_drain_s": 300,
    }
    assert expected == {name: getattr(config, name) for name in expected}


def test_every_field_is_covered_here() -> None:
    """A new field needs its row in this module."""
    others = {"restart_backoff_factor", "restart_backoff_jitter"}

    assert set(FIELDS) == {*SECONDS, *OPTIONAL_SECONDS, *COUNTS, *OPTIONAL_COUNTS, *others}


def test_frozen_and_keywords_only() -> None:
    """Settings cannot be changed later, nor given by position; an unknown name is an error."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        PoolConfig().restart_budget = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        PoolConfig(20.0)  # type: ignore[misc]
    with pytest.raises(TypeError, match="restart_budgt"):
        PoolConfig(restart_budgt=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", [*SECONDS, *OPTIONAL_SECONDS])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (math.nan, ValueError), (True, TypeError), ("5", TypeError)],
)
def test_bad_seconds(name: str, value: Any, error: type[Exception]) -> None:
    """Seconds are numbers above 0; the message names the field."""
    with pytest.raises(error, match=name):
        PoolConfig(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_are_required(name: str) -> None:
    """Where a limit is needed None is refused."""
    with pytest.raises(TypeError, match=f"{name} must be seconds > 0, not None"):
        PoolConfig(**{name: None})


@pytest.mark.parametrize("name", [*OPTIONAL_SECONDS, *OPTIONAL_COUNTS])
def test_none_means_no_limit(name: str) -> None:
    """Where a limit is optional None is fine."""
    assert getattr(PoolConfig(**{name: None}), name) is None


@pytest.mark.parametrize(("name", "least"), [*COUNTS.items(), *OPTIONAL_COUNTS.items()])
def test_counts(name: str, least: int) -> None:
    """Counts are ints from a least value on; the message names the field."""
    assert least == getattr(PoolConfig(**{name: least}), name)

    with pytest.raises(ValueError, match=f"{name} must be an int >= {least}"):
        PoolConfig(**{name: least - 1})
    for value in (True, 1.5, "3"):
        with pytest.raises(TypeError, match=name):
            PoolConfig(**{name: value})


def test_frame_limit() -> None:
    """Frames stay below 128 MiB, so that stray text reads as a length above the limit."""
    assert (128 << 20) - 1 == PoolConfig(max_frame_bytes=(128 << 20) - 1).max_frame_bytes

    with pytest.raises(ValueError, match="max_frame_bytes must be below 128 MiB"):
        PoolConfig(max_frame_bytes=128 << 20)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("restart_backoff_factor", 1, 0.9),
        ("restart_backoff_jitter", 0, -0.1),
        ("restart_backoff_jitter", 1, 1.1),
    ],
)
def test_shares(name: str, good: float, bad: float) -> None:
    """The factor is at least 1, the jitter a share."""
    assert good == getattr(PoolConfig(**{name: good}), name)

    for value in (bad, math.nan):
        with pytest.raises(ValueError, match=name):
            PoolConfig(**{name: value})
    for value in (True, "1", None):
        with pytest.raises(TypeError, match=name):
            PoolConfig(**{name: value})


def test_timeouts_inherit_or_override() -> None:
    """Left out means inherit, None means no limit, infinity counts as None."""
    assert 7.0 == pick_timeout("timeout", INHERIT, 7.0)
    assert pick_timeout("timeout", None, 7.0) is None
    assert 2.0 == pick_timeout("timeout", 2, 7.0)
    assert check_timeout("timeout", math.inf) is None
    assert check_timeout("timeout", 1e9) is None
    assert 999_999_999.0 == check_timeout("timeout", 999_999_999)
    assert "<inherit>" == repr(INHERIT)


@pytest.mark.parametrize("value", [0, -1, -math.inf, math.nan])
def test_impossible_timeouts(value: float) -> None:
    """0, negative numbers and NaN are ValueErrors that name the parameter."""
    with pytest.raises(ValueError, match="queue_timeout must be seconds > 0"):
        check_timeout("queue_timeout", value)


@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**5000)], ids=["large", "larger", "negative"])
def test_ints_that_are_no_floats(value: int) -> None:
    """Too large to be seconds, or to be shown: a ValueError that names the parameter."""
    for name in ("session_ttl_s", "worker_idle_timeout_s", "startup_timeout_s", "restart_backoff_factor"):
        with pytest.raises(ValueError, match=rf"{name} must be .*, not an int of \d+ bits"):
            PoolConfig(**{name: value})
    with pytest.raises(ValueError, match=r"timeout must be .*, not an int of \d+ bits"):
        check_timeout("timeout", value)


@pytest.mark.parametrize("value", [True, "1", [1], 1j])
def test_timeouts_of_another_type(value: Any) -> None:
    """bool, str and others are TypeErrors."""
    with pytest.raises(TypeError, match="queue_timeout"):
        check_timeout("queue_timeout", value)

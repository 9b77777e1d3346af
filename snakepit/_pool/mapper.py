"""What ``map`` and ``map_unordered`` submit: their arguments checked, their chunks made requests.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from .. import telemetry
from .._clock import check_timeout
from .._core.model import Request
from .._wire.outgoing import MAX_BATCH_BYTES, ROOM_BYTES, CommandContent
from .._wire.values import encode_value
from .bulk import Bulk, Outcomes
from .bulk_results import Submit as SubmitBulk
from .bulk_results import bulk_results
from .calls import COMMAND_KEYWORDS, CallOptions
from .future import SnakepitFuture
from .intake import Intake
from .map import Submit, check_chunksize, results_as_completed, results_in_order

__all__ = ("Mapper",)

TOGETHER = 64
"""Commands of a map without a chunk size that are let in at one instant.  Measured (benchmarks/maps.py)."""

_SHORT_BYTES = 1024
"""Longest encoded args that are not looked at one by one.  Arbitrary."""

_BIG_NUMBER = re.compile(rb"\d{16}").search
"""Finds what a language without such integers refuses together with its whole frame: those travel alone."""

_OF_A_CALLABLE = frozenset(("return_exceptions",))
_OF_A_COMMAND = (COMMAND_KEYWORDS - {"timeout"}) | {"item_timeout", "return_exceptions"}


class Mapper:
    """Maps over a pool with the settings of an executor or a view.

    Its methods take the parameters of ``SnakepitExecutor.map``, ``options`` being the keywords.

    Args:
        intake: The pool's; held until an iterator has its last result, which keeps the pool open.
        base: The settings.
    """

    def __init__(self, intake: Intake, base: CallOptions) -> None:
        self._intake = intake
        self._base = base

    def in_order(
        self,
        command: str | Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        options: Mapping[str, Any],
    ) -> Iterator[Any]:
        """Run over every item; return an iterator over the results, in order."""
        submit = self._submitter(command, iterables, chunksize, options)
        every = options.get("return_exceptions", False)
        size = _chunksize(command, chunksize, buffersize)
        together = self._bulk_submitter(command, chunksize, buffersize, options)
        if together is not None:
            guard = partial(self._intake.refuse_to_wait, "map()")
            return bulk_results(together, iterables[0], timeout, every, guard, ordered=True)
        return results_in_order(submit, iterables, size, buffersize, timeout, every)

    def as_completed(
        self,
        command: str | Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        options: Mapping[str, Any],
    ) -> Iterator[Any]:
        """Run over every item; return an iterator over the results, as they complete."""
        submit = self._submitter(command, iterables, chunksize, options)
        every = options.get("return_exceptions", False)
        guard = partial(self._intake.refuse_to_wait, "map_unordered()")
        size = _chunksize(command, chunksize, buffersize)
        together = self._bulk_submitter(command, chunksize, buffersize, options)
        if together is not None:
            return bulk_results(together, iterables[0], timeout, every, guard, ordered=False)
        return results_as_completed(submit, iterables, size, buffersize, timeout, every, guard)

    def _submitter(
        self,
        command: str | Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        chunksize: int | None,
        options: Mapping[str, Any],
    ) -> Submit:
        check_chunksize(chunksize)
        if not isinstance(command, str):
            _refuse_keywords(options, _OF_A_CALLABLE)
            if (chunksize or 1) > 1 and options.get("return_exceptions"):
                raise ValueError(
                    f"map() of a callable: return_exceptions needs a chunksize of 1, not {chunksize}: the calls of"
                    " a chunk have one outcome"
                )
            return partial(self._submit_calls, command, (chunksize or 1) > 1)
        if len(iterables) != 1:
            raise TypeError(f"map({command!r}, ...) takes one iterable of args, not {len(iterables)}")
        _refuse_keywords(options, _OF_A_COMMAND)
        given = {name: value for name, value in options.items() if name in COMMAND_KEYWORDS}
        if "item_timeout" in options:
            given["timeout"] = check_timeout("item_timeout", options["item_timeout"])
        return partial(self._submit_commands, command, self._base.override(given))

    def _bulk_submitter(
        self,
        command: str | Callable[..., Any],
        chunksize: int | None,
        buffersize: int | None,
        options: Mapping[str, Any],
    ) -> SubmitBulk | None:
        """Return what submits items that may travel together; None: each needs a request of its own."""
        intake, base = self._intake, self._base
        if not isinstance(command, str) or chunksize is not None or buffersize is not None:
            return None
        # What bounds or places a single item is decided, and counted, item by item.
        if not {"return_exceptions"}.issuperset(options) or base.session is not None or base.priority:
            return None
        if base.timeout is not None or base.queue_timeout is not None or intake.ledger.is_bounded:
            return None
        if not intake.encoder.has_plain_results or telemetry.enabled("snakepit.worker.request"):
            return None
        return partial(self._submit_bulk, command)

    def _submit_bulk(self, command: str, items: list[Any], start: int, done: Outcomes) -> list[Bulk]:
        intake, options = self._intake, self._base
        encode, prefix, is_plain = intake.encoder.command, b"", intake.encoder.has_plain_args
        bulks: list[Bulk] = []
        run: list[bytes | CommandContent] = []
        size_bytes = short_bytes = 0
        frame_bytes = min(MAX_BATCH_BYTES, intake.encoder.max_frame_bytes)

        def admit(end: int) -> None:
            nonlocal run, size_bytes
            if run:
                request = intake.request(None, command, options, None, size_bytes)
                request.weight, request.splits = len(run), True
                bulk = Bulk(intake.ledger, request, prefix[:-7], end - len(run), run, done.put, frame_bytes)
                request.future = bulk
                intake.admit_bulk(request)
                bulks.append(bulk)
                run, size_bytes = [], 0

        intake.ledger.check_open()
        try:
            for place, item in enumerate(items, start):
                try:
                    if prefix and is_plain:
                        # The first has shown that the command can be sent; short args fit any frame with it.
                        text, attachments = encode_value(item, "/args")
                        if not attachments and len(text) <= short_bytes and not _BIG_NUMBER(text):
                            run.append(text)
                            size_bytes += len(text)
                            continue
                    content, _ = encode(command, item, options)
                except Exception as error:
                    # A bad item fails at its place, and was never accepted.
                    admit(place)
                    done.put((place, [error]))
                    continue
                if not prefix:
                    prefix = b'"command":%b,"args":' % encode_value(command, "")[0]
                    short_bytes = min(_SHORT_BYTES, frame_bytes - len(prefix) - ROOM_BYTES)
                if content.is_plain:
                    text = content.body[len(prefix) :]
                    run.append(content if _BIG_NUMBER(text) else text)
                else:
                    run.append(content)
                size_bytes += content.size_bytes
            admit(start + len(items))
        except BaseException:
            for bulk in bulks:
                bulk.cancel()
            raise
        return bulks

    def _submit_commands(
        self, command: str, options: CallOptions, items: list[tuple[Any, ...]]
    ) -> list[tuple[SnakepitFuture, bool]]:
        intake = self._intake
        encode, chunk = intake.encoder.command, object() if len(items) > 1 else None
        requests: list[Request] = []
        failed: dict[int, SnakepitFuture] = {}
        intake.ledger.check_open()
        for place, item in enumerate(items):
            try:
                content, timeout_s = encode(command, item[0], options)
            except Exception as error:
                # A bad item fails at its place; the door shut or no room ends the map.
                failed[place] = SnakepitFuture(intake.ledger)
                failed[place].set_exception(error)
            else:
                request = intake.request(content, command, options, timeout_s, content.size_bytes)
                request.chunk = chunk
                requests.append(request)
        # Waits for room even where submit() raises: a map is one call, and its input may be endless.
        futures: list[SnakepitFuture] = list(intake.admit_all(requests))
        for place in failed:
            futures.insert(place, failed[place])
        return [(future, False) for future in futures]

    def _submit_calls(
        self, fn: Callable[..., Any], chunked: bool, items: list[tuple[Any, ...]]
    ) -> list[tuple[SnakepitFuture, bool]]:
        submit = partial(self._intake.submit_call, fn, options=self._base, block=True)
        if chunked:
            return [(submit((), {}, calls=items), True)]
        return [(submit(item, {}), False) for item in items]


def _chunksize(command: str | Callable[..., Any], chunksize: int | None, buffersize: int | None) -> int:
    """Return how many items are submitted together.

    Commands that are submitted together are requests of their own all the same: how many of them travel together
    is decided when they are sent, by what recent ones have taken.
    """
    if chunksize is not None:
        return chunksize
    return TOGETHER if isinstance(command, str) and buffersize is None else 1


def _refuse_keywords(given: Iterable[str], allowed: frozenset[str]) -> None:
    for name in given:
        if name not in allowed:
            raise TypeError(
                f"map() got an unexpected keyword argument {name!r}; it takes {', '.join(sorted(allowed))}"
            )

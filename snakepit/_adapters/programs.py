"""Programs that never heard of the protocol: a filter that answers line by line, and one that runs once a request.

A Python worker with a few lines of handlers (``bridges/programs``) keeps the program; the pool sees a worker like
any other.  Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, Unpack

from .._bridges import bridge_path
from .._programs import find_executable
from .._wire.values import JsonValue
from .._worker_options import WorkerOptions
from ..errors import InvalidArguments
from .languages import PythonAdapter

__all__ = ("LineAdapter", "OneShotAdapter")


class _ProgramAdapter(PythonAdapter):
    """A Python worker that keeps a program."""

    def __init__(
        self,
        program: str,
        handlers: str,
        start_args: JsonValue,
        output: str,
        **options: Unpack[WorkerOptions],
    ) -> None:
        self._kept = program
        path = bridge_path(f"programs/{handlers}")
        super().__init__(path, start_args=start_args, output=output, **options)

    def argv(self) -> tuple[str, ...]:
        """Return the worker's command line; the program is looked for here, before anything starts.

        Raises:
            WorkerStartError: There is no such program; raised here.
        """
        find_executable(self._kept, type(self).__name__, cwd=self.cwd, variables=self._variables())
        return super().argv()


class LineAdapter(_ProgramAdapter):
    """A program that answers each line on its stdin with one line on its stdout, e.g. ``jq``, ``sed -u``, ``bc -l``.

    It has one command, ``line``: ``executor.submit("line", "1+1")``.  The program has to answer at once, which most do
    only in an unbuffered mode (``jq --unbuffered``) or through ``stdbuf -oL``.  When it ends, so does its worker.

    Args:
        argv: The command line; no shell sees it.
        delimiter: Ends each line, in both directions.
        encoding: Of the lines; any text encoding without a byte order mark.
        reply: "line": the result is the line, without its end.  "json": the value it stands for.  A callable: what it
            returns for the line; called on the pool's thread, so it must be quick.
        prompt: What a program with a prompt prints when it is ready, e.g. ``">>> "``: an answer then ends there and
            may have many lines, and the worker is ready at the first prompt.
            Either way an answer has at most 128 MiB.
        first_line_s: Seconds that the first answer of a process may take before the program is ended, with advice
            about buffers, but no more than 0.9 of the call's ``timeout``; None: no limit but ``timeout``, which is
            the only one of later answers.
        output: "log" or "inherit", for the program's stderr.
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter; raised here.
        InvalidArguments: The argument of a call is no line; raised by ``submit``.
        WorkerDied: The program has ended; or it was ended, because its first answer took longer than
            ``first_line_s``, because an answer was longer than 128 MiB, or because it had written a line that nobody
            had asked for: the end of ``stderr_tail`` says so.  A surplus line is noticed by the next call if it is
            there by then; one that comes later is taken for the answer.  Set on the future.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        delimiter: str = "\n",
        encoding: str = "utf-8",
        reply: str | Callable[[str], Any] = "line",
        prompt: str | None = None,
        first_line_s: float | None = 10.0,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        words = _check_argv("argv", argv, "['jq', '-c', '--unbuffered', '.name']")
        for name, text in (("delimiter", delimiter), ("prompt", prompt if prompt is not None else ">")):
            if not isinstance(text, str) or not text:
                raise TypeError(f"{name} must be text of at least one character, not {text!r}")
        if reply not in ("line", "json") and not callable(reply):
            raise ValueError(f"reply must be 'line', 'json' or a callable, not {reply!r}")
        if first_line_s is not None:
            if isinstance(first_line_s, bool) or not isinstance(first_line_s, (int, float)):
                raise TypeError(f"first_line_s must be a number of seconds or None, not {first_line_s!r}")
            if not 0 < first_line_s <= sys.float_info.max:
                raise ValueError(f"first_line_s must be > 0 and finite, or None for no limit, not {first_line_s!r}")
        self._delimiter = delimiter
        self._encoding = _check_line_encoding(encoding, delimiter=delimiter, prompt=prompt or "")
        self._shape = reply if callable(reply) else None
        start_args: JsonValue = {
            "argv": list(words),
            "delimiter": delimiter,
            "encoding": encoding,
            "reply": reply if isinstance(reply, str) else "line",
            "prompt": prompt,
            "first_line_s": None if first_line_s is None else float(first_line_s),
        }
        super().__init__(words[0], "snakepit_line.py", start_args, output, **options)

    def supported_commands(self) -> Collection[str]:
        """Return the one command, ``line``."""
        return ("line",)

    def validate_command(self, command: str, args: JsonValue) -> None:
        """Refuse what is not one line.

        Raises:
            InvalidArguments: No text, text with the delimiter in it, or text that the encoding has not; raised here.
        """
        if not isinstance(args, str):
            raise InvalidArguments(f"line: the argument must be one line of text, not {args!r:.200}")
        if self._delimiter in args:
            raise InvalidArguments(f"line: {args!r:.200} has the delimiter {self._delimiter!r} in it: one line a call")
        try:
            args.encode(self._encoding)
        except UnicodeError as error:
            raise InvalidArguments(f"line: {error}") from None

    def process_response(self, command: str, result: JsonValue) -> Any:
        """Return what ``reply`` makes of the line."""
        return result if self._shape is None else self._shape(str(result))


class OneShotAdapter(_ProgramAdapter):
    """A program that runs once for each request, e.g. ``pdftotext``, ``ffmpeg`` or a compiler.

    It has one command, ``run``, with an object of arguments: ``executor.submit("run", {"page": 1, "input": data})``.
    The result is ``{"exit_code", "stdout", "stderr"}``; a negative exit code is a signal.  The pool's size is the
    number of programs at a time, and a ``timeout`` ends the program with all its children.

    Args:
        argv: The command line, a template: ``{name}`` inside a word stands for an argument, ``{{`` for a brace.  A word
            that is nothing but ``{name}`` may be given a list and becomes as many words.  No shell sees it; a
            value that begins with ``-`` may still be taken for an option, so put ``"--"`` before such words.
        encoding: Of ``stdout``, of ``stderr`` (errors replaced), and of an ``input`` that is text; None: bytes.
        check: An exit status other than 0 is a ``CommandError`` (``Failed``) with the end of ``stderr``.
        output: "log" or "inherit"; what the program writes is in the result either way.
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter, a template with anything but plain names included; raised here.
        InvalidArguments: An argument of a call is missing, unknown, or neither text nor number; raised by ``submit``.
        CommandError: ``Failed``, see ``check``, or ``NoText``: ``stdout`` is not in ``encoding``; set on the future.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        encoding: str | None = "utf-8",
        check: bool = False,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        words = _check_argv("argv", argv, "['pdftotext', '--', '{path}', '-']")
        self._words = tuple(_parse_word(word) for word in words)
        self._names = {name for word in self._words for _, name in word if name is not None}
        if any(name is not None for _, name in self._words[0]):
            raise ValueError(f"argv: the program is fixed, {words[0]!r} must not have an argument in it")
        if encoding is not None:
            _check_encoding(encoding)
        if not isinstance(check, bool):
            raise TypeError(f"check must be a bool, not {check!r}")
        program = "".join(text for text, _ in self._words[0])
        super().__init__(program, "snakepit_one_shot.py", {"encoding": encoding, "check": check}, output, **options)

    def supported_commands(self) -> Collection[str]:
        """Return the one command, ``run``."""
        return ("run",)

    def prepare_args(self, command: str, args: JsonValue) -> JsonValue:
        """Return the command line and the input.

        Raises:
            InvalidArguments: The arguments do not fit the template; raised here.
        """
        if not isinstance(args, dict):
            raise InvalidArguments(f"run: args must be an object with {self._expected()}, not {args!r:.200}")
        for name in sorted(self._names - args.keys()):
            raise InvalidArguments(f"run: missing argument {name!r}; the command line needs {self._expected()}")
        for name in sorted(args.keys() - self._names - {"input"}):
            raise InvalidArguments(f"run: unknown argument {name!r}; the command line knows {self._expected()}")
        data = None if "input" in self._names else args.get("input")
        if data is not None and not isinstance(data, (str, bytes, bytearray, memoryview)):
            raise InvalidArguments(f"run: input must be text or bytes, not {data!r:.200}")
        return {"argv": [filled for word in self._words for filled in _fill(word, args)], "input": data}

    def _expected(self) -> str:
        return ", ".join(map(repr, sorted(self._names))) or "nothing but 'input'"


_Word = tuple[tuple[str, str | None], ...]
"""Literal text and the name of the argument that follows it, or None."""


def _check_argv(name: str, argv: object, example: str) -> tuple[str, ...]:
    if isinstance(argv, (str, bytes)) or not isinstance(argv, Sequence) or not argv:
        raise TypeError(f"{name} must be a sequence of words, e.g. {example}, not {argv!r}")
    if not all(isinstance(word, (str, os.PathLike)) for word in argv):
        raise TypeError(f"{name} must be a sequence of str, not {argv!r}")
    words = tuple(str(os.fspath(word)) for word in argv)
    if not words[0]:
        raise ValueError(f"{name}: the program must not be empty: {argv!r}")
    for word in words:
        if "\0" in word:
            raise ValueError(f"{name}: no process can be given {word!r} (NUL character)")
    return words


def _check_encoding(encoding: str) -> str:
    if not isinstance(encoding, str):
        raise TypeError(f"encoding must be the name of one, e.g. 'utf-8', not {encoding!r}")
    try:
        # Unlike codecs.lookup(), this refuses codecs of bytes, such as "hex".
        "".encode(encoding)
    except (LookupError, ValueError):
        raise ValueError(f"encoding: {encoding!r} is no text encoding of Python; 'utf-8' and 'latin-1' are") from None
    return encoding


def _check_line_encoding(encoding: str, **ends: str) -> str:
    if "".encode(_check_encoding(encoding)):
        raise ValueError(
            f"encoding: {encoding!r} puts a byte order mark before each line;"
            " use one without, e.g. 'utf-8' or 'utf-16-le'"
        )
    for name, text in ends.items():
        try:
            text.encode(encoding)
        except UnicodeError as error:
            raise ValueError(f"{name}: {text!r} cannot be written in {encoding!r}: {error}") from None
    return encoding


def _parse_word(word: str) -> _Word:
    try:
        parts = tuple((text, name) for text, name, *_ in _checked_parts(word))
    except ValueError as error:
        raise ValueError(f"argv: {word!r}: {error}; an argument is written {{name}}, a brace {{{{") from None
    return parts


def _checked_parts(word: str) -> list[tuple[str, str | None, str | None, str | None]]:
    parts = list(string.Formatter().parse(word))
    for _, name, specification, conversion in parts:
        if name is not None and (not name.isidentifier() or specification or conversion):
            raise ValueError(f"{name!r} is not a plain name")
    return parts


def _fill(word: _Word, args: dict[str, Any]) -> list[str]:
    """Return the words that a word of the template becomes."""
    if len(word) == 1 and word[0][0] == "" and word[0][1] is not None:
        name = word[0][1]
        value = args[name]
        return [_as_text(name, item) for item in value] if isinstance(value, (list, tuple)) else [_as_text(name, value)]
    return ["".join(text + ("" if name is None else _as_text(name, args[name])) for text, name in word)]


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, str) and "\0" not in value:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise InvalidArguments(f"run: argument {name!r} must be text without NUL or a number, not {value!r:.200}")

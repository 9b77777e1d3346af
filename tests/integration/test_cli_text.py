"""The words of workers, programs and paths are shown as text: they are no markup and control no terminal."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from snakepit._cli import doctor as _doctor
from snakepit._cli.doctor import Examination, Finding
from snakepit._cli.terminal import make_console, make_table

LIMIT_S = 60
# Level 1, told to announce what it is given.
BRIDGE = """
import json, os, sys
entry, out = (int(number) for number in os.environ["SNAKEPIT_FDS"].split(","))
requests = open(entry, "rb")
while head := requests.read(4):
    request = json.loads(requests.read(int.from_bytes(head, "big")))
    result = {"status": "ok", "protocol": {"version": 1, **json.loads(sys.argv[1])}}
    reply = json.dumps({"id": request["id"], "success": True, "result": result}).encode()
    os.write(out, len(reply).to_bytes(4, "big") + reply)
"""
HOSTILE = '''
from snakepit_bridge import command

@command
def read(names: "list[str]"):
    """Reads the file [/etc/hosts] :smile: \\x1b[2J\\x9b2J."""
    return names

class Failed(Exception):
    """An error whose traceback holds control characters."""

@command
def fail():
    raise Failed("\\x1b]0;title\\x07")
'''

Snakepit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def snakepit(tmp_path: Path) -> Snakepit:
    """Return a function that runs the command in an empty directory."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "snakepit", *words]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    return run


@pytest.fixture
def announcing(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Return a function that returns the command line of a worker that announces these things."""
    (tmp_path / "bridge.py").write_text(BRIDGE)
    return lambda told: shlex.join([sys.executable, "bridge.py", json.dumps(told)])


def test_commands_shows_words_as_they_are(snakepit: Snakepit, tmp_path: Path) -> None:
    """Brackets and colons of a doc string are neither markup nor pictures, and an escape sequence does nothing."""
    (tmp_path / "handlers.py").write_text(HOSTILE)

    done = snakepit("commands", "python", "--handlers", "handlers.py")

    assert (0, "") == (done.returncode, done.stderr)
    assert "Reads the file [/etc/hosts] :smile: \\x1b[2J\\x9b2J." in done.stdout


@pytest.mark.parametrize("option", ["--json", "--schema"])
def test_json_holds_no_control_characters(snakepit: Snakepit, tmp_path: Path, option: str) -> None:
    """Also those that JSON allows as they are; what it says stays the same."""
    (tmp_path / "handlers.py").write_text(HOSTILE)

    done = snakepit("commands", "python", "--handlers", "handlers.py", option)

    told = json.loads(done.stdout)
    told = told["read"]["description"] if option == "--schema" else told["commands"]["read"]["doc"]
    assert "Reads the file [/etc/hosts] :smile: \x1b[2J\x9b2J." == told
    assert {"\n"} >= set(done.stdout) & {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))}


def test_results_hold_no_control_characters(snakepit: Snakepit) -> None:
    """A result is JSON that a terminal may be shown."""
    done = snakepit("run", "python", "echo", '"\\u009b2J \\u001b \\ud83d\\ude00"')

    assert (0, "") == (done.returncode, done.stderr)
    assert "\x9b2J \x1b \U0001f600" == json.loads(done.stdout)["echoed"]
    assert "\\u009b2J" in done.stdout


def test_a_remote_traceback_is_shown_without_control_characters(snakepit: Snakepit, tmp_path: Path) -> None:
    """``run -v`` shows it with its lines and nothing that a terminal would obey."""
    (tmp_path / "handlers.py").write_text(HOSTILE)

    done = snakepit("run", "python", "fail", "--handlers", "handlers.py", "-v")

    assert 1 == done.returncode
    _, trace = done.stderr.split("\n", 1)
    assert trace.startswith("Traceback") and trace.endswith("Failed: \\x1b]0;title\\x07\n")
    assert not set(done.stderr) & {"\x1b", "\x07"}


def test_optional_members_may_be_left_out(
    snakepit: Snakepit, announcing: Callable[[dict[str, Any]], str]
) -> None:
    """A bridge of one's own announces as much as it likes; what is told in another way is not shown."""
    import jsonschema

    told_and_shown: list[tuple[object, str]] = [
        ({"params": ["a", "b"]}, "a, b"),
        ({"params": ["a"], "schema": {"type": "object"}}, ""),
        ({"schema": {"properties": {"a": {"type": "integer"}}}}, "a?: integer"),
        ({"schema": {"properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]}}, "a: string or null"),
        ({"schema": {"properties": {"a": True, "b": {"anyOf": [{"type": "null"}, True]}}}}, "a?, b?: null"),
        ({"schema": True, "params": 7, "doc": {"de": "Ruf"}}, ""),
        ({"doc": None}, ""),
        ({}, ""),
        (None, ""),
        ("call it", ""),
    ]
    commands = {f"call{number}": told for number, (told, _) in enumerate(told_and_shown)}
    words = "commands", announcing({"language": "own", "commands": commands}), "--level", "1"

    done = snakepit(*words)
    schemas = json.loads(snakepit(*words, "--schema").stdout)

    assert (0, "") == (done.returncode, done.stderr)
    first, _, *lines = (line.rstrip() for line in done.stdout.splitlines())
    assert "own" == first
    assert [f"call{number}    {shown}".rstrip() for number, (_, shown) in enumerate(told_and_shown)] == lines
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("commands", "shown"), [(["a"], "['a']"), (None, "None")])
def test_commands_that_are_no_object(
    snakepit: Snakepit, announcing: Callable[[dict[str, Any]], str], commands: object, shown: str
) -> None:
    """Exit status 1, and what was announced instead."""
    done = snakepit("commands", announcing({"commands": commands}), "--level", "1")

    assert (1, "") == (done.returncode, done.stdout)
    assert f"announces its commands as {shown}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_may_announce_nothing_but_its_level(
    snakepit: Snakepit, announcing: Callable[[dict[str, Any]], str]
) -> None:
    """An empty table, and a sentence for the language."""
    done = snakepit("commands", announcing({}), "--level", "1")

    assert (0, "") == (done.returncode, done.stderr)
    assert "a worker that does not name its language" == done.stdout.splitlines()[0]


def test_doctor_shows_words_as_they_are() -> None:
    """Names, versions, paths and details come from outside: brackets stay, escape sequences do nothing."""
    word = "[/a] [red]b[/red] :smile: \x1b[2J \udcff"
    shown = "[/a] [red]b[/red] :smile: \\x1b[2J \\udcff"
    file = StringIO()
    system: dict[str, Any] = dict.fromkeys(("platform", "registry", "setpriv"), word)
    system |= {"guardian": True, "pidfd": True, "cpu_count": 1, "cpus_of_machine": 1, "open_files_soft": None}
    found = Examination((Finding(word, word, "works", word, word),), system, {word: word}, (word,))

    _doctor._show(make_console(file), found)

    assert 4 + 3 + 2 + 1 == file.getvalue().count(shown)
    assert "\x1b" not in file.getvalue()


def test_what_the_output_cannot_encode_is_escaped() -> None:
    """In a locale without Unicode a word is shown by its numbers."""

    class Ascii(StringIO):
        encoding = "ascii"

    file = Ascii()
    console = make_console(file)
    table = make_table(console, "name")
    table.add_row("na\u00efve")

    console.print(table)
    console.print("\u20ac [/x]")

    assert ["name", "na\\xefve", "\\u20ac [/x]"] == [line.rstrip() for line in file.getvalue().splitlines()]


def test_long_words_of_a_command_line_are_shown_in_part(snakepit: Snakepit) -> None:
    """A program inside a word does not bury the reason."""
    program = f"raise SystemExit(3)  # {'x' * 5000}"

    done = snakepit("run", shlex.join([sys.executable, "-c", program]), "ping")

    assert (3, "") == (done.returncode, done.stdout)
    assert f"ended with exit code 3 before its handshake; command line: {sys.executable} -c raise Sys" in done.stderr
    assert f"... ({len(program)} characters)" in done.stderr
    assert len(done.stderr) < 1500

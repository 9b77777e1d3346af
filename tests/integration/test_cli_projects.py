"""``snakepit new`` writes projects that work; ``snakepit commands`` says what a worker can do."""

from __future__ import annotations

import compileall
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from snakepit._cli import new as _new
from snakepit._cli.new import KINDS

LIMIT_S = 60.0
RUNTIMES = {"go": "go", "javascript": "node", "r": "Rscript"}
HANDLERS = '''
from typing import Optional
from snakepit_bridge import command

@command
def render(markdown: str, width: int = 80, *, title: Optional[str] = None, tags=(), **rest):
    """Render Markdown.

    Slowly."""

@command
def strict(values: "list", scale: float): pass
'''


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder."""
    return subprocess.run(
        words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def snakepit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m snakepit`` in a folder."""
    return run(folder, sys.executable, "-m", "snakepit", *words)


def test_a_new_project_has_nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installer compiles the templates; what it made stays there."""
    templates = tmp_path / "templates"
    shutil.copytree(_new.TEMPLATES, templates, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(templates, quiet=1)
    monkeypatch.setattr(_new, "TEMPLATES", templates)

    _new.write_project(Console(quiet=True), "bridge", str(tmp_path / "project"))

    assert list(templates.rglob("*.pyc"))
    assert [] == list((tmp_path / "project").rglob("__pycache__"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_project_runs_and_passes_its_own_test(
    kind: str, tmp_path: Path, require_runtime: Callable[[str], str]
) -> None:
    """Each kind of project does what its README says, from a directory that did not exist."""
    if kind in RUNTIMES:
        require_runtime(RUNTIMES[kind])

    written = snakepit(tmp_path, "new", kind, "a/project")
    project = tmp_path / "a" / "project"
    main = run(project, sys.executable, "main.py")
    tests = run(project, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")

    assert (0, "") == (written.returncode, written.stderr)
    assert {"README.md", "main.py"} < {path.name for path in project.iterdir()}
    assert (0, "") == (main.returncode, main.stderr)
    assert main.stdout
    assert 0 == tests.returncode, tests.stdout
    assert " passed" in tests.stdout
    for line in re.findall(r"^    snakepit (commands .*)$", (project / "README.md").read_text(), re.MULTILINE):
        listed = snakepit(project, *shlex.split(line))
        assert (0, "") == (listed.returncode, listed.stderr)
        assert "ping" in listed.stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A directory that already has one of the files is refused, and stays as it is."""
    (tmp_path / "main.py").write_text("mine")

    done = snakepit(tmp_path, "new", "python", ".")

    assert 1 == done.returncode
    assert "already has main.py" in done.stderr
    assert ["main.py"] == [path.name for path in tmp_path.iterdir()]
    assert "mine" == (tmp_path / "main.py").read_text()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["cobol", "x"], "'cobol' is not one of"),
        (["python"], "Missing argument 'DIR'"),
        (["python", "/proc/x"], "/proc/x"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, words: list[str], hint: str) -> None:
    """A kind that does not exist, a missing directory name and one that cannot be made are said in words."""
    done = snakepit(tmp_path, "new", *words)

    assert done.returncode in (1, 2)
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_lists_what_the_handshake_announced(tmp_path: Path) -> None:
    """Names, parameters with their types and the first line of the doc, built-in commands included."""
    (tmp_path / "handlers.py").write_text(HANDLERS)

    done = snakepit(tmp_path, "commands", "python", "--handlers", "handlers.py")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}

    assert (0, "") == (done.returncode, done.stderr)
    assert {"compute", "echo", "info", "ping", "render", "strict"} <= lines.keys()
    for words in ("markdown: string", "width?: integer", "title?: string or null", "tags?", "Render Markdown."):
        assert words in lines["render"]
    assert "Slowly" not in done.stdout


def test_commands_as_json_and_as_schema(tmp_path: Path) -> None:
    """--json is the announcement; --schema one JSON Schema a command, by which calls can be checked."""
    import jsonschema

    (tmp_path / "handlers.py").write_text(HANDLERS)
    words = ("commands", "python", "--handlers", "handlers.py")

    announced = json.loads(snakepit(tmp_path, *words, "--json").stdout)
    schemas = json.loads(snakepit(tmp_path, *words, "--schema").stdout)

    assert "python" == announced["language"]
    assert ["markdown", "width", "title", "tags"] == announced["commands"]["render"]["params"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    strict = jsonschema.Draft202012Validator(schemas["strict"])
    assert strict.is_valid({"values": [1], "scale": 0.5})
    for wrong in ({"values": [1]}, {"values": "x", "scale": 1}, {"values": [], "scale": 1, "more": 1}):
        assert not strict.is_valid(wrong)
    assert jsonschema.Draft202012Validator(schemas["render"]).is_valid({"markdown": "", "title": None, "more": 1})


def test_commands_of_node_have_no_types(tmp_path: Path, node: str) -> None:
    """Where the language tells no types the schema names the parameters alone."""
    schemas = json.loads(snakepit(tmp_path, "commands", "node", "--schema").stdout)

    assert {"operation", "a", "b"} == schemas["compute"]["properties"].keys()
    assert "required" not in schemas["compute"]


def test_a_worker_of_level_0_announces_nothing(tmp_path: Path) -> None:
    """Exit status 1 and a sentence, not an empty table."""
    from snakepit._bridges import bridge_path

    done = snakepit(tmp_path, "commands", f"{sys.executable} {bridge_path('python/snakepit_bridge.py')}")

    assert (1, "") == (done.returncode, done.stdout)
    assert "level 0" in done.stderr
    assert "1 if the worker announces nothing" in " ".join(snakepit(tmp_path, "commands", "--help").stdout.split())


def test_commands_of_what_does_not_start(tmp_path: Path) -> None:
    """A handlers file with an error is told with its message; exit status 3."""
    (tmp_path / "handlers.py").write_text("raise ValueError('no model here')")

    done = snakepit(tmp_path, "commands", "python", "--handlers", "handlers.py")

    assert 3 == done.returncode
    assert "no model here" in done.stderr

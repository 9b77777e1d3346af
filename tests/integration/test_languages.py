"""Each language through the pool: the same calls, the same guarantees, the same mistakes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from integration.workers.languages import LANGUAGES, Language
from integration.workers.pools import LIMIT_S, config

from snakepit import (
    CommandError,
    CommandTimeout,
    PHPAdapter,
    ResultError,
    RubyAdapter,
    SessionLost,
    SnakepitExecutor,
    UnknownCommand,
    WorkerDied,
    WorkerStartError,
)


class Project(NamedTuple):
    """A language and a place for its files."""

    language: Language
    folder: Path
    program: str

    def file(self, text: str) -> Path:
        path = self.folder / f"handlers{self.language.adapter.suffixes[0]}"
        path.write_text(text)
        return path

    def pool(self, max_workers: int = 1, **options: object) -> SnakepitExecutor:
        adapter = self.language.adapter(self.file(self.language.handlers), start_args={"model": "m1"})
        return SnakepitExecutor(adapter, max_workers, config=config(), **options)  # type: ignore[arg-type]


@pytest.fixture(params=LANGUAGES)
def project(request: pytest.FixtureRequest, tmp_path: Path, require_runtime: Callable[[str], str]) -> Project:
    """Return one language after the other."""
    language = LANGUAGES[request.param]
    return Project(language, tmp_path, require_runtime(language.adapter.runtime.programs[0]))


def test_calls_results_errors_and_sessions(project: Project) -> None:
    """What every user does first works the same in every language."""
    with project.pool(2) as ex:
        assert 5 == ex.execute("add", {"a": 2, "b": 3})
        assert [n + 1 for n in range(50)] == list(ex.map("add", [{"a": n} for n in range(50)]))
        assert "m1" == ex.execute("started")
        with ex.session("s") as session:
            assert [1, 2, 3] == [session.execute("count") for _ in range(3)]
        assert 1 == ex.execute("count")

        error = ex.submit("fail", {"message": "no such thing"}).exception(LIMIT_S)
        assert isinstance(error, CommandError)
        assert ("handler_error", project.language.kind) == (error.code, error.type)
        assert "no such thing" in error.message
        assert error.remote_traceback

        missing = ex.submit("no_such").exception(LIMIT_S)
        assert isinstance(missing, UnknownCommand)
        assert str(missing).startswith("Unknown command: 'no_such'. Available: add, ")
        assert 0 == ex.stats().restarts


def test_a_result_that_json_cannot_carry(project: Project) -> None:
    """NaN in a result is a ResultError with its path, and the worker lives on."""
    with project.pool() as ex:
        error = ex.submit("bad").exception(LIMIT_S)
        assert isinstance(error, ResultError)
        assert "result/a/1: NaN is not JSON" in str(error)
        assert 3 == ex.execute("add", {"a": 1, "b": 2})


def test_an_endless_loop_and_a_crash_cost_one_call(project: Project) -> None:
    """A time-out ends the loop, a killed worker is replaced, and a strict session is told of its loss."""
    with project.pool() as ex:
        assert isinstance(ex.submit("spin", timeout=0.3).exception(LIMIT_S), CommandTimeout)
        assert 3 == ex.execute("add", {"a": 1, "b": 2})
        assert 1 == ex.execute("count", session="s")
        assert isinstance(ex.submit("die", session="s").exception(LIMIT_S), WorkerDied)
        assert isinstance(ex.submit("count", session="s").exception(LIMIT_S), SessionLost)
        assert 1 == ex.execute("count", session="s")


def test_a_missing_runtime_is_said_before_anything_starts(project: Project, tmp_path: Path) -> None:
    """The names looked for, the PATH and the packages stand in the WorkerStartError of the constructor."""
    kind = project.language.adapter
    with pytest.raises(WorkerStartError) as caught:
        SnakepitExecutor(kind(project.file(project.language.handlers), env={"PATH": str(tmp_path)}))

    text = str(caught.value)
    assert all(repr(name) in text for name in kind.runtime.programs)
    assert f"({tmp_path})" in text
    assert kind.runtime.install["apt"] in text


def test_a_runtime_that_is_too_old(project: Project, tmp_path: Path) -> None:
    """The version found and the one needed are named."""
    kind = project.language.adapter
    told = {"Java": 'openjdk version "1.2.3"', "R": "Rscript (R) version 1.2.3"}
    language = kind.runtime.language
    old = tmp_path / "old"
    old.write_text(f"#!/bin/sh\necho '{told.get(language, f'{language} 1.2.3')}'\n")
    old.chmod(0o755)

    with pytest.raises(WorkerStartError, match=r"1\.2\.3, which is too old; \d+(\.\d+)? or newer is needed"):
        SnakepitExecutor(kind(program=old))


def test_a_runtime_of_another_language(project: Project, tmp_path: Path) -> None:
    """What the program said of itself is shown."""
    kind = project.language.adapter
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho cobc 99.1\n")
    other.chmod(0o755)

    with pytest.raises(
        WorkerStartError, match=rf"other' is not {kind.runtime.language}: asked for its version it said 'cobc 99\.1'"
    ):
        SnakepitExecutor(kind(program=other))


def test_a_handlers_file_that_is_missing(project: Project, tmp_path: Path) -> None:
    """The constructor names the file."""
    path = tmp_path / f"nowhere{project.language.adapter.suffixes[0]}"
    with pytest.raises(WorkerStartError, match=f"no handlers file '{path}'"):
        SnakepitExecutor(project.language.adapter(path))


def test_a_handlers_file_of_another_language(project: Project) -> None:
    """The ending tells, before anything starts."""
    with pytest.raises(ValueError, match=r"handlers must be a .* file, not 'handlers\.cobol'"):
        project.language.adapter("handlers.cobol")


def test_a_syntax_error_has_its_line(project: Project) -> None:
    """The language's own message and line are in the WorkerStartError."""
    adapter = project.language.adapter(project.file(project.language.broken))
    with pytest.raises(WorkerStartError) as caught, SnakepitExecutor(adapter, 1, config=config(restart_budget=1)) as ex:
        ex.wait_ready(timeout=LIMIT_S)

    assert f"handlers{project.language.adapter.suffixes[0]}" in str(caught.value)
    assert "3" in str(caught.value).split("handlers" + project.language.adapter.suffixes[0], 1)[1][:80]


def test_a_command_registered_twice(project: Project) -> None:
    """The worker does not start, and the command is named."""
    adapter = project.language.adapter(project.file(project.language.twice))
    with pytest.raises(WorkerStartError) as caught, SnakepitExecutor(adapter, 1, config=config(restart_budget=1)) as ex:
        ex.wait_ready(timeout=LIMIT_S)

    assert "same" in str(caught.value)
    assert "twice" in str(caught.value)


def test_exit_in_a_php_handler_costs_one_call(tmp_path: Path, require_runtime: Callable[[str], str]) -> None:
    """PHP cannot catch it: that call gets WorkerDied, and no other."""
    require_runtime("php")
    handlers = tmp_path / "handlers.php"
    handlers.write_text("<?php command('leave', function () { exit(3); }); command('stay', function () { return 1; });")

    with SnakepitExecutor(PHPAdapter(handlers), 1, config=config()) as ex:
        for _ in range(3):
            assert isinstance(ex.submit("leave").exception(LIMIT_S), WorkerDied)
            assert 1 == ex.submit("stay").result(LIMIT_S)


def test_arguments_of_the_runtime(tmp_path: Path, require_runtime: Callable[[str], str]) -> None:
    """program_args stand before the bridge's file; what is no list of words is refused."""
    require_runtime("ruby")
    handlers = tmp_path / "handlers.rb"
    handlers.write_text('command("verbose") { $DEBUG }')

    with SnakepitExecutor(RubyAdapter(handlers, program_args=["-d"]), 1, config=config()) as ex:
        assert ex.execute("verbose") is True
    with pytest.raises(TypeError, match="program_args must be a sequence of str"):
        RubyAdapter(handlers, program_args="-d")


def test_the_version_is_asked_for_once(tmp_path: Path) -> None:
    """Pools of the same runtime do not ask again; a replaced program is asked."""
    log = tmp_path / "log"
    program = tmp_path / "ruby"
    program.write_text(f"#!/bin/sh\necho asked >>{log}\necho ruby 3.0.0\n")
    program.chmod(0o755)

    assert [str(program)] * 2 == [RubyAdapter(program=program).argv()[0] for _ in range(2)]
    assert 1 == len(log.read_text().splitlines())
    os.utime(program, ns=(0, 0))
    RubyAdapter(program=program).argv()
    assert 2 == len(log.read_text().splitlines())

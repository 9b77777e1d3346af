"""What is asked of a program before it is started, and what its answer means."""

from __future__ import annotations

from pathlib import Path

import pytest

from snakepit import (
    JavaAdapter,
    JavaScriptAdapter,
    LuaAdapter,
    PerlAdapter,
    PHPAdapter,
    PythonAdapter,
    RAdapter,
    RubyAdapter,
    ScriptAdapter,
    WorkerStartError,
)
from snakepit._adapters.runtimes import Runtime, find_runtime

PICKED_UP = "Picked up JAVA_TOOL_OPTIONS: -XX:ActiveProcessorCount=2"
RUN_TIME_LINE = "OpenJDK Runtime Environment (build 99.0)"


def write(path: Path, *lines: str) -> Path:
    """Write a shell script that can be started."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def find(adapter: type[ScriptAdapter], program: Path) -> str:
    """Look for an adapter's runtime at a path, without any variable."""
    return find_runtime(adapter.runtime, "Kind", str(program), cwd=None, variables={})


@pytest.mark.parametrize(
    ("adapter", "told", "version"),
    [
        (JavaAdapter, f'{PICKED_UP}\nopenjdk version "@" 2025-04-15\n{RUN_TIME_LINE}', "1.8.0"),
        (JavaAdapter, f'java version "@-ea" 2025-04-15 LTS\n{RUN_TIME_LINE}', "16"),
        (JavaScriptAdapter, "(node:7) Warning: 99 options\nv@", "14.21.3"),
        (LuaAdapter, "Lua @  Copyright (C) 1994-2022 Lua.org, PUC-Rio", "5.2.4"),
        (PHPAdapter, "PHP Warning:  Module 99 is loaded in Unknown on line 0\nPHP @ (cli)", "7.4.33"),
        (PerlAdapter, "perl: warning: 99 locales\nperl v@", "5.8.8"),
        (PythonAdapter, "Python @ (0123456789ab, Jan 01 2023)\n[PyPy 7.3.11]", "3.7.9"),
        (RAdapter, "Rscript (R) version @ Patched (2022-11-10 r83330)", "3.6.3"),
        (RAdapter, "R scripting front-end version @ (2021-11-01)", "3.6.3"),
        (RubyAdapter, "ruby @p20 (2022-04-12 revision 4491bb740a) [x86_64-linux]", "2.6.10"),
        (RubyAdapter, "jruby 99.4.5.0 (@) 2023-11-02 1abae2700f OpenJDK", "2.6.10"),
        (RubyAdapter, "truffleruby 99.1.1, like ruby @, GraalVM CE Native", "2.6.10"),
    ],
)
def test_the_version_stands_where_the_language_says_it(
    tmp_path: Path, adapter: type[ScriptAdapter], told: str, version: str
) -> None:
    """Other numbers, before or after it, are no versions."""
    old, new = (
        write(tmp_path / name, f"cat <<'END'\n{told.replace('@', number)}\nEND")
        for name, number in (("old", version), ("new", "98.7"))
    )

    assert str(new) == find(adapter, new)
    with pytest.raises(WorkerStartError, match=rf"old' is {adapter.runtime.language} {version}, which is too old"):
        find(adapter, old)


def test_without_a_signature_the_first_number_is_the_version(tmp_path: Path) -> None:
    """So an adapter of one's own needs none."""
    runtime = Runtime("Guile", ("guile",), (3, 0), {})
    program = write(tmp_path / "guile", "echo 'guile2 (GNU Guile) 2.2.7'")

    with pytest.raises(WorkerStartError, match=r"is Guile 2\.2\.7, which is too old; 3\.0 or newer"):
        find_runtime(runtime, "Kind", str(program), cwd=None, variables={})


def test_a_program_that_tells_no_number(tmp_path: Path) -> None:
    """Its start will say what is wrong."""
    for place, line in enumerate(("true", "false", "echo hello", "echo ruby 1.0 && false")):
        assert find(RubyAdapter, write(tmp_path / f"program{place}", line))


def test_a_shim_is_asked_with_the_workers_variables_and_directory(tmp_path: Path) -> None:
    """What it chooses by them is what the worker will be; another choice is asked for anew."""
    shim = write(tmp_path / "ruby", "read -r chosen 2>/dev/null <.ruby-version", 'echo "ruby ${CHOSEN:-$chosen}"')
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, version in ((old, "2.3.1"), (new, "3.2.1")):
        folder.mkdir()
        (folder / ".ruby-version").write_text(f"{version}\n")

    RubyAdapter(program=shim, env={"CHOSEN": "3.1.2"}).argv()
    RubyAdapter(program=shim, cwd=new).argv()
    for options, version in (({"cwd": old}, "2.3.1"), ({"env": {"CHOSEN": "2.2.2"}, "cwd": new}, "2.2.2")):
        with pytest.raises(WorkerStartError, match=f"is Ruby {version}, which is too old"):
            RubyAdapter(program=shim, **options).argv()  # type: ignore[arg-type]


def test_a_shim_is_asked_with_the_variables_that_a_worker_inherits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's own are not the worker's."""
    shim = write(tmp_path / "ruby", 'echo "ruby ${CHOSEN:-2.3.1}"')
    monkeypatch.setenv("CHOSEN", "3.1.2")

    RubyAdapter(program=shim).argv()
    with pytest.raises(WorkerStartError, match=r"is Ruby 2\.3\.1, which is too old"):
        RubyAdapter(program=shim, inherit_env=False).argv()


def test_a_refusal_is_not_kept(tmp_path: Path) -> None:
    """What a shim chooses can change while the shim does not; what was good is not asked for again."""
    chosen = tmp_path / "chosen"
    asked = tmp_path / "asked"
    shim = write(tmp_path / "ruby", f"read -r chosen <{chosen}", f"echo >>{asked}", 'echo "ruby $chosen"')
    chosen.write_text("2.3.1\n")
    with pytest.raises(WorkerStartError, match="too old"):
        find(RubyAdapter, shim)
    chosen.write_text("3.1.2\n")

    assert [str(shim)] * 2 == [find(RubyAdapter, shim) for _ in range(2)]
    assert "\n\n" == asked.read_text()


def test_where_the_hosts_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is asked there all the same."""
    program = write(tmp_path / "ruby", "echo ruby 2.3.1")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(WorkerStartError, match="too old"):
        find(RubyAdapter, program)

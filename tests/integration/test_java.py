"""Java workers: what is compiled when and where, class paths, options of the JVM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from integration.workers.pools import config

from snakepit import JavaAdapter, SnakepitExecutor, WorkerStartError

HANDLERS = """
import snakepit.SnakepitBridge.*;

public class Handlers {
    @Command long memory() { return Runtime.getRuntime().maxMemory(); }
    @Command String property(String name) { return System.getProperty(name); }
}
"""


@pytest.fixture
def java(require_runtime: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have Java and an empty cache; return a folder for files."""
    require_runtime("java")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(folder: Path, text: str = HANDLERS, name: str = "Handlers.java") -> Path:
    """Write a source file."""
    path = folder / name
    path.write_text(text)
    return path


def builds(folder: Path) -> list[str]:
    """Return the names of what is in the cache."""
    return sorted(path.name for path in (folder / "cache" / "snakepit" / "java").iterdir() if path.is_dir())


def test_sources_are_compiled_once(java: Path) -> None:
    """For the same text, by whichever of many callers; another text is another build."""
    path = write(java)
    with ThreadPoolExecutor(4) as threads:
        lines = set(threads.map(lambda _: JavaAdapter(path).argv(), range(4)))
    made = {found: found.stat().st_mtime_ns for found in java.glob("cache/snakepit/java/*/[!r]*")}

    JavaAdapter(path).argv()

    assert 1 == len(lines)
    assert made == {found: found.stat().st_mtime_ns for found in java.glob("cache/snakepit/java/*/[!r]*")}
    write(java, HANDLERS + "// changed\n")
    JavaAdapter(path).argv()
    assert 2 == len(builds(java))


def test_snakepit_commands_shows_types(java: Path) -> None:
    """In the table and as JSON Schema; an Optional has a question mark."""
    command = '@Command(doc = "Greet.") String greet(String name, int[] sizes, Optional<Integer> times) { return ""; }'
    body = "import java.util.*; import snakepit.SnakepitBridge.*; class Handlers { %s }"
    words = [sys.executable, "-m", "snakepit", "commands", "java", "--handlers", str(write(java, body % command))]
    table, text = (
        subprocess.run([*words, *more], capture_output=True, text=True, timeout=100, check=True).stdout
        for more in ([], ["--schema"])
    )

    (line,) = (line for line in table.splitlines() if line.split()[:1] == ["greet"])
    assert "name: string or null, sizes: array or null, times?: integer or null" in line
    schema = json.loads(text)["greet"]
    assert "Greet." == schema["description"]
    assert ["name", "sizes"] == schema["required"]
    assert ["name", "sizes", "times"] == list(schema["properties"])


def test_mistake_in_the_source_is_said_by_the_constructor(java: Path) -> None:
    """With javac's words and line, before anything starts; nothing of it stays in the cache."""
    path = write(java, HANDLERS.replace("return Runtime", "return Rundtime"))

    with pytest.raises(WorkerStartError) as caught:
        SnakepitExecutor(JavaAdapter(path))

    text = str(caught.value)
    assert text.startswith(f"JavaAdapter: the handlers cannot be compiled:\n{path}:5: error: ")
    assert "proprietary" not in text
    assert [] == builds(java)


def test_source_without_a_command(java: Path) -> None:
    """It is said at once."""
    path = write(java, "class Handlers { int x() { return 1; } }")

    with pytest.raises(WorkerStartError, match=r"no method in .* is annotated with @Command"):
        JavaAdapter(path).argv()


def test_options_of_the_jvm(java: Path) -> None:
    """They reach it, and stdin to stderr are as for any worker."""
    adapter = JavaAdapter(write(java), java_options=["-Xmx48m", "-Dgreeting=hello"])

    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        assert "hello" == ex.execute("property", {"name": "greeting"})
        assert ex.execute("memory") <= 48 << 20


def test_jar_with_a_class_path(java: Path) -> None:
    """Commands in a jar, of a class that uses another jar in a folder."""
    sources = java / "src"
    library = java / "lib"
    for folder in (sources, library):
        folder.mkdir()
    greeter = 'public class Greeter { public static String greet() { return "hi"; } }'
    write(sources, f"package lib; {greeter}", "Greeter.java")
    method = "@snakepit.SnakepitBridge.Command String greet() { return lib.Greeter.greet(); }"
    write(sources, f"package app; public class Commands {{ {method} }}", "Commands.java")
    (bridge,) = (word for word in JavaAdapter().argv() if word.endswith("worker.jar"))
    classes = str(java / "classes")
    subprocess.run(
        ["javac", "-parameters", "-d", classes, "-cp", bridge, *map(str, sources.glob("*.java"))],
        check=True,
        capture_output=True,
    )
    for jar, package in (("lib/lib.jar", "lib"), ("commands.jar", "app")):
        subprocess.run(["jar", "cf", str(java / jar), "-C", classes, package], check=True, capture_output=True)

    adapter = JavaAdapter(java / "commands.jar", class_path=[library / "*"])

    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        assert "hi" == ex.execute("greet")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"java_options": "-Xmx1g"}, TypeError, r"java_options must be a sequence of str, e\.g\. \['-Xmx512m'\]"),
        ({"class_path": "a.jar"}, TypeError, "class_path must be a sequence of str"),
        ({"class_path": ["a.jar:b.jar"]}, ValueError, "class_path: one path an entry, not '.*a.jar:b.jar'"),
        ({"class_path": ["missing.jar"]}, WorkerStartError, "class_path: there is no '.*missing.jar'"),
    ],
)
def test_bad_parameters(java: Path, parameters: dict[str, object], error: type[Exception], message: str) -> None:
    """They are named, with what was given."""
    with pytest.raises(error, match=message):
        JavaAdapter(**parameters).argv()  # type: ignore[arg-type]


def test_java_without_a_compiler(java: Path) -> None:
    """What is missing and what to install stand in the error."""
    bare = java / "bin" / "java"
    bare.parent.mkdir()
    bare.write_text('#!/bin/sh\necho \'openjdk version "17.0.1"\'\n[ "$1" != -m ]\n')
    bare.chmod(0o755)

    with pytest.raises(WorkerStartError, match=r"has no compiler \(it is a JRE\).*apt install default-jdk-headless"):
        JavaAdapter(write(java), env={"PATH": str(bare.parent)}).argv()


def test_builds_that_nobody_uses_are_removed(java: Path) -> None:
    """A new build removes those that were not asked for in a month, and no other."""
    kept, unused = (java / "cache" / "snakepit" / "java" / name for name in ("kept", "unused"))
    for folder in (kept, unused):
        folder.mkdir(mode=0o700, parents=True)
        (folder / "ready").touch()
    os.utime(unused / "ready", (0, 0))
    unused.parent.chmod(0o700)

    JavaAdapter().argv()

    assert (True, False) == (kept.exists(), unused.exists())


def test_cache_that_others_may_write_to(java: Path) -> None:
    """Code from there would run as the user."""
    folder = java / "cache" / "snakepit" / "java"
    folder.mkdir(parents=True)
    folder.chmod(0o777)

    with pytest.raises(WorkerStartError, match=r"others may write to .*set XDG_CACHE_HOME"):
        JavaAdapter().argv()


def test_cache_that_cannot_be_made(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place and the way out are named."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(java)))

    with pytest.raises(WorkerStartError, match=r"no place for compiled classes: .*set XDG_CACHE_HOME"):
        JavaAdapter().argv()

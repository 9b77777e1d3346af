"""What ``snakepit doctor`` concludes from the interpreters that it finds."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from snakepit._cli.doctor import Finding, examine, find_pythons
from snakepit._supervision.spawn import find_setpriv

PYTHON_3_9 = (
    'if [ "$1 $#" = "-c 2" ]; then echo 3.9.1; echo /nowhere/python3.9; else echo "no codec" >&2; exit 1; fi'
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the one directory of PATH, empty."""
    find_setpriv()  # is found once a process, and other tests need it
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def write_script(path: Path, body: str) -> str:
    """Write an executable shell script and return its path."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def finding_of(name: str, python: str = sys.executable) -> Finding:
    """Return what is found out about one interpreter."""
    [finding] = [finding for finding in examine(python).runtimes if finding.name == name]
    return finding


def test_pythons_of_path_in_order(path: Path) -> None:
    """Every python3 and python3.N counts, by version, and nothing that only looks alike or cannot run."""
    for name in ("python3.10", "python3.9", "python3", "python3-config", "python3.11m", "python2"):
        write_script(path / name, "exit 0")
    (path / "python3.12").write_text("")
    (path / "python3.13").mkdir()

    found = find_pythons()

    assert [str(path / name) for name in ("python3", "python3.9", "python3.10")] == found


def test_python_that_works(path: Path) -> None:
    """This Python's workers work, and nothing has to be done about it."""
    examination = examine()

    assert examination.ok
    assert examination.system["guardian"]
    assert ("works", "") == (examination.runtimes[0].status, examination.runtimes[0].advice)


def test_second_name_of_one_python_is_left_out(path: Path) -> None:
    """A program that says it is this very Python is not listed again."""
    write_script(path / "python3", f'exec {sys.executable} "$@"')

    examination = examine()

    assert ["this Python"] == [finding.name for finding in examination.runtimes if "ython" in finding.name]


def test_python_whose_worker_does_not_start(path: Path, tmp_path: Path) -> None:
    """An interpreter that runs, but not as a worker, fails with what it wrote and a next step."""
    python = write_script(tmp_path / "broken", PYTHON_3_9)

    examination = examine(python)

    this = examination.runtimes[0]
    assert not examination.ok
    assert ("fails", "3.9.1") == (this.status, this.version)
    assert "exit code 1" in this.detail and "no codec" in this.detail
    assert examination.next_steps[0] == this.advice
    assert f"{python} " in this.advice and "snakepit_bridge.py" in this.advice


def test_python_that_does_not_run(path: Path, tmp_path: Path) -> None:
    """This Python not running at all is the first of the next steps."""
    python = write_script(tmp_path / "broken", "echo cannot run >&2; exit 9")

    examination = examine(python)

    assert not examination.ok
    assert ("does not run", "exit code 9: cannot run") == (
        examination.runtimes[0].status,
        examination.runtimes[0].detail,
    )
    assert examination.next_steps[0].startswith(python)


def test_shim_that_does_not_run(path: Path) -> None:
    """Another Python that does not run hurts nobody, but is told of."""
    write_script(path / "python3.12", "echo select a version first >&2; exit 127")

    examination = examine()

    assert examination.ok
    assert "does not run" == finding_of("python3.12").status
    assert [True] == ["python3.12" in step for step in examination.next_steps if "on PATH but" in step]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("echo v12.22.0", "too old", "install Node 16 or newer"),
        ("echo segmentation fault >&2; exit 139", "does not run", "does not run (exit code 139"),
        ("[ $1 = --version ] && echo v20.1.0 || exit 3", "fails", "no worker starts"),
    ],
)
def test_node_that_is_no_use(path: Path, body: str, status: str, said: str) -> None:
    """A Node that is too old, broken, or fails as a worker is reported with what to do."""
    write_script(path / "node", body)

    examination = examine()

    [node] = [finding for finding in examination.runtimes if finding.name == "node"]
    assert examination.ok
    assert status == node.status
    assert said in node.advice
    assert node.advice in examination.next_steps


def test_missing_node(path: Path) -> None:
    """Without Node, the next step says what it is needed for."""
    node = finding_of("node")

    assert ("missing", None) == (node.status, node.path)
    assert "JavaScriptAdapter" in node.advice


def test_old_python_and_other_languages(path: Path) -> None:
    """A Python before 3.8 is too old, and so is an old Ruby; a language without a bridge is told of."""
    write_script(path / "python3.7", "echo 3.7.16; echo /nowhere/python3.7")
    write_script(path / "ruby", "echo 'ruby 2.5.1p57 (2018-03-29 revision 63029) [x86_64-linux]'")
    write_script(path / "julia", "echo julia version 1.9.3")

    found = {finding.name: finding for finding in examine().runtimes}

    assert ("too old", "3.7.16") == (found["python3.7"].status, found["python3.7"].version)
    assert ("too old", "2.5.1") == (found["ruby"].status, found["ruby"].version)
    assert "install Ruby 2.7 or newer" in found["ruby"].advice
    assert ("no bridge", "1.9.3") == (found["julia"].status, found["julia"].version)


def test_a_version_stands_where_the_language_says_it(path: Path) -> None:
    """Numbers before it, and what is said of something else, are no versions; adapters read it in the same way."""
    picked_up = "Picked up JAVA_TOOL_OPTIONS: -Dx=1.2"
    write_script(path / "java", f"""echo '{picked_up}' >&2; echo 'openjdk version "99.0.1"' >&2""")
    write_script(path / "ruby", "echo 'warning: 1.2.3 gems' >&2; echo 'ruby 99.1.1p57'")
    write_script(path / "perl", "echo 'no perl 1.2.3 at all'")
    write_script(path / "php", "echo 'PHP 8.0alpha'")

    found = {finding.name: finding for finding in examine().runtimes}

    assert ("fails", "99.0.1") == (found["java"].status, found["java"].version)
    assert ("fails", "99.1.1") == (found["ruby"].status, found["ruby"].version)
    assert ("fails", "no perl 1.2.3 at all") == (found["perl"].status, found["perl"].version)
    assert "is not Perl" in found["perl"].detail
    assert "8.0" == found["php"].version


def test_few_open_files(path: Path) -> None:
    """A low limit of open files is reported with the command that raises it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = max(int(name) for name in os.listdir("/dev/fd")) + 30

    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest if lowest < 70 else 64, hard))
    try:
        steps = examine().next_steps
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [True] == ["ulimit -n" in step for step in steps if "open files" in step]

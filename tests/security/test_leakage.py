"""What is the host's stays with the host: variables, descriptors, arguments; and nothing is left in files."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from integration import scripts
from integration.workers import pools

from snakepit import PythonAdapter, SnakepitExecutor, telemetry

SECRET = "tr0ub4dor-and-3"  # noqa: S105  # what must not be seen

HANDLERS = """
import os
from snakepit_bridge import command

@command
def variables():
    return dict(os.environ)

@command
def descriptors():
    return {fd: os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")
            if os.path.lexists("/proc/self/fd/" + fd)}

@command
def keep(password):
    return {"password": password}

@command
def fail(password):
    raise KeyError("no such user")
"""


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    """A handlers file with commands that tell what the worker can see."""
    folder = tmp_path / "handlers"
    folder.mkdir()
    (folder / "handlers.py").write_text(HANDLERS)
    return folder / "handlers.py"


def test_variables_of_the_host_can_be_kept_from_workers(
    handlers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``inherit_env=False`` a worker has what the adapter gives and what the pool needs, nothing else."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    adapter = PythonAdapter(handlers, inherit_env=False, env={"LANG": "C.UTF-8"})
    with SnakepitExecutor(adapter, 1, config=pools.QUICK) as ex:
        seen = ex.execute("variables", {})

    assert SECRET not in str(seen)
    foreign = {name for name in seen if not name.startswith("SNAKEPIT_") and not name.endswith("_THREADS")}
    assert foreign <= {"LANG", "LC_CTYPE"}


def test_descriptors_of_the_host_stay_with_the_host(handlers: Path, tmp_path: Path) -> None:
    """A worker holds its own pipes and no file or socket of the host, not even one marked inheritable."""
    with socket.socket() as listener, (tmp_path / "private").open("w") as file:
        os.set_inheritable(listener.fileno(), True)
        os.set_inheritable(file.fileno(), True)
        with SnakepitExecutor(PythonAdapter(handlers), 1, config=pools.QUICK) as ex:
            seen = ex.execute("descriptors", {})

    kinds = [target for target in seen.values() if not target.startswith("pipe:")]
    assert set(kinds) <= {os.devnull, f"/proc/{os.getpid()}/fd"} | {target for target in kinds if "/proc/" in target}
    assert not any("socket:" in target or "private" in target for target in seen.values())


def test_arguments_and_results_are_in_no_log_repr_or_error(
    handlers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With everything logged, watched and printed, a secret argument is nowhere but in its own result."""
    shown: list[str] = []

    def watch(event: str, measurements: Any, metadata: Any) -> None:
        shown.append(f"{event} {measurements!r} {metadata!r}")

    args = {"password": SECRET}
    telemetry.attach_many("watch", tuple(telemetry.EVENTS), watch)
    try:
        with caplog.at_level(logging.DEBUG), SnakepitExecutor(PythonAdapter(handlers), 1, config=pools.QUICK) as ex:
            future = ex.submit("keep", args, session="s", timeout=pools.LIMIT_S)
            shown += [repr(future), repr(ex), repr(ex.stats()), repr(ex.workers())]
            assert args == future.result(pools.LIMIT_S)
            for command, wrong in (("fail", args), ("unknown", args), ("keep", {"pass": SECRET, **args})):
                error = ex.submit(command, wrong).exception(pools.LIMIT_S)
                shown += [repr(error), str(error)]
            with pytest.raises(ValueError, match="set is not a JSON type") as caught:
                ex.submit("keep", {"password": {SECRET}})
            shown.append(str(caught.value))
            os.kill(ex.workers()[0].pid or 0, 9)
            shown.append(repr(ex.submit("keep", args).exception(pools.LIMIT_S)))
    finally:
        telemetry.detach("watch")

    assert [] == [text for text in [*shown, caplog.text] if SECRET in text]
    assert any("snakepit.worker.request" in text for text in shown)


FILES = """
import os, sys
from snakepit import PythonAdapter, SnakepitExecutor
with SnakepitExecutor(PythonAdapter(), 2) as ex:
    ex.map("echo", [{}] * 10)
    ex.execute("echo", {})
with SnakepitExecutor(2) as ex:
    list(ex.map(abs, range(10)))
"""


def test_nothing_is_left_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that used pools leaves no file behind: not in its directory, its home, or that for temporary files."""
    places = {name: tmp_path / name for name in ("home", "tmp", "cwd", "runtime")}
    for place in places.values():
        place.mkdir(mode=0o700)
    program = tmp_path / "program"
    program.mkdir()
    monkeypatch.setenv("HOME", str(places["home"]))
    monkeypatch.setenv("TMPDIR", str(places["tmp"]))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places["runtime"]))
    monkeypatch.delenv("SNAKEPIT_REGISTRY", raising=False)

    done = scripts.run(program, FILES, cwd=places["cwd"])

    assert (0, "", "") == scripts.text_of(done)
    left = [path for place in places.values() for path in place.rglob("*") if path.is_file()]
    assert [] == left

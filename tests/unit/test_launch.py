"""The command line of a worker, and how it starts from bytecode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from snakepit import CallableAdapter, CommandAdapter, PythonAdapter, WorkerSpec
from snakepit._bridges import bridge_path
from snakepit._core.lanes import Lane
from snakepit._core.model import Slot, Worker
from snakepit._pool.launch import Launcher
from snakepit._supervision.spawn import SpawnSpec
from snakepit.adapters import Adapter

BOUND_S = 30
BRIDGE = str(bridge_path("python/snakepit_bridge.py"))


def launched(adapter: Adapter, preparation: Any = None) -> tuple[SpawnSpec, tuple[str, ...]]:
    """Return (what is spawned, the command line as it is told)."""
    launcher = Launcher(adapter, "pool", preparation)
    slot = Slot(0)
    slot.incarnation = 1
    worker = Worker("pool-0-1", slot, Lane(), 0.0)
    spec, release = launcher.spec_for(worker)()
    release()
    return spec, launcher.started_with("pool-0-1")[0]


class Checked(PythonAdapter):
    """Notes what its ``wrap`` is given."""

    seen: tuple[str, ...] = ()
    insert: Sequence[str] = ()

    def wrap(self, argv: tuple[str, ...], worker: WorkerSpec) -> Sequence[str]:
        self.seen = argv
        return ["/usr/bin/env", argv[0], *self.insert, *argv[1:]]


@pytest.mark.parametrize("adapter", [PythonAdapter(), CallableAdapter()], ids=lambda adapter: type(adapter).__name__)
def test_the_python_bridge_is_imported(adapter: Adapter) -> None:
    """It starts from bytecode, under a command line that names it, and is told as the script that it is."""
    spec, told = launched(adapter)

    assert (sys.executable, "-c") == spec.argv[:2]
    assert adapter.argv() == (spec.argv[0], *spec.argv[3:]) == told
    assert BRIDGE == spec.argv[3]


def test_a_wrapped_bridge_is_imported_too(tmp_path: Path) -> None:
    """A wrapper sees the script, and may put itself around it; with options between, the script is run as it is."""
    handlers = tmp_path / "h.py"
    handlers.write_text("")
    adapter = Checked(handlers)

    spec, told = launched(adapter)
    adapter.insert = ("-X", "dev")
    with_options, _ = launched(adapter)

    plain = (sys.executable, BRIDGE, "--handlers", str(handlers))
    assert plain == adapter.seen
    assert ("/usr/bin/env", *plain) == told
    assert ("/usr/bin/env", sys.executable, "-c") == spec.argv[:3]
    assert plain[1:] == spec.argv[4:]
    assert ("/usr/bin/env", sys.executable, "-X", "dev", *plain[1:]) == with_options.argv


def test_another_program_is_left_alone(tmp_path: Path) -> None:
    """A script that is not the bridge, or the bridge as an argument of another program, is started as given."""
    script = tmp_path / "snakepit_bridge.py"
    script.write_text("")

    for argv in ([sys.executable, str(script)], [sys.executable, "-B", BRIDGE]):
        spec, _ = launched(CommandAdapter(argv))

        assert tuple(argv) == spec.argv


@pytest.mark.parametrize("safe", ["", "1"])
def test_it_is_found_wherever_it_starts(tmp_path: Path, safe: str) -> None:
    """Nothing in the working directory is taken for the bridge or a module, and the bytecode is kept for the next."""
    for name in ("snakepit_bridge", "select", "decimal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(99)")
    handlers = tmp_path / "elsewhere" / "mine.py"
    handlers.parent.mkdir()
    handlers.write_text(
        "import decimal, sys\n"
        "from snakepit_bridge import command\n"
        "@command\n"
        "def where():\n"
        "    bridge = sys.modules['snakepit_bridge'].__file__\n"
        "    return [sys.argv, sys.path, bridge, sys.modules['__main__'].__name__]\n"
    )
    spec, _ = launched(PythonAdapter(handlers))
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path / "cache"), "PYTHONSAFEPATH": safe}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    request = json.dumps({"id": 1, "command": "where", "args": {}}).encode()

    done = subprocess.run(
        spec.argv,
        input=len(request).to_bytes(4, "big") + request,
        capture_output=True,
        cwd=tmp_path,
        env=env,
        timeout=BOUND_S,
        check=False,
    )

    assert (0, b"") == (done.returncode, done.stderr)
    argv, path, file, main = json.loads(done.stdout[4:])["result"]
    assert [BRIDGE, "--handlers", str(handlers)] == argv
    assert (str(handlers.parent), os.path.dirname(BRIDGE)) == (path[0], path[-1])
    assert "" not in path
    assert (BRIDGE, "__main__") == (file, main)
    assert 1 == len(list((tmp_path / "cache").rglob("snakepit_bridge.*.pyc")))

"""``snakepit doctor``: which interpreters are here, whether their workers work, what the system offers.

Runs on the main thread (versions are asked for on a few more); owns one pool of one worker at a time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import attrs
from rich.console import Console

from .._adapters.runtimes import read_version
from .._supervision.guardian import GUARDIAN
from .._supervision.spawn import find_setpriv
from ..adapters import JavaScriptAdapter, PythonAdapter, ScriptAdapter
from ..config import PoolConfig
from ..errors import SnakepitError
from ..executor import SnakepitExecutor
from .adapter_words import ALIASES
from .orphans import describe_registry
from .terminal import make_table

__all__ = ("Examination", "Finding", "examine", "run_doctor")

PROBE_LIMIT_S = 10.0
"""Arbitrary: a JVM on a cold disk takes seconds to tell its version."""
PINGS = 20
FDS_PER_WORKER = 6
"""Frame pipes, stderr, claim pipe, pidfd: see ``_spawn.start_process``."""
FDS_OF_HOST = 64
"""Arbitrary: what a program has open besides."""
PYTHON_NAME = re.compile(r"python3(\.\d+)?")
PYTHON_PROBE = "import sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.executable)"
LANGUAGES: dict[str, type[ScriptAdapter]] = {
    adapter.runtime.programs[0]: adapter for adapter in ALIASES.values() if adapter is not PythonAdapter
}
OTHERS = {"go": ("version",), "julia": ("--version",)}
"""How programs tell their version that can run a bridge of the user's own."""
DEPENDENCIES = {
    "attrs": "",
    "cloudpickle": "",
    "loky": "",
    "msgspec": "",
    "psutil": "",
    "click": "cli",
    "rich": "cli",
}


@attrs.frozen
class Finding:
    """One interpreter.

    Attributes:
        name: As it is called, e.g. ``"python3.12"``.
        path: Of the program, or None.
        version: As it says, or None.
        status: "works" (a worker has answered), "fails" (it has not), "too old" for the bridge, "no bridge"
            (a bridge of the user's own may run in it), "does not run", or "missing".
        detail: What there is to say.
        handshake_ms: From the pool's start to the worker's readiness, or None.
        ping_ms: Median of some round trips, or None.
        advice: What to do, or "".
    """

    name: str
    path: str | None
    status: str
    version: str | None = None
    detail: str = ""
    handshake_ms: float | None = None
    ping_ms: float | None = None
    advice: str = ""


@attrs.frozen
class Examination:
    """Everything that was found.

    Attributes:
        runtimes: This Python first.
        system: ``{fact: value}``.
        dependencies: ``{distribution: version or None}``.
        next_steps: Advice, the most important first.
    """

    runtimes: tuple[Finding, ...]
    system: dict[str, Any]
    dependencies: dict[str, str | None]
    next_steps: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether workers of this Python work."""
        return self.runtimes[0].status == "works"


def run_doctor(console: Console, as_json: bool) -> int:
    """Examine this machine and print what was found; return 0 if this Python's workers work, else 1."""
    found = examine()
    if as_json:
        report = {"ok": found.ok, "snakepit": version("snakepit-pool"), **attrs.asdict(found)}
        console.file.write(json.dumps(report, indent=2) + "\n")
    else:
        _show(console, found)
    return 0 if found.ok else 1


def examine(python: str = sys.executable) -> Examination:
    """Look at this machine.

    Args:
        python: The interpreter that has to work.
    """
    paths = [("this Python", python), *((os.path.basename(path), path) for path in find_pythons())]
    programs = [*LANGUAGES, *OTHERS]
    with ThreadPoolExecutor(4, thread_name_prefix="snakepit-doctor") as threads:
        pythons = threads.map(lambda item: _probe_python(*item), paths)
        others = threads.map(_probe_program, programs)
        known = set()
        candidates = []
        for finding, executable in pythons:
            if executable not in known:
                candidates.append(finding)
            if executable is not None:
                known.add(executable)
        candidates += others
    system = _system()
    runtimes = []
    for finding in candidates:
        runtimes.append(_handshake(finding, system))
    dependencies = {name: _version_of(name) for name in DEPENDENCIES}
    return Examination(tuple(runtimes), system, dependencies, _next_steps(runtimes, system, dependencies))


def find_pythons() -> list[str]:
    """Return the ``python3`` and ``python3.N`` of PATH, the first of each name, in the order of the names."""
    found: dict[str, str] = {}
    for directory in os.get_exec_path():
        try:
            names = os.listdir(directory or ".")
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name)
            if PYTHON_NAME.fullmatch(name) and os.access(path, os.X_OK) and not os.path.isdir(path):
                found.setdefault(name, path)
    return [
        found[name] for name in sorted(found, key=lambda name: [int(part) for part in name[6:].split(".")])
    ]


# Interpreters ----------------------------------------------------------------------------------------


def _ask(argv: list[str]) -> tuple[str, str, str]:
    """Return (its stdout, its stderr, "") of a program, or ("", "", why it cannot be used)."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", "", f"no answer within {PROBE_LIMIT_S:.0f} s"
    except OSError as error:
        return "", "", error.strerror or str(error)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return "", "", f"exit code {done.returncode}" + (f": {lines[0]}" if lines else "")
    return done.stdout.strip(), done.stderr.strip(), ""


def _probe_python(name: str, path: str) -> tuple[Finding, str | None]:
    """Return the finding, and the program that it is in truth, by which doubles are recognised."""
    printed, _, problem = _ask([path, "-c", PYTHON_PROBE])
    lines = printed.splitlines()
    if problem or len(lines) != 2:
        detail = problem or f"printed {printed[:80]!r}"
        advice = "" if name != "this Python" else f"{path} does not run: reinstall it or use another one"
        return Finding(name, path, "does not run", detail=detail, advice=advice), None
    number, executable = lines
    identity = os.path.join(os.path.realpath(os.path.dirname(executable)), os.path.basename(executable))
    if tuple(map(int, number.split(".")))[:2] < PythonAdapter.runtime.minimum:
        return Finding(name, path, "too old", number, "workers need Python 3.8 or newer"), identity
    return Finding(name, path, "fails", number), _canonical(identity)


def _canonical(path: str) -> str:
    """Follow links inside one directory only: ``python3 -> python3.12`` is one program, a venv's its own."""
    for _ in range(8):
        if not os.path.islink(path):
            break
        target = os.readlink(path)
        if os.sep in target:
            break
        path = os.path.join(os.path.dirname(path), target)
    return path


def _probe_program(name: str) -> Finding:
    kind = LANGUAGES.get(name)
    candidates = (name,) if kind is None else kind.runtime.programs
    path = next((found for found in map(shutil.which, candidates) if found is not None), None)
    if path is None:
        advice = "for JavaScriptAdapter: install Node 16 or newer and put it on PATH" if name == "node" else ""
        return Finding(name, None, "missing", advice=advice)
    name = os.path.basename(path)
    printed, complained, problem = _ask([path, *(OTHERS[name] if kind is None else kind.runtime.version_args)])
    if problem:
        advice = f"{path} does not run ({problem}): reinstall it, or put another one before it on PATH"
        return Finding(name, path, "does not run", detail=problem, advice=advice if name == "node" else "")
    told = f"{printed}\n{complained}".strip()
    first = told.partition("\n")[0][:40] or "?"
    if kind is None:
        match = re.search(r"\d+(\.\d+)+", told)
        said = match.group() if match else first
        return Finding(name, path, "no bridge", said, "any program that speaks the frame protocol: CommandAdapter")
    number = read_version(kind.runtime, told)
    if not number:
        return Finding(name, path, "fails", first)  # its start will say more
    parts = tuple(map(int, number.split(".")))
    oldest = ".".join(map(str, kind.runtime.minimum))
    if parts[: len(kind.runtime.minimum)] < kind.runtime.minimum:
        better = f"install {kind.runtime.language} {oldest} or newer"
        advice = f"{name} {number} at {path} is too old for {kind.__name__}: {better}"
        return Finding(name, path, "too old", number, f"workers need {oldest} or newer", advice=advice)
    return Finding(name, path, "fails", number)


def _handshake(finding: Finding, system: dict[str, Any]) -> Finding:
    """Start a worker of an interpreter that has a bridge and looks usable, and ask it something."""
    if finding.status != "fails" or finding.path is None:
        return finding
    kind = next((kind for kind in LANGUAGES.values() if finding.name in kind.runtime.programs), None)
    adapter = PythonAdapter(python=finding.path) if kind is None else _with_program(kind, finding.path)
    config = PoolConfig(restart_budget=1, worker_init_timeout_s=PROBE_LIMIT_S)
    try:
        began_at = time.perf_counter()
        with SnakepitExecutor(adapter, 1, name="doctor", config=config, timeout=PROBE_LIMIT_S) as executor:
            executor.wait_ready(None)
            handshake_s = time.perf_counter() - began_at
            taken_s = []
            for _ in range(PINGS):
                asked_at = time.perf_counter()
                executor.execute("ping")
                taken_s.append(time.perf_counter() - asked_at)
            system["guardian"] = GUARDIAN.pid is not None
    except (SnakepitError, OSError) as error:
        tail = str(getattr(error, "stderr_tail", "")).strip()
        detail = f"{type(error).__name__}: {error}" + (f"; stderr ends: {tail[-300:]}" if tail else "")
        command = f"{finding.path} {adapter.script_path()} </dev/null"
        advice = f"{finding.name} ({finding.path}): no worker starts; see what this prints: {command}"
        return attrs.evolve(finding, detail=detail, advice=advice)
    return attrs.evolve(
        finding,
        status="works",
        handshake_ms=round(1000 * handshake_s, 1),
        ping_ms=round(1000 * statistics.median(taken_s), 3),
    )


def _with_program(kind: type[ScriptAdapter], path: str) -> ScriptAdapter:
    return JavaScriptAdapter(node=path) if kind is JavaScriptAdapter else kind(program=path)


# The system ------------------------------------------------------------------------------------------


def _system() -> dict[str, Any]:
    import loky

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "platform": platform.platform(),
        "setpriv": find_setpriv(),
        "pidfd": _has_pidfd(),
        "guardian": False,  # until a pool has had one
        "registry": describe_registry(),
        "cpu_count": int(loky.cpu_count()),
        "cpus_of_machine": os.cpu_count(),
        "open_files_soft": None if soft == resource.RLIM_INFINITY else soft,
        "open_files_hard": None if hard == resource.RLIM_INFINITY else hard,
    }


def _has_pidfd() -> bool:
    if not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _next_steps(
    runtimes: list[Finding], system: dict[str, Any], dependencies: dict[str, str | None]
) -> tuple[str, ...]:
    steps = [finding.advice for finding in runtimes if finding.advice]
    broken = [
        finding.name for finding in runtimes[1:] if finding.status == "does not run" and not finding.advice
    ]
    if broken:
        steps.append(
            f"on PATH but not running: {', '.join(broken)}; if a version manager put them there, select these"
            " versions in it, or give PythonAdapter(python=...) the real path"
        )
    for name, found in dependencies.items():
        if found is None:
            extra = DEPENDENCIES[name]
            steps.append(f'{name} is missing: pip install "snakepit-pool{f"[{extra}]" if extra else ""}"')
    soft = system["open_files_soft"]
    if soft is not None and soft < FDS_OF_HOST + FDS_PER_WORKER * 2 * system["cpu_count"]:
        steps.append(
            f"only {soft} open files are allowed, too few for a pool of the default size: ulimit -n 4096"
        )
    if sys.platform == "linux" and system["setpriv"] is None:
        steps.append(
            "setpriv is missing: workers still end with the host, by the guardian; install util-linux >= 2.33"
        )
    if sys.platform == "linux" and not system["pidfd"]:
        steps.append(
            "pidfds are missing (Linux >= 5.3 has them): the end of a worker is noticed a little later"
        )
    return tuple(steps)


def _show(console: Console, found: Examination) -> None:
    console.print(f"snakepit {version('snakepit-pool')} on {found.system['platform']}", soft_wrap=True)
    table = make_table(console, "runtime", "version", "status", ">handshake", ">ping", "path", "")
    for finding in found.runtimes:
        table.add_row(
            finding.name,
            finding.version or "-",
            finding.status,
            "-" if finding.handshake_ms is None else f"{finding.handshake_ms:.0f} ms",
            "-" if finding.ping_ms is None else f"{finding.ping_ms:.2f} ms",
            finding.path or "-",
            finding.detail,
            style={"works": "green", "fails": "red"}.get(finding.status, ""),
        )
    console.print(table)
    system = found.system
    soft = system["open_files_soft"]
    facts = make_table(console, "", "")
    facts.add_row("guardian", "works" if system["guardian"] else "not seen")
    facts.add_row("registry", system["registry"])
    facts.add_row("setpriv", system["setpriv"] or "none")
    facts.add_row("pidfd", "yes" if system["pidfd"] else "no")
    facts.add_row("CPUs", f"{system['cpu_count']} usable of {system['cpus_of_machine']}")
    room = "" if soft is None else f", room for about {max(0, soft - FDS_OF_HOST) // FDS_PER_WORKER} workers"
    facts.add_row("open files", f"{'unlimited' if soft is None else soft}{room}")
    names = ", ".join(f"{name} {number or '(missing)'}" for name, number in found.dependencies.items())
    facts.add_row("dependencies", names)
    console.print(facts)
    for step in found.next_steps:
        console.print(f"- {step}", soft_wrap=True)
    verdict = "workers of this Python work" if found.ok else "WORKERS OF THIS PYTHON DO NOT WORK"
    console.print(verdict, style="green" if found.ok else "bold red")

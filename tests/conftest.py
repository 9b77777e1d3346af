"""What every test gets: the leak check, gates, and the language runtimes it asks for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from missing import HOW_TO_INSTALL, give_up

from gates import Gate
from leaks import assert_no_leaks, take_snapshot

MINIMUM_VERSIONS = {
    "node": ("--version", (16,)),
    "ruby": ("--version", (2, 7)),
    "Rscript": ("--version", (4, 0)),
    "perl": ("-v", (5, 26)),
    "php": ("--version", (8, 0)),
    "java": ("--version", (17,)),
    "lua5.4": ("-v", (5, 3)),
    "lua5.3": ("-v", (5, 3)),
    "go": ("version", (1, 19)),
}

missing_runtimes = pytest.StashKey[set[str]]()

# No deadline: the machine may be busy.  Where a failure must not come by chance, the examples are fixed.
hypothesis.settings.register_profile(
    "snakepit", deadline=None, print_blob=True, derandomize=os.environ.get("CI") == "true"
)
hypothesis.settings.load_profile("snakepit")


def pytest_configure(config: pytest.Config) -> None:
    # Run in the background of a shell without job control, or by nohup; the programs of the tests would inherit it.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    config.stash[missing_runtimes] = set()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    missing = sorted(config.stash[missing_runtimes])
    if missing:
        terminalreporter.section("MISSING LANGUAGE RUNTIMES", red=True, bold=True)
        terminalreporter.line(f"not tested: {', '.join(missing)}; to install them: {HOW_TO_INSTALL}")


@pytest.fixture(autouse=True, scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the registry of this run, and of the hosts that it starts, apart from the user's own."""
    directory = tmp_path_factory.mktemp("registry")
    directory.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNAKEPIT_REGISTRY", str(directory))
        yield directory


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, a thread or a descriptor behind."""
    exemption = request.node.get_closest_marker("no_leak_check")
    if exemption is not None:
        if not exemption.kwargs.get("reason"):
            pytest.fail("no_leak_check needs a reason='...'")
        yield
        return
    before = take_snapshot()
    yield
    assert_no_leaks(before)


@pytest.fixture
def make_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Return a function that makes another gate; all are opened and removed after the test."""
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate(tmp_path, f"gate-{len(gates)}"))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()


@pytest.fixture
def gate(make_gate: Callable[[], Gate]) -> Gate:
    """Return a gate; see ``gates.Gate``."""
    return make_gate()


@pytest.fixture(scope="session")
def require_runtime(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a function that gives the path of a language's program.

    A runtime that is missing or too old skips the test, and the summary says so; with ``CI=true`` it
    fails the test.
    """

    def require(name: str) -> str:
        path = shutil.which(name)
        problem = f"{name} is not on PATH" if path is None else _too_old(name, path)
        if path is None or problem is not None:
            request.config.stash[missing_runtimes].add(name)
            give_up(problem or name)
        return path

    return require


@pytest.fixture(scope="session")
def node(require_runtime: Callable[[str], str]) -> str:
    """Return the path of Node."""
    return require_runtime("node")


@pytest.fixture(scope="session")
def ruby(require_runtime: Callable[[str], str]) -> str:
    """Return the path of Ruby."""
    return require_runtime("ruby")


def _too_old(name: str, path: str) -> str | None:
    if name not in MINIMUM_VERSIONS:
        return None
    option, wanted = MINIMUM_VERSIONS[name]
    done = subprocess.run([path, option], capture_output=True, text=True, timeout=30, check=True)
    number = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    assert number is not None, done
    found = tuple(int(word) for word in number[0].split("."))[: len(wanted)]
    return None if found >= wanted else f"{name} {number[0]} is older than {'.'.join(map(str, wanted))}"

"""What the library depends on is declared, used, and consistent; dangerous calls stand where they are allowed."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from architecture.survey import ROOT, imports_of, modules

DANGEROUS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.fork", "os.kill", "os.killpg",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "yaml.load",
    "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "ctypes.CDLL", "signal.pidfd_send_signal",
}  # fmt: skip
ALLOWED = {  # {module: what it may use}
    "_wire.callables": {"pickle.loads"},  # replies of the callable adapter's own workers
    "_supervision.process": {"os.killpg"},  # the one place that signals a live worker's group
    "_supervision.guardian_main": {"os.killpg"},
    "_cli.demo": {"os.kill"},  # kills one of its own workers, to show what happens
    "_conformance.peer": {"os.killpg"},  # the session of the bridge that it tests
    "_supervision.procfs": {"os.kill", "signal.pidfd_send_signal"},  # exactly one verified process
}


def declared() -> dict[str, set[str]]:
    """Return ``{"": names of install_requires, extra: its names}`` of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    found = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {
        extra: {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in text.split("\n") if line.strip()}
        for extra, text in found.items()
    }


def imported() -> dict[str, set[str]]:
    """Return ``{distribution: modules of the package that import it}``."""
    owners = packages_distributions()
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        by_statement = [entry.name for entry in imports_of(path)]
        by_name = re.findall(r"import_module\(\"([\w.]+)\"\)", path.read_text(encoding="utf-8"))
        for full_name in (*by_statement, *by_name):
            top = full_name.split(".")[0]
            if top not in sys.stdlib_module_names and top not in ("snakepit", "procfs"):
                for distribution in owners.get(top, [top]):
                    found.setdefault(distribution.lower(), set()).add(name)
    return found


def test_what_is_imported_is_declared() -> None:
    """Each imported distribution is required; what only an extra brings is imported by the tools alone."""
    required, extras = declared()[""], declared()

    for distribution, users in imported().items():
        if distribution == "pytest":
            # Whoever writes a pytest test has it.
            assert users == {"testing"}
        elif distribution not in required:
            assert distribution in extras["cli"] | extras["config"], f"{distribution}: not in setup.cfg"
            assert all(name == "cli" or name.startswith("_cli.") for name in users), f"{distribution}: {users}"


def test_what_is_required_is_imported() -> None:
    """No dependency is carried along unused."""
    assert set() == declared()[""] - set(imported())


def test_installed_distributions_fit_together() -> None:
    """Every installed distribution has what it requires, in a version it accepts."""
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", "check")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (0, "No broken requirements found.") == (done.returncode, done.stdout.strip())


@pytest.mark.parametrize("name", modules())
def test_dangerous_functions_stand_where_they_are_allowed(name: str) -> None:
    """Nothing is evaluated, unpickled, signalled or handed to a shell but in the modules named here."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))

    used = {
        text
        for node in ast.walk(tree)
        if isinstance(node, (ast.Attribute, ast.Name)) and (text := ast.unparse(node)) in DANGEROUS
    }
    shells = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) != "False"
    ]

    assert ALLOWED.get(name, set()) == used
    assert [] == shells

"""The wheel, the sdist, the editable install and the plain checkout all work, away from the sources.

With a flat layout the checkout would shadow what was installed, so everything here runs from an empty
directory, on a copy of the sources, in fresh environments.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
COPIED = ("LICENSE", "README.md", "bridges", "pyproject.toml", "setup.cfg", "snakepit")

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]


def run(
    *argv: str | Path, cwd: Path, succeeds: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program without the variables that could lead it back to the checkout."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert succeeds == (done.returncode == 0), f"{argv}\n{done.stdout}\n{done.stderr}"
    return done


def new_environment(directory: Path, *requirement: str) -> Path:
    """Make a virtual environment, install into it, and return its Python."""
    run(sys.executable, "-m", "venv", directory, cwd=directory.parent)
    python = directory / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*pip, *requirement, cwd=directory.parent)
    return python


def check_smoke(python: str | Path, empty: Path, home: Path, bridges: Path, **environment: str) -> None:
    """Run the smoke script in an empty directory; package and bridges must come from where they should."""
    report: dict[str, Any] = json.loads(run(python, SMOKE, cwd=empty, **environment).stdout.splitlines()[-1])

    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    assert home in Path(report["package"]).resolve().parents
    assert bridges.resolve() / "python" / "snakepit_bridge.py" == Path(report["bridge"])
    assert metadata["metadata"]["version"] == report["version"]
    assert "ok" == report["ping"]["status"]
    assert [1024, 59049] == report["powers"]
    assert "passed" == report["conformance"]


def bridge_files() -> set[str]:
    """Return what of the bridges folder has to be distributed, relative to it."""
    folder = ROOT / "bridges"
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what is built; a build leaves files behind, and finds those of earlier builds."""
    copy = tmp_path_factory.mktemp("sources") / "snakepit-copy"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def distributions(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return ``{"wheel": path, "sdist": path}``; the wheel is built from the sdist, so that is complete."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, sources, cwd=out)
    [wheel] = out.glob("*.whl")
    [sdist] = out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def wheel_python(distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that holds the wheel and no extra."""
    return new_environment(tmp_path_factory.mktemp("wheel") / "env", str(distributions["wheel"]))


def test_wheel_holds_the_package_and_the_bridges(distributions: dict[str, Path]) -> None:
    """Every module and bridge file is in the wheel, with typing mark and licence, and nothing else."""
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        names = set(archive.namelist())
    package = ROOT / "snakepit"
    sources = [path for path in package.rglob("*") if path.suffix in {".py", ".js"}]
    sources += [path for path in (package / "templates").rglob("*") if path.is_file() and path not in sources]
    sources = [path for path in sources if "__pycache__" not in path.parts]
    expected = {f"snakepit/{path.relative_to(package).as_posix()}" for path in sources}
    expected |= {"snakepit/py.typed", *(f"snakepit/bridges/{name}" for name in bridge_files())}

    assert expected == {name for name in names if ".dist-info/" not in name}
    assert [True] == [name.endswith("/LICENSE") for name in names if "LICENSE" in name]


def test_sdist_holds_the_bridges(distributions: dict[str, Path]) -> None:
    """Every bridge file is in the sdist, where the build looks for it."""
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}

    assert set() == {f"bridges/{name}" for name in bridge_files()} - names
    assert set() == {"LICENSE", "pyproject.toml", "setup.cfg"} - names


def test_wheel_works_from_an_empty_directory(wheel_python: Path, tmp_path: Path) -> None:
    """The installed wheel finds its own bridges and runs commands and callables."""
    home = wheel_python.parent.parent.resolve()
    purelib = run(
        wheel_python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    ).stdout.strip()

    check_smoke(wheel_python, tmp_path, home, Path(purelib) / "snakepit" / "bridges")


def test_command_line_without_its_extra_says_what_to_install(wheel_python: Path, tmp_path: Path) -> None:
    """Without click, both entry points fail with the name of the extra and no traceback."""
    for argv in ([wheel_python.with_name("snakepit"), "demo"], [wheel_python, "-m", "snakepit", "demo"]):
        failed = run(*argv, cwd=tmp_path, succeeds=False)

        assert "snakepit-pool[cli]" in failed.stderr
        assert "Traceback" not in failed.stderr


def test_editable_install_works_from_an_empty_directory(sources: Path, tmp_path: Path) -> None:
    """An editable install finds the bridges beside the package."""
    empty = tmp_path / "empty"
    empty.mkdir()
    python = new_environment(tmp_path / "env", "-e", str(sources))

    check_smoke(python, empty, sources.resolve(), sources / "bridges")


def test_plain_checkout_works_from_an_empty_directory(sources: Path, tmp_path: Path) -> None:
    """Sources that are only on the path find the bridges beside the package."""
    check_smoke(sys.executable, tmp_path, sources.resolve(), sources / "bridges", PYTHONPATH=str(sources))

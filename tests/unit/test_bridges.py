"""Where bridge files are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from snakepit import _bridges


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty package folder that the look-up believes to live in."""
    folder = tmp_path / "site" / "snakepit"
    folder.mkdir(parents=True)
    monkeypatch.setattr(_bridges, "__file__", str(folder / "_bridges.py"))
    return folder


def write_bridge(parent: Path) -> Path:
    """Make ``parent/bridges/python/bridge.py`` and return its path."""
    path = parent / "bridges" / "python" / "bridge.py"
    path.parent.mkdir(parents=True)
    path.write_text("")
    return path


def test_installed_bridge_is_inside_the_package(package: Path) -> None:
    """A wheel's bridges folder is part of the package."""
    installed = write_bridge(package)

    found = _bridges.bridge_path("python/bridge.py")

    assert installed.resolve() == found


def test_checkout_bridge_is_beside_the_package(package: Path) -> None:
    """In a checkout or an editable install the bridges folder stands beside the package."""
    beside = write_bridge(package.parent)

    found = _bridges.bridge_path("python/bridge.py")

    assert beside.resolve() == found


def test_installed_bridge_wins(package: Path) -> None:
    """With both places filled, the package's own files are used."""
    installed = write_bridge(package)
    write_bridge(package.parent)

    found = _bridges.bridge_path("python/bridge.py")

    assert installed.resolve() == found


def test_current_directory_is_never_searched(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the right name in the current directory is not found; the error names what was tried."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_bridge(elsewhere)
    monkeypatch.chdir(elsewhere)

    with pytest.raises(FileNotFoundError) as caught:
        _bridges.bridge_path("python/bridge.py")

    tried = [folder / "bridges" / "python" / "bridge.py" for folder in (package, package.parent)]
    assert [True, True] == [str(path.resolve()) in str(caught.value) for path in tried]
    assert str(elsewhere) not in str(caught.value)


@pytest.mark.parametrize("outside", ["/etc/passwd", "../setup.cfg", "python/../../setup.cfg"])
def test_path_outside_the_folder_is_refused(outside: str) -> None:
    """Only files of the bridges folder can be asked for."""
    with pytest.raises(ValueError, match="inside the bridges folder"):
        _bridges.bridge_path(outside)


def test_directory_is_no_bridge(package: Path) -> None:
    """A folder of the asked name is not a file to run."""
    write_bridge(package)

    with pytest.raises(FileNotFoundError):
        _bridges.bridge_path("python")

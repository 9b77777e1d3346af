"""Where builds of Java workers lie: who may write there, and who keeps or removes one; nothing is compiled."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from snakepit import JavaAdapter, WorkerStartError
from snakepit._adapters import java_build
from snakepit._adapters.java_build import Build, Hold

STRANGER = 12345


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a compiler that only writes; return the folder of the builds, which is made."""

    def compile_nothing(build: Build) -> None:
        build.jar.touch()
        build.index.write_text('{"classes": []}')

    monkeypatch.setattr(Build, "_compile", compile_nothing)
    monkeypatch.setattr(Build, "_dump_archive", lambda build: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "snakepit" / "java"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o700)
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\"'\n")
    program.chmod(0o755)
    return folder


def adapter(cache: Path, number: int = 0) -> JavaAdapter:
    """Return an adapter with a build of its own for each number."""
    library = cache.parents[2] / f"lib{number}"
    library.mkdir(exist_ok=True)
    return JavaAdapter(program=cache.parents[2] / "java", class_path=[library])


def build_of(argv: tuple[str, ...]) -> Path:
    """Return the folder of a command line's build."""
    return Path(argv[argv.index("-cp") + 1].split(os.pathsep)[0]).parent


def age(*paths: Path) -> None:
    """Make files as old as can be."""
    for path in paths:
        os.utime(path, (0, 0))


def names(cache: Path) -> set[str]:
    """Return what is in the cache."""
    return {path.name for path in cache.iterdir()}


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file, or a link, that belongs to somebody else."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


def test_a_build_is_kept_as_long_as_its_adapter_lives(cache: Path) -> None:
    """However long ago it was asked for; then it is removed with its lock, and others stay."""
    first, second = adapter(cache), adapter(cache)
    folder = build_of(first.argv())
    assert folder == build_of(second.argv())
    age(folder / "ready")
    del first

    other = build_of(adapter(cache, 1).argv())
    assert {folder.name, other.name} <= names(cache)

    del second
    last = build_of(adapter(cache, 2).argv())
    assert {f"{kept.name}{end}" for kept in (other, last) for end in ("", ".lock")} == names(cache)


def test_a_build_that_is_asked_for_again_is_not_old(cache: Path) -> None:
    """It is kept for the next month."""
    folder = build_of(adapter(cache).argv())
    age(folder / "ready")

    adapter(cache).argv()
    adapter(cache, 1).argv()

    assert folder.name in names(cache)


def test_an_adapter_keeps_the_builds_of_all_its_command_lines(cache: Path) -> None:
    """A pool goes on with the one that it was made with."""
    many = adapter(cache)
    first = build_of(many.argv())
    library = cache.parents[2] / "lib0"
    age(library)
    second = build_of(many.argv())
    age(first / "ready", second / "ready")

    adapter(cache, 1).argv()

    assert first != second
    assert {first.name, second.name} <= names(cache)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_an_adapter_keeps_its_own(cache: Path, copied: Callable[[JavaAdapter], JavaAdapter]) -> None:
    """The end of the one takes nothing from the other."""
    original = adapter(cache)
    folder = build_of(original.argv())
    twin = copied(original)
    del original
    assert folder == build_of(twin.argv())
    age(folder / "ready")

    adapter(cache, 1).argv()

    assert folder.name in names(cache)


def test_a_build_that_is_gone_is_made_again_while_it_is_held(cache: Path) -> None:
    """Whoever removed it: those who hold it keep nobody waiting, and the new one is kept too."""
    user = adapter(cache)
    folder = build_of(user.argv())
    (folder / "ready").unlink()

    assert folder == build_of(user.argv())
    age(folder / "ready")
    adapter(cache, 1).argv()

    assert (folder / "ready").exists()


def test_what_is_left_of_failures_is_removed(cache: Path) -> None:
    """A lock without a build and a build that never was whole, when they are old; not what is being made."""
    for name in ("old", "half", "making"):
        (cache / f"{name}.lock").touch()
        age(cache / f"{name}.lock")
    (cache / "new.lock").touch()
    for name in ("half", "making"):
        (cache / name).mkdir()
    with (cache / "making.lock").open() as making:
        fcntl.flock(making, fcntl.LOCK_EX)

        made = build_of(adapter(cache).argv())

    assert {"new.lock", "making", "making.lock", made.name, f"{made.name}.lock"} == names(cache)


def test_a_lock_that_was_removed_meanwhile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for it takes the one that has its name now."""
    path = cache / "some.lock"
    flock = fcntl.flock
    replaced: list[Any] = []

    def replace_first(fd: int, operation: int) -> None:
        if not replaced:
            path.unlink()
            path.touch()
            replaced.append(path)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)

    fd = java_build._lock(path, fcntl.LOCK_EX, os.O_RDWR | os.O_CREAT)
    held = os.fstat(fd).st_ino
    os.close(fd)

    assert path.stat().st_ino == held


def test_a_build_that_is_removed_while_it_is_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made again."""
    folder = build_of(adapter(cache).argv())
    flock = fcntl.flock

    def remove_first(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (folder / "worker.jar").unlink()
        (folder / "ready").unlink()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)

    assert folder == build_of(adapter(cache).argv())
    assert (folder / "worker.jar").exists()


def test_the_lock_of_a_build_stays_with_the_host(cache: Path) -> None:
    """A worker does not get it, and its end is that of the adapter."""
    before = _open_fds()
    user = adapter(cache)
    user.argv()
    user.argv()

    (fd,) = _open_fds() - before
    assert not os.get_inheritable(fd)
    del user
    assert before == _open_fds()


def _open_fds() -> set[int]:
    found = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the descriptor of the listing itself
            os.fstat(int(name))
            found.add(int(name))
    return found


@pytest.mark.parametrize(
    ("above", "mode"),
    [(0, 0o720), (0, 0o702), (0, 0o1777), (1, 0o720), (1, 0o777), (2, 0o777)],
)
def test_a_folder_that_others_may_write_to(cache: Path, above: int, mode: int) -> None:
    """Code that they put there would run as the user, and so would that of a whole folder which they exchange."""
    folder = (cache, *cache.parents)[above]
    folder.chmod(mode)

    with pytest.raises(WorkerStartError, match=rf"others may write to '{folder}'.*set XDG_CACHE_HOME"):
        adapter(cache).argv()


@pytest.mark.parametrize(("above", "mode"), [(1, 0o1777), (2, 0o1777), (2, 0o775)])
def test_a_folder_above_in_which_nothing_can_be_exchanged(cache: Path, above: int, mode: int) -> None:
    """A sticky one, as /tmp is, or the cache of a user whose group is their own."""
    cache.parents[above - 1].chmod(mode)

    adapter(cache).argv()


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_folder_of_somebody_else(cache: Path, above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may do everything there, whatever its mode."""
    give_away((cache, *cache.parents)[above], monkeypatch)

    with pytest.raises(WorkerStartError, match=rf"others may write to '{cache.parents[1]}.*set XDG_CACHE_HOME"):
        adapter(cache).argv()


def test_a_link_of_somebody_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lead elsewhere tomorrow."""
    folder = cache.parent
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")
    adapter(cache).argv()

    give_away(folder, monkeypatch)

    with pytest.raises(WorkerStartError, match="others may write to"):
        adapter(cache).argv()


@pytest.mark.parametrize("step", ["_compile", "_dump_archive"])
def test_a_full_disk(cache: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a failed start, with the place and the way out, and nothing half made stays."""

    def fail(build: Build) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Build, step, fail)

    with pytest.raises(WorkerStartError, match=rf"no build in '{cache}/.*': .*No space.*; set XDG_CACHE_HOME"):
        adapter(cache).argv()
    assert [] == [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_is_read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is there is used; one that has to be made is a failed start."""

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    folder = build_of(adapter(cache).argv())
    monkeypatch.setattr(os, "utime", refuse)
    assert folder == build_of(adapter(cache).argv())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(WorkerStartError, match=r"no build in .*Read-only.*set XDG_CACHE_HOME"):
        adapter(cache, 1).argv()


def test_sources_that_cannot_be_read(cache: Path) -> None:
    """They are named."""
    missing = str(cache / "Missing.java")

    with pytest.raises(WorkerStartError, match=f"the handlers cannot be read: .*{missing}"):
        Build("Kind", str(cache), missing, (), {}, 17, "jdk")


def test_a_jar_that_is_none(cache: Path) -> None:
    """It is named."""
    handlers = cache / "handlers.jar"
    handlers.write_text("text")
    build = Build("Kind", str(cache), str(handlers), (), {}, 17, "jdk")

    with pytest.raises(WorkerStartError, match=rf"Kind: '{handlers}' is no jar"):
        list(build._classes_with_handlers())


def test_a_hold_of_nothing(cache: Path) -> None:
    """There is no build, and no descriptor."""
    with pytest.raises(FileNotFoundError):
        Hold(cache / "none" / "ready")

"""One child: pipes, environment, exit status, signals to its group, and no descriptor left whatever fails."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from snakepit._supervision import held_fds as _held_fds
from snakepit._supervision import spawn as _spawn
from snakepit._supervision.process import ChildProcess, ExitStatus
from snakepit._supervision.procfs import process_table
from snakepit._supervision.spawn import SpawnSpec, find_setpriv, probe_setpriv, start_process
from snakepit.errors import InternalError

from leaks import wait_until

WAIT_S = 10.0


def sh(script: str, **changes: object) -> SpawnSpec:
    return attrs.evolve(SpawnSpec(("sh", "-c", script), dict(os.environ), level=0), **changes)


def read_all(fd: int) -> bytes:
    """Read a non-blocking pipe to its end."""
    parts = []
    while select.select([fd], [], [], WAIT_S)[0]:
        part = os.read(fd, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise AssertionError(f"no end of file within {WAIT_S} s after {b''.join(parts)!r}")


def finish(child: ChildProcess) -> ExitStatus:
    """Wait for the exit, reap and close."""
    wait_until(child.exited, WAIT_S, "the exit")
    child.kill_group()
    status = child.poll()
    child.close()
    assert status is not None
    return status


def test_level_0_has_its_frames_on_stdin_and_stdout() -> None:
    """A level-0 child reads requests from fd 0 and answers on fd 1."""
    child = start_process(sh("cat; echo oops >&2; exit 3"))
    assert child.channel is not None

    os.write(child.channel.request_fd, b"frame")
    fds = child.release_channel_fds()
    os.close(fds.request_fd)

    assert b"frame" == read_all(fds.reply_fd)
    assert child.stderr_fd is not None
    assert b"oops\n" == read_all(child.stderr_fd)
    assert (None, None) == (fds.claim_read_fd, fds.claim_write_fd)
    os.close(fds.reply_fd)
    assert ExitStatus(code=3) == finish(child)


def test_level_1_names_its_pipes_and_keeps_the_standard_streams_free() -> None:
    """A level-1 child has frames on named pipes, the null device as fd 0 and the stderr pipe as fd 1."""
    script = """
import os
read, write = map(int, os.environ["SNAKEPIT_FDS"].split(","))
claim = int(os.environ["SNAKEPIT_CLAIM_FD"])
assert b"" == os.read(0, 1)
print("printed", flush=True)
os.write(write, os.read(read, 100) + os.read(claim, 100) + str(os.get_blocking(claim)).encode())
"""
    spec = SpawnSpec((sys.executable, "-c", script), {**os.environ, "SNAKEPIT_FDS": "stale"})
    child = start_process(spec)
    fds = child.release_channel_fds()
    assert fds.claim_write_fd is not None

    os.write(fds.claim_write_fd, b"claim ")
    os.write(fds.request_fd, b"request ")

    assert b"request claim False" == read_all(fds.reply_fd)
    assert child.stderr_fd is not None
    assert b"printed\n" == read_all(child.stderr_fd)
    for fd in attrs.astuple(fds):
        assert (False, False) == (os.get_blocking(fd), os.get_inheritable(fd))
        os.close(fd)
    assert ExitStatus(code=0) == finish(child)


def test_inherited_output_goes_to_the_hosts_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """With output="inherit", fd 1 of a level-1 child is the host's."""
    child = start_process(sh("echo printed", level=1, output="inherit"))

    status = finish(child)

    assert ExitStatus(code=0) == status
    assert "printed\n" == capfd.readouterr().out


def test_level_0_drops_inherited_frame_variables() -> None:
    """A level-0 child of a host that is itself a worker does not see the host's own frame descriptors."""
    env = {**os.environ, "SNAKEPIT_FDS": "7,8", "SNAKEPIT_CLAIM_FD": "9"}
    child = start_process(sh('echo "${SNAKEPIT_FDS-none}${SNAKEPIT_CLAIM_FD-none}"', env=env))
    assert child.channel is not None

    assert b"nonenone\n" == read_all(child.channel.reply_fd)

    finish(child)


def test_extra_descriptors_reach_the_child(tmp_path: Path) -> None:
    """pass_fds are open in the child under the same numbers."""
    with (tmp_path / "note").open("w+") as note:
        fd = note.fileno()
        argv = (sys.executable, "-c", f"import os; os.write({fd}, b'note')")
        child = start_process(SpawnSpec(argv, dict(os.environ), pass_fds=(fd,)))

        status = finish(child)

        assert ExitStatus(code=0) == status
        note.seek(0)
        assert "note" == note.read()


def test_a_host_without_standard_streams_can_still_spawn() -> None:
    """Pipes never take the numbers 0 to 2, even where the host has closed them."""
    script = """
import os, sys
sys.path.insert(0, sys.argv[1])
report = os.dup(1)
from snakepit._supervision.spawn import SpawnSpec, start_process
for fd in (0, 1, 2):
    os.close(fd)
child = start_process(SpawnSpec(("sh", "-c", 'echo $SNAKEPIT_FDS; exit 4'), dict(os.environ)))
numbers = [*(fd for fd in (child.channel.request_fd, child.channel.reply_fd)), child.stderr_fd]
while not child.exited(): pass
os.write(report, f"{min(numbers) > 2} {child.poll()}".encode())
"""
    root = str(Path(__file__).parents[2])

    done = subprocess.run(
        [sys.executable, "-c", script, root], capture_output=True, timeout=WAIT_S * 3, check=False
    )

    assert "True ExitStatus(code=4, signal=None)" == done.stdout.decode()


@pytest.mark.parametrize(
    ("argv", "changes", "error"),
    [
        (("no-such-program-here",), {}, FileNotFoundError),
        (("./no-such-file",), {}, FileNotFoundError),
        (("/etc/passwd",), {}, PermissionError),
        (("/etc",), {}, PermissionError),
        (("sh",), {"cwd": "/no/such/directory"}, FileNotFoundError),
        (("sh", "\0"), {}, ValueError),
    ],
)
def test_what_cannot_start_raises_here(
    argv: tuple[str, ...], changes: dict[str, object], error: type[Exception]
) -> None:
    """A missing program, a file that is none, a missing directory or a bad argument is an error of start."""
    spec = attrs.evolve(SpawnSpec(argv, dict(os.environ)), **changes)

    with pytest.raises(error):
        start_process(spec)

    assert set() == _held_fds._held


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
@pytest.mark.parametrize("place", ["pipe", "fork", "pidfd"])
def test_a_failure_at_any_step_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    """Whichever system call fails, the error is raised and no descriptor or process is left."""
    real_pipe, left = os.pipe, [2]

    def pipe() -> tuple[int, int]:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real_pipe()

    def fail(*args: object, **kwargs: object) -> int:
        raise OSError(errno.EMFILE if place == "pidfd" else number, "injected")

    find_setpriv()
    targets = {
        "pipe": (os, "pipe", pipe),
        "fork": (subprocess, "Popen", fail),
        "pidfd": (os, "pidfd_open", fail),
    }
    monkeypatch.setattr(*targets[place])

    with pytest.raises(OSError):
        start_process(sh("exec sleep 60"))

    assert set() == _held_fds._held


@pytest.mark.parametrize("use_pidfd", [True, False])
def test_group_is_its_own_and_is_signalled_as_one(monkeypatch: pytest.MonkeyPatch, use_pidfd: bool) -> None:
    """A signal reaches the grandchild too, and the child is the leader of a session of its own."""
    monkeypatch.setattr(_spawn, "USE_PIDFD", use_pidfd)
    child = start_process(sh("sleep 60 & echo $!; wait"))
    assert child.channel is not None
    assert select.select([child.channel.reply_fd], [], [], WAIT_S)[0]
    grandchild = int(os.read(child.channel.reply_fd, 100))
    assert (child.pid, child.pid) == (os.getpgid(grandchild), os.getsid(child.pid))
    assert use_pidfd == (child.exit_fd is not None)

    sent = child.signal_group(signal.SIGTERM)

    assert sent
    assert ExitStatus(signal=signal.SIGTERM) == finish(child)
    wait_until(
        lambda: grandchild not in {record.pid for record in process_table() or ()},
        WAIT_S,
        "the end of the grandchild",
    )


def test_no_signal_after_the_reap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once reaped, the pid may be anybody's: nothing is sent to it."""
    child = start_process(sh("exit 0"))
    finish(child)
    sent: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pgid, number: sent.append(number))

    assert not child.signal_group(signal.SIGKILL)

    assert [] == sent


def test_reaped_by_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child whose exit status somebody else took has none, and gets no signal."""
    child = start_process(sh("exit 0"))
    os.waitpid(child.pid, 0)
    sent: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pgid, number: sent.append(number))

    assert not child.signal_group(signal.SIGKILL)

    assert child.exited()
    assert ExitStatus(None, None) == child.poll()
    assert [] == sent
    child.close()


def test_refuses_to_signal_a_group_that_is_not_the_childs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group number that is not the child's pid is a bug, and nothing is sent."""
    child = start_process(sh("cat"))
    sent: list[int] = []
    with monkeypatch.context() as patch:
        # Never the real one: should the guard be missing, group 1 is every process there is.
        patch.setattr(os, "killpg", lambda pgid, number: sent.append(pgid))
        for wrong in (0, 1, os.getpgrp()):
            child.pgid = wrong

            with pytest.raises(InternalError):
                child.signal_group(signal.SIGTERM)

    assert [] == sent
    child.pgid = child.pid
    child.signal_group(signal.SIGKILL)
    assert ExitStatus(signal=signal.SIGKILL) == finish(child)


def test_a_program_that_does_not_run_says_so_on_stderr(tmp_path: Path) -> None:
    """A script whose interpreter is missing fails at the spawn, or at once with the reason on stderr."""
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)

    try:
        child = start_process(SpawnSpec((str(script),), dict(os.environ)))
    except OSError as error:
        assert errno.ENOENT == error.errno
        return

    assert child.stderr_fd is not None
    assert b"No such file" in read_all(child.stderr_fd)
    assert 127 == finish(child).code


def test_busybox_like_setpriv_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A setpriv that does not know the parent-death signal is left alone."""
    fake = tmp_path / "setpriv"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    probe_setpriv.cache_clear()

    found = find_setpriv()

    probe_setpriv.cache_clear()
    assert found is None


def test_setpriv_is_looked_for_again_after_a_passing_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has no descriptor to spare at its first start has the parent-death signal later."""
    probe_setpriv.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", _out_of_descriptors)
        short = find_setpriv()

    later = find_setpriv()

    assert (None, shutil.which("setpriv")) == (short, later)


def _out_of_descriptors(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_descriptors_can_be_released_once() -> None:
    """The channel's descriptors have one owner; a second release is a bug."""
    child = start_process(sh("exit 0"))
    for fd in attrs.astuple(child.release_channel_fds()):
        if fd is not None:
            os.close(fd)

    with pytest.raises(InternalError):
        child.release_channel_fds()

    finish(child)


def test_a_forked_child_keeps_none_of_the_descriptors() -> None:
    """A fork of the host closes its copies, so that it holds no worker's pipe open."""
    child = start_process(sh("cat"))
    assert child.channel is not None
    fds = [fd for fd in (*attrs.astuple(child.channel), child.stderr_fd, child.exit_fd) if fd is not None]

    pid = os.fork()
    if pid == 0:
        os._exit(sum(os.path.exists(f"/proc/self/fd/{fd}") for fd in fds))

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    child.signal_group(signal.SIGKILL)
    finish(child)


def test_secrets_are_not_in_the_repr() -> None:
    """The environment, which may carry secrets, is not shown."""
    spec = SpawnSpec(("sh",), {"TOKEN": "secret"})

    assert "secret" not in repr(spec)

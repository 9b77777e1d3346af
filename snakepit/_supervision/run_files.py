"""The files of the run registry: where they are kept, what stands in them, whose host still lives.

Runs on any thread, owns no state.  One file a host process, ``snakepit-PID-RANDOM.run``, only ever appended to::

    snakepit 1 PID START BOOT PIDNS     the host: pid, start time (clock ticks since boot), boot id, pid namespace
    ? TOKEN                             a worker with this run token is being spawned
    + TOKEN PID START                   here it is
    - TOKEN                             it has been reaped, or its spawn has failed

The host holds an flock on its file.  Names that end in ``.new`` are files in the making, in ``.broken`` such as
could not be read.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping

import attrs

from . import procfs as _procfs
from .held_fds import drop, hold

__all__ = (
    "DROP_AFTER_S",
    "MAX_BYTES",
    "VARIABLE",
    "HostId",
    "RunFile",
    "Standing",
    "create",
    "directories",
    "new_name",
    "open_directory",
    "read_files",
    "render",
    "run_of",
    "this_host",
    "tidy",
)

VARIABLE = "SNAKEPIT_REGISTRY"
MAX_BYTES = 4 << 20
"""A file that is larger is not read; room for some 60,000 workers of one host."""
MAX_PID = 1 << 22
"""Linux: PID_MAX_LIMIT."""
DROP_AFTER_S = 7 * 86400.0
"""When a file is dropped that nobody can act on: set aside, unfinished, of another pid namespace; arbitrary."""

_NAME = re.compile(r"snakepit-[0-9]{1,10}-[0-9a-f]{16}\.run(\.new|\.broken)?")
_TOKEN = re.compile(r"[0-9a-f]{16}-[0-9]{1,10}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_WORD = re.compile(r"[0-9A-Za-z-]{1,64}")


@attrs.frozen
class HostId:
    """One host process, told apart from all others, also those of other boots and namespaces.

    Attributes:
        pid: In its own pid namespace, where it may be 1.
        start: Clock ticks since boot, > 0.
        boot: The system's boot id.
        pidns: The number of its pid namespace.
    """

    pid: int
    start: int
    boot: str
    pidns: str


class Standing(enum.Enum):
    """What may be done with a file."""

    LIVE = "its host lives, or that cannot be excluded: leave it alone"
    DEAD = "its host is gone: end its workers, then remove it"
    PAST = "of another boot: remove it"
    FOREIGN = "of another pid namespace or version, and its host is gone: drop it when it is old"
    BROKEN = "it cannot be read: set it aside"


@attrs.frozen
class RunFile:
    """One file as it was found.

    Attributes:
        host: Whose it is; None when that cannot be read.
        rows: ``{token: (pid, start)}`` of the workers that were spawned and not reaped.
        spawning: Tokens of those whose spawn had begun and not ended.
        modified_s: Seconds since the epoch.
    """

    name: str
    standing: Standing
    host: HostId | None = None
    rows: Mapping[str, tuple[int, int]] = attrs.field(factory=dict, repr=False)
    spawning: frozenset[str] = frozenset()
    modified_s: float = 0.0

    @property
    def tokens(self) -> set[str]:
        """The run tokens that its processes carry."""
        return {*self.rows, *self.spawning}


def run_of(token: str) -> str:
    """Return the run of a token, which names the pool."""
    return token.rpartition("-")[0]


def this_host() -> HostId | None:
    """Return this process; None where nothing could be verified later: no ``/proc``, or not that of our pids."""
    pid = os.getpid()
    try:
        # A process in a new pid namespace may still see the process table of the old one.
        if os.readlink(f"{_procfs.PROC}/self") != str(pid):
            return None
        pidns = os.readlink(f"{_procfs.PROC}/self/ns/pid").strip("pid:[]")
        with open(f"{_procfs.PROC}/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read(64).strip()
    except (OSError, ValueError):
        return None
    start = _procfs.process_start(pid)
    return HostId(pid, start, boot, pidns) if start > 0 and _WORD.fullmatch(boot) and pidns.isdigit() else None


# Directories -----------------------------------------------------------------------------------------


def directories() -> list[str]:
    """Return where this user's files may be, the place for new ones first; none: the registry is switched off.

    Raises:
        OSError: There is no place for temporary files; raised here.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return [os.path.abspath(chosen)] if chosen else []
    found = []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        # Under sudo or su it may still be the directory of the user before.
        with contextlib.suppress(OSError):
            status = os.stat(runtime)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
                found.append(os.path.join(os.path.abspath(runtime), "snakepit"))
    return [*found, os.path.join(os.path.abspath(tempfile.gettempdir()), f"snakepit-{os.geteuid()}")]


def open_directory(path: str, *, make: bool) -> int:
    """Return a descriptor of the directory; the caller closes it.

    Raises:
        FileNotFoundError: There is none, and it was not to be made; raised here.
        OSError: It cannot be made or opened, is a link, somebody else's, or open to others; raised here.
    """
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory, or a link to one", path) from None
        raise
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        os.close(fd)
        raise PermissionError(errno.EPERM, "It belongs to somebody else", path)
    if status.st_mode & 0o077:
        os.close(fd)
        raise PermissionError(errno.EPERM, f"Others may use it (mode {stat.S_IMODE(status.st_mode):04o})", path)
    return fd


# Writing ---------------------------------------------------------------------------------------------


def new_name() -> str:
    """Return a name for this process's file that no other has."""
    return f"snakepit-{os.getpid()}-{os.urandom(8).hex()}.run"


def render(host: HostId, rows: Mapping[str, tuple[int, int] | None]) -> bytes:
    """Return the text of a file.

    Args:
        rows: ``{token: (pid, start)}``, None for a spawn that has begun.
    """
    lines = [f"snakepit 1 {host.pid} {host.start} {host.boot} {host.pidns}"]
    lines += [f"? {token}" if row is None else f"+ {token} {row[0]} {row[1]}" for token, row in rows.items()]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def create(directory_fd: int, name: str, text: bytes) -> int:
    """Make the file, or replace it as a whole, and return its locked descriptor, > 2, a held one.

    Raises:
        OSError: Raised here; nothing has changed then.
    """
    # RACE: (1) a host makes its file, (2) a sweep finds it without a lock, (3) the host locks it.  Under its
    # name it is seen locked and complete, or not at all
    # (tests/unit/test_registry_orphans.py::test_a_file_in_the_making_is_left_alone).
    making = f"{name}.new"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(making, flags, 0o600, dir_fd=directory_fd)
    try:
        if fd <= 2:  # the host runs with a standard stream closed; what is printed there must not get in here
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(fd)
            fd = high
        hold(fd)
        os.fchmod(fd, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.write(fd, text) != len(text):
            raise OSError(errno.ENOSPC, "Written in part", name)
        os.rename(making, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except BaseException:
        drop(fd)
        with contextlib.suppress(OSError):
            os.unlink(making, dir_fd=directory_fd)
        raise
    return fd


# Reading ---------------------------------------------------------------------------------------------


def read_files(directory_fd: int, here: HostId) -> Iterator[RunFile]:
    """Read every file of ours in a directory, one at a time.

    Raises:
        OSError: The directory cannot be listed; raised here.
    """
    for name in os.listdir(directory_fd):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        with contextlib.suppress(OSError):
            if match[1]:
                modified_s = os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mtime
                yield RunFile(name, Standing.FOREIGN, modified_s=modified_s)
            else:
                found = _read_file(directory_fd, name, here)
                if found is not None:
                    yield found


def _read_file(directory_fd: int, name: str, here: HostId) -> RunFile | None:
    """Return the file as it is; None when it is no file, or not ours."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=directory_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        locked = _is_locked(fd)
        text = os.read(fd, MAX_BYTES) if status.st_size <= MAX_BYTES else b""
    finally:
        os.close(fd)
    parsed = _parse(text)
    if parsed is None:
        later = re.match(rb"snakepit [0-9]{1,9} ", text) and not text.startswith(b"snakepit 1 ")
        standing = Standing.LIVE if locked else Standing.FOREIGN if later else Standing.BROKEN
        return RunFile(name, standing, modified_s=status.st_mtime)
    host, rows, spawning = parsed
    return RunFile(name, _standing(host, here, locked), host, rows, spawning, status.st_mtime)


def _is_locked(fd: int) -> bool:
    try:
        # Shared, so that two sweeps do not take each other for the host.  Closing lets go of it.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _parse(text: bytes) -> tuple[HostId, dict[str, tuple[int, int]], frozenset[str]] | None:
    """Return (host, rows, tokens whose spawn had begun), or None: one line that is wrong spoils the file."""
    *lines, _ = text.split(b"\n")  # what has no line end was being written when the host died
    head: list[str] = []
    rows: dict[str, tuple[int, int]] = {}
    spawning: set[str] = set()
    try:
        for number, raw in enumerate(lines):
            words = raw.decode("ascii").split(" ")
            if number == 0:
                head = words
                continue
            verb, token, *numbers = words
            if not _TOKEN.fullmatch(token) or not all(map(_NUMBER.fullmatch, numbers)):
                return None
            if verb == "?" and not numbers:
                spawning.add(token)
            elif verb == "+" and len(numbers) == 2 and 1 < int(numbers[0]) <= MAX_PID:
                spawning.discard(token)
                rows[token] = int(numbers[0]), int(numbers[1])
            elif verb == "-" and not numbers:
                spawning.discard(token)
                rows.pop(token, None)
            else:
                return None
        magic, version, pid, start, boot, pidns = head
        if (magic, version) != ("snakepit", "1") or not all(map(_NUMBER.fullmatch, (pid, start, pidns))):
            return None
        if not 0 < int(pid) <= MAX_PID or int(start) <= 0 or not _WORD.fullmatch(boot):
            return None
    except ValueError:  # not ASCII, or words too few or too many
        return None
    return HostId(int(pid), int(start), boot, pidns), rows, frozenset(spawning)


def _standing(host: HostId, here: HostId, locked: bool) -> Standing:
    if host.boot != here.boot:
        # Locked: a directory shared with another machine.
        return Standing.LIVE if locked else Standing.PAST
    if host.pidns != here.pidns:
        return Standing.LIVE if locked else Standing.FOREIGN
    # In one namespace the process table decides and the lock does not: a library that forks in C, past
    # Python's hooks, keeps the lock of a dead host, and a host that closes all descriptors lets go of it.
    try:
        os.getpgid(host.pid)
    except ProcessLookupError:
        return Standing.DEAD
    except OSError:
        return Standing.LIVE
    record = _procfs.process_record(host.pid)
    if record is None:
        return Standing.LIVE  # it has just ended, or the table hides it from us
    if record.start != host.start:
        # The pid is another's.  A checkpoint that was restored has new start times too, and its lock.
        return Standing.LIVE if locked else Standing.DEAD
    return Standing.DEAD if record.ended and not _has_threads(host.pid) else Standing.LIVE


def _has_threads(pid: int) -> bool:
    """Say whether threads outlive the main one, which the table shows as a zombie then."""
    try:
        return len(os.listdir(f"{_procfs.PROC}/{pid}/task")) > 1
    except OSError:
        return False


def tidy(directory_fd: int, file: RunFile, done: bool) -> None:
    """Remove, drop or set aside what is in nobody's use.

    Args:
        done: Whether no process of a DEAD file is left.
    """
    name = file.name
    with contextlib.suppress(OSError):
        if file.standing is Standing.BROKEN:
            aside = f"{name}.broken"
            os.rename(name, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            os.utime(aside, dir_fd=directory_fd, follow_symlinks=False)
        elif (
            file.standing is Standing.PAST
            or (file.standing is Standing.DEAD and done)
            or (file.standing is Standing.FOREIGN and time.time() - file.modified_s > DROP_AFTER_S)
        ):
            os.unlink(name, dir_fd=directory_fd)

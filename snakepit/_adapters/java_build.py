"""Builds of Java workers: compiled once, into a folder of the user's own, for all pools of the same sources.

Runs on the caller's thread; owns the folder ``snakepit/java`` in the user's cache: ``<key>/`` is a build, which is
whole once it has the file ``ready``, and ``<key>.lock`` is locked by who makes or removes it.  Who uses a build has a
shared lock on its ``ready``, so nobody who makes one ever waits for those who use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import time
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from .._bridges import bridge_path
from .._programs import find_in_path
from ..errors import WorkerStartError

__all__ = ("Build", "Hold")

BRIDGE = "java/SnakepitBridge.java"
LAYOUT = b"1"
"""Of what a build consists: another value makes all builds anew."""
MAIN_CLASS = "snakepit.SnakepitBridge"
INDEX_CLASS = "snakepit.Registry$Index"
USES_ANNOTATIONS = b"Lsnakepit/SnakepitBridge$"
"""In the constants of a class whose methods may be commands."""
STEP_LIMIT_S = 120.0
"""Arbitrary: javac on a busy machine takes seconds."""
UNUSED_LIMIT_S = 30 * 86400.0
"""Arbitrary; a build has some 700 KB, and making it again takes seconds."""
ADVICE = "set XDG_CACHE_HOME to a folder of your own"
PING = {"worker_id": "archive", "protocol": {"versions": [1], "capabilities": ["errors", "session", "batch"]}}


@attrs.frozen
class Build:
    """Compiled bridge and handlers, in a folder named by a hash of all that they depend on.

    Attributes:
        kind: The adapter's class, for messages.
        java: Absolute path of the program.
        handlers: Absolute path of a ``.java`` or ``.jar`` file, or None.
        class_path: Absolute paths.
        variables: The worker's.
        minimum: The oldest Java for which the compiler may write.
        package: The one that has a compiler.
        cwd: The worker's directory, or None for the host's.
        folder: The place of this build, by what its sources are when this object is made.

    Raises:
        WorkerStartError: The sources cannot be read, or others could put code into the cache; raised here.
    """

    kind: str
    java: str
    handlers: str | None
    class_path: tuple[str, ...]
    variables: Mapping[str, str]
    minimum: int
    package: str
    cwd: str | None = None
    folder: Path = attrs.field(init=False)

    @folder.default
    def _place(self) -> Path:
        folder = _cache_folder(self.kind)
        try:
            return folder / self._key()
        except OSError as error:
            raise WorkerStartError(f"{self.kind}: the handlers cannot be read: {error}") from error

    def make(self) -> Hold:
        """Compile what has not been compiled yet, and return what keeps the build from being removed.

        Raises:
            WorkerStartError: There is a mistake in the source, or the cache cannot be used; raised here.
        """
        ready = self.folder / "ready"
        try:
            with suppress(FileNotFoundError):
                hold = Hold(ready)
                with suppress(OSError):  # from a cache that is read-only nobody removes it
                    os.utime(ready)
                return hold
            _remove_unused(self.folder.parent)
            with _locked(self.folder.with_suffix(".lock"), fcntl.LOCK_EX, os.O_RDWR | os.O_CREAT):
                if not ready.exists():
                    self._make_folder()
                return Hold(ready)
        except OSError as error:
            raise WorkerStartError(f"{self.kind}: no build in {str(self.folder)!r}: {error}; {ADVICE}") from error

    def options(self) -> list[str]:
        """Return the arguments for the JVM itself, of a build that is made."""
        options = [f"-Dsnakepit.index={self.index}"]
        if self.archive.exists():
            # A Java that was replaced meanwhile costs the archive, and no line on stdout.
            options += [f"-XX:SharedArchiveFile={self.archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        return options

    def command(self) -> list[str]:
        """Return class path, main class and its arguments."""
        return self._command(self._run_path())

    def _command(self, class_path: list[str]) -> list[str]:
        classes = ",".join(json.loads(self.index.read_bytes())["classes"])
        return ["-cp", os.pathsep.join(class_path), MAIN_CLASS, *(["--handlers", classes] if classes else [])]

    @property
    def jar(self) -> Path:
        """The classes of the bridge and of the handlers that are source; a folder could have no archive."""
        return self.folder / "worker.jar"

    @property
    def index(self) -> Path:
        """What the bridge reads instead of the annotations, which takes as long as half a start of the JVM."""
        return self.folder / "index.json"

    @property
    def archive(self) -> Path:
        """The loaded classes as the JVM maps them; it may be missing."""
        return self.folder / "worker.jsa"

    def _key(self) -> str:
        seen = hashlib.sha256(LAYOUT + bridge_path(BRIDGE).read_bytes())
        for path in (os.path.realpath(self.java), *self.class_path, self.handlers or ""):
            seen.update(path.encode("utf-8", "surrogateescape") + b"\0")
            if not path or path.endswith(".java"):
                continue
            status = os.stat(path)
            seen.update(f"{status.st_size},{status.st_mtime_ns}\0".encode())
        if self.handlers is not None and self.handlers.endswith(".java"):
            seen.update(Path(self.handlers).read_bytes())
        return seen.hexdigest()[:32]

    def _run_path(self) -> list[str]:
        jars = [self.handlers] if self.handlers is not None and self.handlers.endswith(".jar") else []
        return [str(self.jar), *jars, *self.class_path]

    def _make_folder(self) -> None:
        # In its place and not renamed into it: the archive is valid for jars at the paths with which it was written.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        try:
            self._compile()
            self._dump_archive()
            (self.folder / "ready").touch()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _compile(self) -> None:
        classes = self.folder / "classes"
        source = [self.handlers] if self.handlers is not None and self.handlers.endswith(".java") else []
        done = self._run(
            *self._compiler(),
            *("-d", str(classes), "-encoding", "UTF-8", "-parameters", "-XDstringConcat=inline"),
            # Nothing is found by chance, in the current directory or beside classes.
            *("-cp", os.pathsep.join(self.class_path) or str(self.folder), "-sourcepath", str(self.folder)),
            *(str(bridge_path(BRIDGE)), *source),
        )
        if done.returncode != 0:
            raise WorkerStartError(f"{self.kind}: the handlers cannot be compiled:\n{_complaints(done.stderr)}")
        with zipfile.ZipFile(self.jar, "w") as jar:
            for path in sorted(classes.rglob("*.class")):
                jar.write(path, path.relative_to(classes))
        shutil.rmtree(classes)
        names = list(self._classes_with_handlers())
        if self.handlers is not None and not names:
            raise WorkerStartError(f"{self.kind}: no method in {self.handlers!r} is annotated with @Command")
        done = self._run(self.java, "-cp", os.pathsep.join(self._run_path()), INDEX_CLASS, *names)
        if done.returncode != 0:
            raise WorkerStartError(f"{self.kind}: {self.handlers}: {done.stderr.strip()}")
        self.index.write_text(done.stdout, "utf-8")

    def _compiler(self) -> list[str]:
        """Return the compiler of this very Java, or the one in PATH for a Java that has none."""
        own = [self.java, "-m", "jdk.compiler/com.sun.tools.javac.Main"]
        if self._run(*own, "-version").returncode == 0:
            return own
        other = find_in_path("javac", self.variables)
        if other is not None:
            # Of the two versions the older one is what the compiler can write and this Java can read.
            told = [self._run(self.java, "-version").stderr, self._run(other, "-version").stdout]
            found = [int(number) for text in told for number in re.findall(r"(?:javac |version \")(\d+)", text)]
            return [other, "--release", str(min(found, default=self.minimum))]
        raise WorkerStartError(
            f"{self.kind}: {self.java!r} has no compiler (it is a JRE), and there is no javac in PATH: install a JDK"
            f" (apt install {self.package})",
            argv=(self.java,),
        )

    def _classes_with_handlers(self) -> Iterator[str]:
        """Yield the names of the classes that use the annotations; only these are loaded to be looked at."""
        if self.handlers is None:
            return
        path = self.handlers if self.handlers.endswith(".jar") else self.jar
        try:
            with zipfile.ZipFile(path) as jar:
                for name in jar.namelist():
                    own = name.startswith(("snakepit/", "META-INF/"))
                    if name.endswith(".class") and not own and USES_ANNOTATIONS in jar.read(name):
                        yield name.removesuffix(".class").replace("/", ".")
        except zipfile.BadZipFile as error:
            raise WorkerStartError(f"{self.kind}: {path!r} is no jar: {error}") from error

    def _dump_archive(self) -> None:
        """Start a worker that loads what every start loads, for the JVM to keep; without success it starts slower.

        The user's own jars are left out: one that is replaced would invalidate all of it.
        """
        requests = [{"id": 0, "command": "ping", "args": PING}, {"id": 1, "command": "echo", "args": {"a": [1.5, "é"]}}]
        payloads = [json.dumps(request).encode() for request in requests]
        self._run(
            *(self.java, f"-XX:ArchiveClassesAtExit={self.archive}", "-Dsnakepit.dump=true"),
            "-Dsun.misc.unsafe.memory.access=allow",
            *(f"-Dsnakepit.index={self.index}", "-Dsnakepit.fds=0,1", "-Dsnakepit.pid=0"),
            *self._command([str(self.jar)]),
            requests=b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads),
        )

    def _run(self, *argv: str, requests: bytes = b"") -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                argv,
                input=requests,
                capture_output=True,
                timeout=STEP_LIMIT_S,
                check=False,
                env=self.variables,
                cwd=self.cwd,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorkerStartError(f"{self.kind}: {argv[0]}: {error}", argv=argv) from error
        out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(argv, done.returncode, out, err)


def _complaints(text: str) -> str:
    """Return what javac says of the handlers: the bridge's own warnings are nobody's business."""
    lines, shown = [], True
    for line in text.splitlines():
        if re.match(r".+\.java:\d+: ", line):
            shown = f"{Path(BRIDGE).name}:" not in line or ": warning:" not in line
        elif re.fullmatch(r"\d+ (error|warning)s?", line):
            shown = "error" in line
        if shown:
            lines.append(line)
    return "\n".join(lines)


class Hold:
    """A build in use: it is not removed as long as this object lives, or a process that was forked meanwhile.

    Age alone does not tell: a pool that runs for months starts a worker in a build that it asked for once.  The lock
    ends with its descriptor, which is closed, and never unlocked: a forked child may still need it.
    """

    def __init__(self, ready: Path) -> None:
        weakref.finalize(self, os.close, _lock(ready, fcntl.LOCK_SH, os.O_RDONLY))


def _cache_folder(kind: str) -> Path:
    """Return the folder of all builds, made if need be; whoever writes there, or replaces it, runs code here.

    Raises:
        WorkerStartError: It cannot be made, or others may write to it; raised here.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute()
    folder = root / "snakepit" / "java"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        # Where the umask is 002, a cache is often open to the user's own group; ours are made with 0700.
        for place, writers in ((root, 0o002), (folder.parent, 0o022), (folder, 0o022)):
            status = os.stat(place)
            # Of others' files in a folder with the sticky bit, none can be replaced, but new ones can be put there.
            shared = stat.S_IMODE(status.st_mode) & writers and (place == folder or not status.st_mode & stat.S_ISVTX)
            # A link is its owner's to change, wherever it leads to.
            if shared or not {status.st_uid, os.lstat(place).st_uid} <= {os.geteuid(), 0}:
                raise WorkerStartError(
                    f"{kind}: others may write to {str(place)!r}, and could put code there; {ADVICE}"
                )
    except OSError as error:
        raise WorkerStartError(f"{kind}: no place for compiled classes: {error}; {ADVICE}") from error
    return folder


def _remove_unused(cache: Path) -> None:
    """Remove the builds that nobody holds and nobody has asked for in a long time, with their locks."""
    for folder in {path.with_suffix("") for path in cache.iterdir()}:
        lock, ready = folder.with_suffix(".lock"), folder / "ready"
        # An error: it is being made, or is in use; or another host removes it too.
        with suppress(OSError), ExitStack() as locks:
            locks.enter_context(_locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR | os.O_CREAT))
            made = lock
            with suppress(FileNotFoundError):  # nothing came of it
                locks.enter_context(_locked(ready, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR))
                made = ready
            if time.time() - made.stat().st_mtime > UNUSED_LIMIT_S:
                ready.unlink(missing_ok=True)  # first, since what is removed in part is no build
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink()


def _lock(path: Path, operation: int, flags: int) -> int:
    """Return a descriptor that holds a lock on a file; the system frees it with the process.

    Raises:
        BlockingIOError: Somebody else has it, with ``LOCK_NB``; raised here.
        FileNotFoundError: There is no such file, without ``O_CREAT``; raised here.
    """
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, operation)
            # RACE: 1. A has the lock.  2. B opens the file and waits.  3. A removes the file, and lets go.  4. C makes
            # a new file, and locks it.  5. B has a lock that keeps C from nothing, on a file that has no name: it has
            # to take the new one.  Files are removed by who has them locked alone, so one with a name keeps it.
            # tests/unit/test_java_build.py::test_a_lock_that_was_removed_meanwhile
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def _locked(path: Path, operation: int, flags: int) -> Iterator[None]:
    fd = _lock(path, operation, flags)
    try:
        yield
    finally:
        os.close(fd)

"""Java workers: bridge and handlers are compiled once, and started from there.

Runs on the caller's thread; owns the locks that keep the builds of its command lines, see ``java_build``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from .._wire.values import JsonValue
from .._worker_options import WorkerOptions
from ..errors import WorkerStartError
from .runtimes import Runtime, find_runtime
from .scripts import ScriptAdapter

if TYPE_CHECKING:
    from .java_build import Hold

__all__ = ("JavaAdapter",)


class JavaAdapter(ScriptAdapter):
    """Java workers, 17 or newer, with the built-in commands and methods annotated ``@Command``.

    What is to be compiled is compiled when the executor is made, once for the same sources and the same Java, into
    ``$XDG_CACHE_HOME/snakepit/java`` (``~/.cache`` without the variable).

    Args:
        handlers: A ``.java`` file or a ``.jar``, or None for the built-in commands alone.
        class_path: Jars and folders that the handlers use; ``"lib/*"`` stands for the jars of a folder.
        program: Path of the ``java`` program, or its name in PATH.
        java_options: Arguments of the JVM, e.g. ``["-Xmx512m"]``.
        start_args: JSON value for the methods annotated ``@OnStart``.
        output: "log" or "inherit".
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter; raised here.
    """

    runtime = Runtime(
        "Java", ("java",), (17,), {"apt": "default-jdk-headless", "brew": "openjdk"}, ("-version",), r'^\w+ version "'
    )
    bridge = "java/launch.sh"
    suffixes = (".java", ".jar")

    def __init__(
        self,
        handlers: str | os.PathLike[str] | None = None,
        *,
        class_path: Sequence[str | os.PathLike[str]] = (),
        program: str | os.PathLike[str] | None = None,
        java_options: Sequence[str] = (),
        start_args: JsonValue = None,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        kind = type(self).__name__
        self._class_path = tuple(os.path.abspath(path) for path in _words(kind, "class_path", class_path, "['lib/*']"))
        self._java_options = _words(kind, "java_options", java_options, "['-Xmx512m']")
        for path in self._class_path:
            if os.pathsep in path:
                raise ValueError(f"{kind}: class_path: one path an entry, not {path!r}")
        # INVARIANT: {folder of each build that is in a command line of this adapter: what keeps it}.  A pool lives no
        # longer than its adapter, and may start a worker at any time.
        self._holds: dict[Path, Hold] = {}
        super().__init__(handlers, program=program, start_args=start_args, output=output, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy gets: a lock has one owner, and a copy takes its own."""
        return {**self.__dict__, "_holds": {}}

    def executable_path(self) -> str:
        """Return the shell, which becomes the JVM: see ``bridges/java/launch.sh``."""
        return "/bin/sh"

    def script_args(self) -> Sequence[str]:
        """Return the command line of the JVM; compiles first where that has not been done.

        Raises:
            WorkerStartError: No Java, one that is too old, no place for what is compiled, or a mistake in the source,
                with javac's words; raised here.
        """
        from .java_build import Build  # what it needs would make every import of snakepit slower

        kind = type(self).__name__
        super().script_args()  # the handlers file is there
        java = find_runtime(self.runtime, kind, self._program, cwd=self.cwd, variables=self._variables())
        build = Build(
            kind=kind,
            java=java,
            handlers=self._handlers,
            class_path=tuple(_expand(kind, self._class_path)),
            variables=self._variables(),
            minimum=self.runtime.minimum[0],
            package=self.runtime.install["apt"],
            cwd=None if self.cwd is None else os.fspath(self.cwd),
        )
        self._holds[build.folder] = build.make()
        return (java, *build.options(), *self._java_options, *build.command())


def _words(kind: str, name: str, words: Sequence[str | os.PathLike[str]], example: str) -> tuple[str, ...]:
    if isinstance(words, (str, bytes)) or not all(isinstance(word, (str, os.PathLike)) for word in words):
        raise TypeError(f"{kind}: {name} must be a sequence of str, e.g. {example}, not {words!r}")
    return tuple(os.fspath(word) for word in words)


def _expand(kind: str, class_path: Sequence[str]) -> Iterator[str]:
    """Yield the entries of a class path, those of ``folder/*`` one by one, so that each is looked at."""
    for path in class_path:
        if os.path.basename(path) == "*":
            folder = Path(path).parent
            found = sorted(str(jar) for jar in folder.glob("*") if jar.suffix.lower() == ".jar")
        else:
            folder, found = Path(path), [path]
        if not folder.exists():
            raise WorkerStartError(f"{kind}: class_path: there is no {str(folder)!r}")
        yield from found

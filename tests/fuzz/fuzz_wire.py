"""Runs the codec's fuzz target under atheris, or without coverage where there is no atheris.

    python tests/fuzz/fuzz_wire.py SECONDS [--keep DIRECTORY]
    python tests/fuzz/fuzz_wire.py --replay FILE
    python tests/fuzz/fuzz_wire.py --keep DIRECTORY --minimize NEW_CORPUS

A program of its own, since libFuzzer ends its process.  New inputs go to ``--keep``; one that fails is written
there as ``crash-*``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

MAX_BYTES = 4096
RSS_LIMIT_MB = 512
WITHOUT_COVERAGE = "NO ATHERIS FOR THIS INTERPRETER: random mutation without coverage"

DICTIONARY = (
    *(b'"attachments":[', b'{"path":"/result","kind":"bytes","len":3}', b'"id":1', b'"success":true', b'"result":null'),
    *(b'"type":"log"', b"/result/0", b"~0", b"~1", b"-0.0", b"1e308", b"1e309", b"9007199254740993", b"\\ud83d\\ude00"),
    *(b"\\ud800", b"NaN", b"\xff\x80", b"\xff\x81\x80", b"\xff\x82", b"\xff{", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x00", b"[[[[[[[[", b"]]]]]]]]"),
)


def shed_peak_memory() -> None:
    """Go on in a child, and end as it ends.

    A process that was started by ``vfork`` has its parent's peak for its own, and libFuzzer would take the memory of
    a large test process for that of the codec.
    """
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def run_atheris(arguments: argparse.Namespace) -> None:
    """Let libFuzzer choose the inputs; does not return."""
    shed_peak_memory()
    import atheris

    with atheris.instrument_imports(include=["snakepit._wire"]):
        import snakepit._wire.messages
        import snakepit._wire.outgoing
        import snakepit._wire.values  # noqa: F401  # imported here to be instrumented
    from fuzz.wire_target import check

    with tempfile.NamedTemporaryFile("w", suffix=".dict", delete=False) as words:
        for word in DICTIONARY:
            words.write('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n')
    options = [
        f"-max_len={MAX_BYTES}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        "-timeout=20",
        f"-dict={words.name}",
        f"-artifact_prefix={arguments.keep}/",
        "-print_final_stats=1",
        "-reload=0",
    ]
    options += [f"-max_total_time={arguments.seconds:.0f}", f"-seed={arguments.seed}"]
    options += [str(arguments.keep), str(arguments.corpus)]
    atheris.Setup([sys.argv[0], *options], check)
    atheris.Fuzz()


def steps_of(data: bytes) -> set[tuple[int, int]]:
    """Return the steps from line to line that the codec takes for an input, and how often, roughly."""
    from fuzz.wire_target import check

    taken: Counter[tuple[str, int, int]] = Counter()

    def trace(frame: Any, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if "_wire" not in name:
            return None
        last = [frame.f_lineno]

        def trace_lines(inner: Any, what: str, _: object) -> Any:
            taken[name, last[0], inner.f_lineno] += 1
            last[0] = inner.f_lineno
            return trace_lines

        return trace_lines

    sys.settrace(trace)
    try:
        check(data)
    finally:
        sys.settrace(None)
    return {(hash(step), min(count.bit_length(), 4)) for step, count in taken.items()}


def minimize(sources: list[Path], target: Path) -> None:
    """Write the inputs that take a step which no smaller one takes."""
    inputs = {path.read_bytes() for source in sources for path in source.iterdir()}
    known: set[tuple[int, int]] = set()
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        if new := steps_of(data) - known:
            known |= new
            (target / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def mutate(data: bytes, source: random.Random) -> bytes:
    """Return the input with a few random changes."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 6)):
        place = source.randint(0, len(changed))
        what = source.randrange(5)
        if what == 0:
            changed[place:place] = source.choice(DICTIONARY)
        elif what == 1:
            changed[place : place + 1] = bytes([source.randrange(256)])
        elif what == 2:
            del changed[place : place + source.randint(1, 8)]
        elif what == 3 and changed:
            start = source.randrange(len(changed))
            changed[place:place] = changed[start : start + source.randint(1, 40)]
        else:
            changed[place:place] = source.randbytes(source.randint(1, 8))
    return bytes(changed[:MAX_BYTES])


def run_random(arguments: argparse.Namespace) -> int:
    """Change the corpus at random; the number of inputs tried."""
    from fuzz.wire_target import check

    print(f"\n*** {WITHOUT_COVERAGE} ***\n", file=sys.stderr, flush=True)
    source = random.Random(arguments.seed)
    corpus = [path.read_bytes() for path in sorted(arguments.corpus.iterdir())]
    return _try_all(corpus, check, source, arguments)


def _try_all(
    corpus: list[bytes], check: Callable[[bytes], None], source: random.Random, arguments: argparse.Namespace
) -> int:
    runs, until = 0, time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        data = corpus[runs] if runs < len(corpus) else mutate(source.choice(corpus), source)
        try:
            check(data)
        except BaseException:
            path = arguments.keep / f"crash-{runs}"
            path.write_bytes(data)
            print(f"Test unit written to {path}", file=sys.stderr, flush=True)
            raise
        runs += 1
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, help="how long", nargs="?", default=60.0)
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus", help="inputs to begin with")
    parser.add_argument("--keep", type=Path, help="where new inputs go (default: a temporary directory)")
    parser.add_argument("--minimize", type=Path, metavar="DIRECTORY", help="only write the inputs that matter there")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try this one input only")
    parser.add_argument("--seed", type=int, default=0, help="0: chosen and printed")
    parser.add_argument("--random", action="store_true", help="without coverage, as where there is no atheris")
    arguments = parser.parse_args()
    arguments.seed = arguments.seed or random.SystemRandom().randrange(1, 1 << 31)
    print(f"seed {arguments.seed}", file=sys.stderr, flush=True)
    if arguments.replay:
        from fuzz.wire_target import check

        check(arguments.replay.read_bytes())
        return
    if arguments.keep is None:
        arguments.keep = Path(tempfile.mkdtemp(prefix="fuzz-wire-"))
    arguments.keep.mkdir(parents=True, exist_ok=True)
    if arguments.minimize:
        arguments.minimize.mkdir(parents=True, exist_ok=True)
        minimize([arguments.corpus, arguments.keep], arguments.minimize)
        return
    if not arguments.random:
        try:
            import atheris  # noqa: F401  # only asked for here
        except ImportError:
            arguments.random = True
    if not arguments.random:
        run_atheris(arguments)
        return
    runs = run_random(arguments)
    print(f"Done {runs} runs in {arguments.seconds:.0f} second(s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Each example runs as its page says, with real libraries and real input, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from missing import give_up

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
NODE_MODULES = ROOT / "build" / "examples-node" / "node_modules"
ENVIRONMENT = ROOT / "build" / "examples-venv"
LIMIT_S = 90.0


def run(name: str, *words: str, **variables: str) -> list[str]:
    """Run an example's program; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name / "main.py"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout.splitlines()


def require_installed(path: Path) -> None:
    """Skip without what the install script puts there, or fail with ``CI=true``."""
    if not path.exists():
        give_up(f"no {path.relative_to(ROOT)}")


def test_every_example_is_here() -> None:
    """A new folder needs a test of its own, and a line on the page."""
    tested = {"node", "r", "python", "ruby", "perl", "php", "java", "lua", "jq", "pdf", "segfault", "guile", "tcl"}
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")

    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}

    assert folders <= tested
    assert [] == [name for name in folders - {"guile", "tcl"} if f"examples/{name}/main.py" not in page]


def test_markdown_with_marked(tmp_path: Path, node: str) -> None:
    """A directory of Markdown files becomes a directory of HTML."""
    require_installed(NODE_MODULES / "marked")
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    (source / "a.md").write_text("# Title\n\n## One\n\n*é* `code`\n\n## Two\n")
    (source / "b.md").write_text("| x | y |\n|---|---|\n| 1 | 2 |\n")

    lines = run("node", str(source), str(target), NODE_PATH=str(NODE_MODULES))

    html = (target / "a.html").read_text("utf-8")
    assert "<p><em>é</em> <code>code</code></p>" in html
    assert "<td>2</td>" in (target / "b.html").read_text("utf-8")
    assert [f"a.md: {len(html):,} characters, 2 sections"] == lines[:1]


def test_a_model_in_r(require_runtime: Callable[[str], str]) -> None:
    """The coefficients are those of R's textbooks, and each session has its own model."""
    require_runtime("Rscript")

    lines = run("r")

    assert "mpg ~ wt: (Intercept) 37.285, wt -5.344; R squared 0.753" == lines[0]
    assert "mpg ~ wt + hp: (Intercept) 37.227, wt -3.878, hp -0.032; R squared 0.827" == lines[1]
    assert "{'wt': 2.0, 'hp': 120}: 25.7 miles a gallon, 20.1 to 31.2" == lines[2]
    assert lines[-1].endswith("fit a model first")


def test_another_numpy() -> None:
    """The workers' numpy is that of their environment, not the host's."""
    require_installed(ENVIRONMENT / "ready")

    host, *workers = run("python", str(ENVIRONMENT))

    told = re.fullmatch(r"worker: Python (3\.\d+)\.\d+, (numpy 1\.\d+\.\d+): mean 2\.33, area 4\.5", workers[0])
    assert told is not None, workers[0]
    (library,) = ENVIRONMENT.glob("lib/python*")
    assert f"python{told[1]}" == library.name
    assert not host.endswith(told[2])


def test_a_report_in_ruby(require_runtime: Callable[[str], str]) -> None:
    """The sums are right, and Ruby's own words tell what is missing."""
    require_runtime("ruby")

    lines = run("ruby")

    assert ["north        342.30", "south        309.30", "west         378.50"] == lines[1:4]
    assert "without regions: KeyError: key not found: region" == lines[-1]


def test_a_log_in_perl(require_runtime: Callable[[str], str]) -> None:
    """Every line counts once, whichever worker read it."""
    require_runtime("perl")

    lines = run("perl")

    assert re.match(r"/login +15 requests, +474 ms each", lines[0])
    assert "59 requests, 5 server errors, 1 lines unreadable" == lines[-1]


def test_html_in_php(require_runtime: Callable[[str], str]) -> None:
    """Tags are closed, and what could run is gone."""
    require_runtime("php")

    cleaned = run("php")[1::2]

    assert "  -> '<p>Café <b>bold</b></p><p>unclosed</p>', 1 removed" == cleaned[0]
    assert "  -> '<a>a link</a>', 3 removed" == cleaned[1]


def test_a_jvm_warms_up(require_runtime: Callable[[str], str]) -> None:
    """One worker does all calls, and the first, which loads and interprets, takes longest."""
    require_runtime("java")

    lines = run("java")

    assert lines[0].endswith("worker number 1 did all calls")
    first, *later = (float(re.findall(r"([\d.]+) ms", line)[0]) for line in lines[1:])
    assert 4 == len(later)
    assert first > later[-1]


def test_rules_in_lua(require_runtime: Callable[[str], str]) -> None:
    """A rule sees what it may see, an endless one ends, and the next one is served."""
    require_runtime("lua5.4")

    lines = dict(line.split(": ", 1) for line in run("lua"))

    assert ("0.1", "True", "35") == (lines["discount"], lines["free shipping"], lines["the next one"])
    assert "nil value (field 'totl')" in lines["typo"]
    assert "nil value (global 'os')" in lines["curious"]
    assert "ended after 0.5 s" == lines["endless"]


def test_lines_through_jq(require_runtime: Callable[[str], str]) -> None:
    """Values arrive as values."""
    require_runtime("jq")

    lines = run("jq")

    assert "Grace    purchase   12.50 2 tags" == lines[1]
    assert "spent in all: 111.50" == lines[-1]


def test_text_of_pdfs(require_runtime: Callable[[str], str]) -> None:
    """Each file's text, and for what is no PDF the program's own complaint."""
    require_runtime("pdftotext")

    lines = run("pdf")

    assert [f"letter {n}: Dear reader number {n}" for n in (1, 2, 3)] == lines[:3]
    assert re.match(r"a picture: exit code 1, .*PDF", lines[3])


def test_a_crash_in_c() -> None:
    """One call is lost, and no other."""
    lines = run("segfault")

    assert ["b'tea': 3", "None: the worker died of signal 11", "b'teapot': 6", "b'': 0"] == lines[:4]
    assert "restarts: 1, still serving: True" == lines[-1]

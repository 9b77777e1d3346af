"""Sphinx configuration; built with ``make docs``, where every warning is an error."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

from pygments.lexers.lisp import RacketLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

metadata = configparser.ConfigParser()
metadata.read(ROOT / "setup.cfg", encoding="utf-8")

project = "snakepit"
author = metadata["metadata"]["author"]
copyright = f"2026, {author}"
release = version = metadata["metadata"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "changelog.d"]

html_theme = "furo"
html_title = f"snakepit {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Off: the source of an attrs initializer names its own internals as defaults.
autodoc_preserve_defaults = False
# Attributes sections describe what the class body already declares.
napoleon_use_ivar = True


def setup(app: Sphinx) -> None:
    """Leave Tcl without colours, whose lexer trips over backslashes; Racket's knows more of Scheme's characters."""
    app.add_lexer("tcl", TextLexer)
    app.add_lexer("scheme", RacketLexer)

"""An adapter for Guile: what its users import."""

from pathlib import Path

from snakepit import ScriptAdapter
from snakepit.adapters import Runtime

HERE = Path(__file__).resolve().parent


class GuileAdapter(ScriptAdapter):
    """Guile workers, 3.0 or newer with guile-json; parameters as in ``ScriptAdapter``, ``handlers``: ``.scm``."""

    runtime = Runtime("Guile", ("guile", "guile-3.0"), (3, 0), {"apt": "guile-3.0 guile-json"}, signature="guile")
    bridge = str(HERE / "snakepit_bridge.scm")
    suffixes = (".scm",)
    default_program_args = ("--no-auto-compile",)

"""An adapter for Tcl: what its users import."""

from pathlib import Path

from snakepit import ScriptAdapter
from snakepit.adapters import Runtime

HERE = Path(__file__).resolve().parent


class TclAdapter(ScriptAdapter):
    """Tcl workers, 8.6 or newer; parameters as in ``ScriptAdapter``, ``handlers`` is a ``.tcl`` file."""

    # tclsh has no option that tells its version, but a script can.
    runtime = Runtime("Tcl", ("tclsh",), (8, 6), {"apt": "tcl", "brew": "tcl-tk"}, (str(HERE / "version.tcl"),))
    bridge = str(HERE / "snakepit_bridge.tcl")
    suffixes = (".tcl",)

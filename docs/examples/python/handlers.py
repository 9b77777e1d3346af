"""Runs in the other environment, with its numpy."""

import platform

import numpy
from snakepit_bridge import command


@command
def describe(values):
    """Return what this environment's numpy makes of some numbers."""
    array = numpy.asarray(values, dtype=float)
    return {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "mean": float(array.mean()),
        "trapezoid": float(numpy.trapz(array)),
    }

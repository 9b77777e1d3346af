"""The commands of a chaos run; runs in the Python bridge."""

from chaos.workers import calls
from snakepit_bridge import command

for function in (calls.step, calls.visit, calls.settle_in):
    command(function)

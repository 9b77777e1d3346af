"""The commands of a soak; runs in the Python bridge."""

from chaos.workers import soak_calls
from snakepit_bridge import command

for function in (soak_calls.give, soak_calls.count):
    command(function)

from snakepit_bridge import command


@command
def mirror(value):
    """Return the value."""
    return value

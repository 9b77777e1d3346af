"""What the workers of a soak do: callables as they are, and the body of the Python handlers."""


def give(value=None):
    """Return the argument."""
    return value


def count():
    """Return how often the session has been here."""
    from snakepit_bridge import context

    state = context().state
    state["n"] = state.get("n", 0) + 1
    return state["n"]

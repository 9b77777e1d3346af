"""Commands for bridge.py: functions of the args, as they came, and the state of the session."""


def shout(args, state):
    """Return a text in capitals."""
    return args["text"].upper()


def count(args, state):
    """Return how often this session has asked."""
    state["count"] = state.get("count", 0) + 1
    return state["count"]


COMMANDS = {"shout": shout, "count": count}

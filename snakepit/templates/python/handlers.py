"""The commands of the workers; runs in them, in whatever Python main.py names, so import what that Python has."""

from collections import Counter

from snakepit_bridge import command, context, on_start


@on_start
def load(stop_words):
    """Prepare what all calls need, once in each worker, before it serves: a model, a connection, a table."""
    context().worker_state["stop_words"] = set(stop_words)


@command
def frequent(text: str, count: int = 3):
    """Return the most frequent words of a text, as [word, how often]."""
    ignored = context().worker_state["stop_words"]
    words = [word for word in text.lower().split() if word not in ignored]
    return Counter(words).most_common(count)


@command
def remember(name: str):
    """Keep a name for this session."""
    context().state["name"] = name
    return "noted"


@command
def greet():
    """Greet whom this session knows."""
    name = context().state.get("name", "stranger")
    return f"Hello, {name}!"

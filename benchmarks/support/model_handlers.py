"""Inference: the model is loaded once a worker, and asked one row a request."""

import pickle

from snakepit_bridge import command, context, on_start


@on_start
def load(path):
    """Load the model, and warm it up."""
    import numpy

    with open(path, "rb") as file:
        context().worker_state.update(model=pickle.load(file), array=numpy.array)
    predict([0.0] * 64)


@command
def predict(row):
    """Return the class of one row."""
    state = context().worker_state
    return int(state["model"].predict(state["array"]([row]))[0])

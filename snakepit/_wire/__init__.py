"""Bytes and values: what JSON may carry, frames and messages, pickled calls."""

"""Flax NNX modules: thin shells over pure functions that hold parameters with logical axes."""

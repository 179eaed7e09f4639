"""Sweeps: which configs, in what order they run, what came out."""

"""Routers in which each token chooses its experts."""

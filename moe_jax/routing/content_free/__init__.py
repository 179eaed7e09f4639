"""Routers that do not look at what a token holds."""

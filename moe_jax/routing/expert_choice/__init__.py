"""Routers in which experts choose tokens, or slots mix them."""

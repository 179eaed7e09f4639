"""Routers that assign the tokens of a group to experts under a balance of loads."""

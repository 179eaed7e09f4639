"""Routers that balance by a bias, which enters the choice of experts and not their weights."""

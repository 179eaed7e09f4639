"""Datasets of fixed rows of tokens, their preparation, and the pipeline that reads them."""

"""The parallelism-invariance check: one config, made small, under many meshes and settings."""

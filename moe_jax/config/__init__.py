"""Machinery for configs: dataclasses as truth, ConfigDicts as surface, kinds, overrides, checks."""

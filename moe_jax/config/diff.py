"""What differs between two configs, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moe_jax.config.json_files import Json
from moe_jax.config.tree import join

ABSENT = object()


def difference(old: Mapping[str, Json], new: Mapping[str, Json], prefix: str = "") -> list[str]:
    """One line for each value that differs between two JSON dicts: ``path: old -> new``.

    `prefix` stands before each path. Lists are compared as wholes, tuples count as lists; 1 and
    1.0 are equal, 1 and true are not.
    """
    return list(_lines(old, new, prefix))


def _lines(old: object, new: object, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _lines(old.get(key, ABSENT), new.get(key, ABSENT), join(path, key))
    elif not _same(old, new):
        yield f"{path}: {_shown(old)} -> {_shown(new)}"


def _same(old: object, new: object) -> bool:
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    return isinstance(old, bool) == isinstance(new, bool) and old == new


def _shown(value: object) -> str:
    return "(absent)" if value is ABSENT else repr(value)

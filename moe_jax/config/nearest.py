"""What the user may have meant: the nearest of the names that exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like `name`, None where none is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest_path(path: str, paths: Iterable[str]) -> str | None:
    """The dotted path that `path` may stand for: one that ends in it, else the most alike."""
    paths = list(paths)
    endings = [known for known in paths if known.endswith("." + path)]
    return endings[0] if endings else nearest(path, paths)


def choices(name: str, names: Iterable[str], *, here: str = "there are") -> str:
    """ "did you mean ...?", or the names that there are."""
    names = list(names)
    if (match := nearest(name, names)) is not None:
        return f"did you mean {match}?"
    return f"{here}: {', '.join(names)}" if names else "there are none"

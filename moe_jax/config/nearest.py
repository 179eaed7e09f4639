"""What the user may have meant: the nearest of the names that exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like `name`, None where none is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest_path(path: str, paths: Iterable[str]) -> str | None:
    """The dotted path that `path` may stand for: one that ends in it, else the most alike of those
    of its last name ("model.moe.k" is moe.router.k), else the most alike."""
    paths = list(paths)
    endings = [known for known in paths if known.endswith("." + path)]
    if endings:
        return endings[0]
    last = path.rpartition(".")[2]
    named = [known for known in paths if known.rpartition(".")[2] == last]
    return max(named, key=lambda known: _alike(path, known)) if named else nearest(path, paths)


def _alike(path: str, known: str) -> tuple[int, float]:
    """How many names they share, and how much of their letters."""
    shared = set(path.split(".")) & set(known.split("."))
    return len(shared), difflib.SequenceMatcher(None, path, known).ratio()


def choices(name: str, names: Iterable[str], *, here: str = "there are") -> str:
    """ "did you mean ...?", or the names that there are."""
    names = list(names)
    if (match := nearest(name, names)) is not None:
        return f"did you mean {match}?"
    return f"{here}: {', '.join(names)}" if names else "there are none"

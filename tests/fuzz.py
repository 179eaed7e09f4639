"""Drawn cases: MOE_JAX_FUZZ_EXAMPLES says how many of each test (25), MOE_JAX_FUZZ_SEED which (new
ones each time; a failure shows the seed). `make test-fuzz` draws 2000."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

EXAMPLES = int(os.environ.get("MOE_JAX_FUZZ_EXAMPLES", "25"))
SEED = int(os.environ.get("MOE_JAX_FUZZ_SEED") or random.SystemRandom().getrandbits(32))
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "moe_jax_fuzz")  # not in the clone

HUGE = [10**400, -(10**30), 2**63, 2**31, -1, 0, 1]
numbers = st.sampled_from(HUGE) | st.integers() | st.floats()
texts = st.text(max_size=20) | st.sampled_from(["", "NaN", "none", "\ud800", "a" * 5000, "../x"])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
DEEP = "[" * 100_000


def drawn(test: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the test with so many drawn cases, and names its seed where it fails."""
    print(f"MOE_JAX_FUZZ_SEED={SEED}")
    unhurried = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return seed(SEED)(unhurried(test))


@st.composite
def damaged(draw: st.DrawFn, tree: Any) -> Any:
    """A copy of a JSON value in which one value, somewhere, is another or gone."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(tree)))
        copy = dict(tree)
        what = draw(st.integers(0, 9))
        if what == 0:
            del copy[key]
        elif what == 1:
            copy[draw(texts)] = copy.pop(key)
        else:
            copy[key] = draw(damaged(tree[key]))
        return copy
    if isinstance(tree, list) and tree and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(tree) - 1))
        return [*tree[:at], draw(damaged(tree[at])), *tree[at + 1 :]]
    return draw(json_values)


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """A copy that is cut off, or has other bytes somewhere."""
    start = draw(st.integers(0, len(content)))
    if draw(st.booleans()):
        return content[:start]
    stop = min(start + draw(st.integers(0, 9)), len(content))
    return content[:start] + draw(st.binary(max_size=9)) + content[stop:]

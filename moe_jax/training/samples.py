"""Some rows of an evaluation with what a model makes of them, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_jax.analysis.report.samples import Samples
from moe_jax.data.histories import HistoryRows
from moe_jax.data.paired import PairRows
from moe_jax.tasks.next_item import ItemOfHistory

ROWS, MOST = 8, 24  # that are shown
SEARCHED = 2000  # rows, for one of each pair of languages
LATELY, OFFERED = 4, 5  # items: the last ones of a history, the first ones of a model


def translated(rows: PairRows, translate: Callable[[list[str], list[str]], list[str]]) -> Samples:
    """The first row of each pair of languages, and others up to eight. translate: of texts, each
    with its language."""
    places = map(rows.place_of, range(min(SEARCHED, len(rows))))
    domain = [int(rows.domain_of_row[place]) for place in places]
    first = [domain.index(number) for number in sorted(set(domain))]
    others = [index for index in range(len(domain)) if index not in first]
    shown = [*first, *others[: max(ROWS - len(first), 0)]][:MOST]
    pairs, texts = [rows.domains[domain[i]] for i in shown], [rows.texts(i) for i in shown]
    written = translate([source for source, _ in texts], [p.partition("-")[2] for p in pairs])
    return Samples(
        "Some held-out texts, as people translated them and as the model does (beam search).",
        ("pair", "source", "reference", "the model"),
        [
            (pair, source, reference, made)
            for pair, (source, reference), made in zip(pairs, texts, written, strict=True)
        ],
    )


def recommended(rows: HistoryRows, batch: Mapping[str, np.ndarray], predictions: Any) -> Samples:
    """Of the first rows of a batch what somebody had lately, had next, and what the model says."""
    items = len(rows.names)
    raw = {name: jnp.asarray(values) for name, values in batch.items()}
    ranks = np.asarray(ItemOfHistory(items).ranks(predictions, raw))
    logits_BV = np.asarray(predictions.at(np.maximum(batch["held"], 0)))
    found = []
    for b in np.flatnonzero(ranks > 0)[:ROWS]:
        place = int(batch["held"][b])
        history = batch["tokens"][b, : place + 1]
        open_V = np.where(batch["seen"][b, :items] > 0, -np.inf, logits_BV[b, :items])
        open_V[0] = -np.inf  # which is no item
        best = np.argsort(-open_V, kind="stable")[:OFFERED]
        lately, had, offered = (
            "; ".join(rows.names[int(i)] for i in ids)
            for ids in (history[-LATELY:], batch["tokens"][b, place + 1 : place + 2], best)
        )
        found.append((lately, had, f"{ranks[b]:,}", offered))
    return Samples(
        "The last items of some histories, the next one, which was held out, its rank among all "
        "that were not in the history, and what the model puts first.",
        ("lately", "next", "rank", "the model"),
        found,
    )

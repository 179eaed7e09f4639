"""What --routing adds to a report: text by expert, preferences, pairs, saturation, drops."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from moe_jax.analysis import preferences
from moe_jax.analysis.languages import by_family, family
from moe_jax.analysis.read_run import Series
from moe_jax.analysis.report import pictures, samples
from moe_jax.analysis.report.frame import figure
from moe_jax.analysis.report.heat_map import named_grid, scale
from moe_jax.analysis.report.line_chart import Line, line_chart
from moe_jax.analysis.report.numbers import formatted
from moe_jax.analysis.report.pictures import Picture
from moe_jax.analysis.report.samples import Samples
from moe_jax.analysis.report.sections import Rows, Section, drawn
from moe_jax.analysis.report.tables import table
from moe_jax.analysis.specialisation import domain_counts
from moe_jax.analysis.trace import Trace

TEXT_TOKENS = 700  # of the text that is shown, over all domains
MAX_TEXTS = 12
SHOWN_LAYERS = 3  # the first, the middle and the last; the others fold away
MAX_DOMAINS = 12
MAX_MAPS = 8
BINS = 32
ONE_OF = {
    "Domains": "domain",
    "Classes": "class",
    "Source languages": "source language",
    "Target languages": "target language",
}
VISIBLE = {"\n": "⏎\n", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class RoutingView:
    """Traces of one run on the same tokens, at its checkpoints, the newest last. text: of a token
    id, for people. picture: of a row, where rows are images. rows_are_text: rows without a picture
    are so, and not rows of a table. samples: some rows with what the model makes of them."""

    traces: Sequence[Trace]
    text: Callable[[int], str]
    picture: Callable[[int], Picture] | None = None
    rows_are_text: bool = True
    samples: Samples | None = None

    @property
    def last(self) -> Trace:
        return self.traces[-1]


def routing_sections(view: RoutingView) -> list[Section]:
    """What a page has of where tokens went, in reading order."""
    if not preferences.taken(view.last).any():
        why = (
            "<p>This router assigns no token to an expert (every expert gets a mixture of all "
            "tokens), so there are no routes to show.</p>"
        )
        return [Section("text", "Text by expert", why)]
    return drawn(SECTIONS, view)


def _by_layer(view: RoutingView, draw: Callable[[int], str], kind: str = "") -> str:
    """draw(number) for the first, the middle and the last layer; the others fold away. kind: of the
    boxes around both."""
    count = len(view.last.layers_L)
    shown = sorted({round(n) for n in np.linspace(0, count - 1, min(SHOWN_LAYERS, count))})
    parts, rest = (
        "".join(draw(layer) for layer in range(count) if (layer in shown) == first)
        for first in (True, False)
    )
    boxed = f'<div class="{kind}">{parts}</div>'
    if not rest:
        return boxed
    more = count - len(shown)
    more_text = f"{more} more layer" + ("s" if more > 1 else "")
    return (
        f'{boxed}<details><summary>{more_text}</summary><div class="{kind}">{rest}</div></details>'
    )


def _title(view: RoutingView, layer: int) -> str:
    return view.last.title(layer)


# Text


def _text(view: RoutingView) -> str:
    """Nothing of rows that are no text."""
    if view.picture is not None or not view.rows_are_text:
        return ""
    trace = view.last
    experts = preferences.leading_expert(trace)
    rows = _sample_rows(trace)
    length = TEXT_TOKENS // len(rows)

    def draw(layer: int) -> str:
        paragraphs = "".join(
            f'<p class="text">{_coloured(view, layer, row, experts[layer, row], length)}</p>'
            for row in rows
        )
        return figure(_title(view, layer), paragraphs, kind="panel")

    intro = (
        "<p>Each token has the colour of the expert with the largest weight among those that took "
        "it (point at it for the number); without colour: none took it. ⏎ is the end of a line. "
        f"From the evaluation at step {trace.step:,}.</p>"
    )
    return intro + _palette(trace.num_experts) + _by_layer(view, draw, "texts")


def _sample_rows(trace: Trace) -> list[int]:
    """The first row of each of the first domains, at least two rows; of short rows as many as there
    is room for."""
    _, first = np.unique(trace.domain_N, return_index=True)
    rows = sorted(first.tolist())[:4]
    length = max(int((trace.segment_LNS > 0).sum(axis=2).mean()), 1)
    count = max(2, len(rows), min(TEXT_TOKENS // length, MAX_TEXTS))
    others = [row for row in range(trace.rows) if row not in rows]
    return sorted([*rows, *others[: count - len(rows)]])


def _coloured(view: RoutingView, layer: int, row: int, expert_S: np.ndarray, length: int) -> str:
    """The row's first tokens, runs of one expert in one span."""
    trace = view.last
    token_S = trace.token_LNS[layer, row]
    real = np.flatnonzero(trace.segment_LNS[layer, row] > 0)[:length]
    spans = []
    for expert, group in itertools.groupby(real, key=lambda s: int(expert_S[s])):
        text = "".join(_visible(view.text(int(token_S[s]))) for s in group)
        if expert < 0:
            spans.append(escape(text))
        else:
            style = f"background:{colour(expert, trace.num_experts)}"
            spans.append(f'<i style="{style}" title="expert {expert}">{escape(text)}</i>')
    return "".join(spans)


def _visible(text: str) -> str:
    return "".join(VISIBLE.get(letter, letter) for letter in text)


def colour(expert: int, num_experts: int) -> str:
    """A light background, on which black text is read in either mode. Neighbours differ by the
    golden angle of hue; beyond 12 experts lightness and strength differ too."""
    hue = round(expert * 137.508 % 360)
    level = (expert // 12) % 3 if num_experts > 12 else 0
    return f"hsl({hue} {(72, 55, 90)[level]}% {(80, 70, 88)[level]}%)"


def _palette(num_experts: int) -> str:
    keys = "".join(
        f'<i style="background:{colour(e, num_experts)}">{e}</i>' for e in range(num_experts)
    )
    return f'<p class="palette">{keys}</p>'


def _samples(view: RoutingView) -> str:
    return samples.shown(view.samples, view.last.step)


# Pictures


def _pictures(view: RoutingView) -> str:
    """Some images with their patches in the colours of experts, and where each expert looks.
    Nothing of rows that are no images."""
    trace, picture = view.last, view.picture
    if picture is None:
        return ""
    experts = preferences.leading_expert(trace)
    colours = [colour(e, trace.num_experts) for e in range(trace.num_experts)]
    rows = _rows_of_classes(trace)

    def draw(layer: int) -> str:
        shown = "".join(pictures.drawn(picture(row), experts[layer, row], colours) for row in rows)
        return figure(_title(view, layer), f'<div class="pictures">{shown}</div>', kind="panel")

    intro = (
        "<p>Each patch has the colour of the expert with the largest weight among those that took "
        "it (point at it for the number); without colour: none took it. From the evaluation at "
        f"step {trace.step:,}.</p>"
    )
    return intro + _palette(trace.num_experts) + _by_layer(view, draw, "texts")


def _maps(view: RoutingView) -> str:
    """Images whose pixels have a class each: what is there, and what the model says."""
    found = _of_classes(view)
    if not found or not found[0].maps:
        return ""
    names = view.last.classes or ()
    rgb = [class_colour(c, len(names)) for c in range(len(names))]
    rows = [
        [
            pictures.alone(pictures.shown(one.pixels), "image"),
            *(pictures.mapped(one, name, rgb) for name in one.maps),
        ]
        for one in found
    ]
    intro = (
        "<p>Some images, the true class of each pixel and the one that the model finds; grey "
        f"counts nowhere. From the evaluation at step {view.last.step:,}.</p>"
    )
    return intro + _side_by_side(names, rows)


def _boxes(view: RoutingView) -> str:
    """Images with objects in boxes: those that are there, and those that the model finds."""
    found = _of_classes(view)
    if not found or not found[0].boxes:
        return ""
    names = view.last.classes or ()
    rgb = [class_colour(c, len(names)) for c in range(len(names))]
    rows = [[pictures.framed(one, name, rgb) for name in one.boxes] for one in found]
    intro = (
        "<p>Some images, the objects that are there and those that the model finds with a score of "
        "at least a third (point at a box for its class and score). From the evaluation at step "
        f"{view.last.step:,}.</p>"
    )
    return intro + _side_by_side(names, rows)


def _of_classes(view: RoutingView) -> list[Picture]:
    """Some images whose patches have classes."""
    if view.picture is None or view.last.class_NS is None or not view.last.classes:
        return []
    return [view.picture(row) for row in _rows_of_classes(view.last)]


def _side_by_side(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Pictures of an image beside each other, below the colours of the classes."""
    keys = "".join(
        f'<span><i style="background:rgb{class_colour(c, len(names))}"></i> {escape(name)}</span>'
        for c, name in enumerate(names)
    )
    shown = "".join(f'<div class="pictures">{"".join(row)}</div>' for row in rows)
    return f'<p class="palette keys">{keys}</p><div class="maps">{shown}</div>'


def class_colour(number: int, count: int) -> tuple[int, int, int]:
    """A strong colour for a class, the hues evenly apart, every second one darker."""
    light, strength = (0.55, 0.65) if number % 2 == 0 else (0.38, 0.7)
    red, green, blue = colorsys.hls_to_rgb(number / max(count, 1), light, strength)
    return round(255 * red), round(255 * green), round(255 * blue)


def _rows_of_classes(trace: Trace) -> list[int]:
    """A row of each of the first classes; where pixels have classes, those rows with most of
    them."""
    valid = np.flatnonzero(trace.segment_NS.any(axis=1))
    if trace.class_NS is not None:
        different = [len(np.unique(trace.class_NS[row])) for row in valid]
        return [int(row) for row in valid[np.argsort(different, kind="stable")[::-1]][:MAX_MAPS]]
    labels = np.zeros(trace.rows, int) if trace.label_N is None else trace.label_N
    _, first = np.unique(labels[valid], return_index=True)
    return [int(row) for row in valid[np.sort(first)][:MAX_DOMAINS]]


def _places(view: RoutingView, layer: int) -> str:
    """Which places of the image each expert takes: its share of the patches there."""
    trace = view.last
    assert view.picture is not None
    some = view.picture(_rows_of_classes(trace)[0])
    there = preferences.taken(trace)[layer]
    S, E = trace.token_NS.shape[1], trace.num_experts
    counts_SE = np.zeros((S, E))
    place = np.broadcast_to(np.arange(S)[None, :, None], there.shape)[there]
    np.add.at(counts_SE, (place, trace.expert_LNSK[layer][there]), 1)
    share_SE = counts_SE / np.maximum(counts_SE.sum(axis=1, keepdims=True), 1)
    maps = [pictures.place_map(some.by_patch(share_SE[:, e]) * E, f"expert {e}") for e in range(E)]
    return (
        scale("times an even share of the patches at a place")
        + f'<div class="pictures">{"".join(maps)}</div>'
    )


# Several gates


def _gates(view: RoutingView) -> str:
    """Which gate weighs which expert, and how alike gates are beside their targets. Nothing of one
    gate."""
    trace = view.last
    if not trace.gates:
        return ""
    names = list(dict.fromkeys(trace.gates))
    share_LE, K = preferences.gate_shares(trace), len(names)

    def draw(number: int) -> str:
        rows = slice(number * K, (number + 1) * K)
        asked = share_LE[rows].sum(axis=1) > 0
        shown = [f"gate {name}" for name, is_asked in zip(names, asked, strict=True) if is_asked]
        title = f"Layer {int(trace.layers_L[number * K])}"
        times = share_LE[rows][asked] * trace.num_experts
        drawn = named_grid(times, shown, _numbers(view), f"{title}, gates", "times")
        caption = "The share of each expert in what a gate gives, over all rows."
        return figure(f"{title}: gates by experts", drawn, caption=caption, kind="panel")

    layers = "".join(draw(number) for number in range(len(trace.gates) // K))
    intro = (
        "<p>Each target has a gate of its own over the experts: warm experts carry it, and what "
        f"two gates have warm they share. From the evaluation at step {trace.step:,}.</p>"
    )
    return intro + scale("times an even share") + layers + _sharing(trace, names)


def _sharing(trace: Trace, names: Sequence[str]) -> str:
    """Pairs of targets: how they go together, and how much of their experts' weights they share."""
    targets = trace.targets or ()
    if len(targets) < 2:
        return ""
    overlap_LKK = preferences.gate_overlap(trace)
    related_TT = preferences.target_correlation(trace)
    layers = dict.fromkeys(int(layer) for layer in trace.layers_L)
    lines = [
        [
            escape(f"{targets[i]}, {targets[j]}"),
            formatted(float(related_TT[i, j])),
            *(
                formatted(float(overlap_KK[names.index(targets[i]), names.index(targets[j])]))
                for overlap_KK in overlap_LKK
            ),
        ]
        for i, j in itertools.combinations(range(len(targets)), 2)
    ]
    head = ["targets", "correlation", *(f"shared in layer {layer}" for layer in layers)]
    caption = (
        "Correlation: Pearson's, over the rows in which both are known. Shared: of a row, the sum "
        "over experts of the smaller of the two gates' weights; 1 is the same mixture, 0 has no "
        "expert in common."
    )
    return figure("Targets and what they share", table(head, lines), caption=caption, kind="panel")


# Preferences


def _preferences(view: RoutingView) -> str:
    trace = view.last
    groups = by_language(*domain_counts(trace)) or {"Domains": domain_counts(trace)}
    if trace.classes:
        groups["Classes"] = domain_counts(trace, "class")
    groups = {name: found for name, found in groups.items() if len(found[1]) > 1}
    if not groups and not view.rows_are_text:
        return ""
    load_LE = preferences.load(trace)

    def draw(layer: int) -> str:
        parts = [f"<h3>{_title(view, layer)}</h3>"]
        for name, (counts_LDE, domains) in groups.items():
            parts.append(_domains(view, layer, name, counts_LDE[layer], domains))
        if view.picture is not None:
            return "".join([*parts, _places(view, layer)])
        if not view.rows_are_text:
            return "".join(parts)
        liked = preferences.preferred_tokens(trace, layer)
        lines = [
            [
                f'<i class="mark" style="background:{colour(e, trace.num_experts)}">{e}</i>',
                formatted(float(load_LE[layer, e]), percent=True),
                _tokens(view, liked[e]),
            ]
            for e in range(trace.num_experts)
        ]
        shown = table(["expert", "load", "tokens, and the share of each that it takes"], lines)
        return "".join([*parts, f'<div class="likes">{shown}</div>'])

    if view.picture is not None or not view.rows_are_text:
        return _by_layer(view, draw)
    intro = (
        "<p>The input tokens that an expert takes most of: of all occurrences of a token (20 at "
        "least), the share that this expert took. By chance it were "
        f"{formatted(preferences.chance(trace, 0), percent=True)}. Load: of all wanted "
        "assignments, before drops.</p>"
    )
    return intro + _by_layer(view, draw)


def _tokens(view: RoutingView, liked: Sequence[preferences.Preference]) -> str:
    return " ".join(
        f'<span class="token" title="{one.count} occurrences"><code>'
        f"{escape(_visible(view.text(one.token)).replace(chr(10), ''))}</code>"
        f"&thinsp;{100 * one.share:.0f}&thinsp;%</span>"
        for one in liked
    )


def _domains(
    view: RoutingView, layer: int, kind: str, counts_DE: np.ndarray, domains: Sequence[str]
) -> str:
    """Domains (or classes, or languages) by experts, relative to the share that the expert takes
    of all."""
    largest = np.argsort(-counts_DE.sum(axis=1), kind="stable")[:MAX_DOMAINS]
    kept = sorted(largest.tolist())
    share_DE = counts_DE[kept] / np.maximum(counts_DE[kept].sum(axis=1, keepdims=True), 1)
    whole_E = counts_DE.sum(axis=0) / max(counts_DE.sum(), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        times = np.where(whole_E > 0, share_DE / whole_E, np.nan)
    names = [domains[d] for d in kept]
    title = f"{_title(view, layer)}, {kind.lower()}"
    drawn = named_grid(times, names, _numbers(view), title, "times")
    one = ONE_OF[kind]
    caption = f"How much more of a {one}'s assignments an expert takes than of all assignments."
    return scale("times its share of all") + figure(
        f"{kind} by experts", drawn, caption=caption, kind="panel"
    )


def by_language(
    counts_LDE: np.ndarray, domains: Sequence[str]
) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """Counts of pairs of languages, named "de-en", by the language of the source and by that of the
    target, families side by side; {} for domains that are no pairs."""
    pairs = [name.split("-") for name in domains]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        return {}
    found = {}
    for place, title in enumerate(("Source languages", "Target languages")):
        languages = by_family(sorted({pair[place] for pair in pairs}))
        counts = np.stack(
            [
                counts_LDE[:, [pair[place] == language for pair in pairs]].sum(axis=1)
                for language in languages
            ],
            axis=1,
        )
        names = [f"{code} ({family(code)})" if family(code) else code for code in languages]
        found[title] = (counts, tuple(names))
    return found


def _numbers(view: RoutingView) -> list[str]:
    return [str(e) for e in range(view.last.num_experts)]


# Pairs, saturation, drops


def _pairs(view: RoutingView) -> str:
    if view.last.expert_LNSK.shape[-1] < 2:
        return ""
    share_LEE = preferences.co_activation(view.last)
    if not np.nansum(share_LEE) > 0:
        return ""
    names = _numbers(view)

    def draw(layer: int) -> str:
        share_EE = share_LEE[layer]
        flat = share_EE[np.isfinite(share_EE)]
        times = share_EE / flat.mean() if flat.size and flat.mean() > 0 else share_EE
        title = f"{_title(view, layer)}, pairs"
        drawn = named_grid(times, names, names, title, "times", square=True)
        return figure(_title(view, layer), drawn, kind="panel")

    intro = (
        "<p>Of the tokens of an expert (row), the share that another one (column) took too, "
        "relative to the mean of all pairs: warm pairs are chosen together.</p>"
    )
    return intro + scale("times the mean of all pairs") + _by_layer(view, draw, "pairs")


def _saturation(view: RoutingView) -> str:
    if len(view.traces) < 2:
        return (
            "<p>One checkpoint only: nothing to compare with. config.checkpoint.keep_every keeps "
            "more of them.</p>"
        )
    steps = np.array([trace.step for trace in view.traces])
    K, E = view.last.expert_LNSK.shape[-1], view.last.num_experts
    figures = []
    for k, title in ((None, "All choices"), (1, "First choice")):
        if k == 1 and K == 1:
            continue
        share = preferences.saturation(view.traces, k)
        lines = _layer_lines(view, steps, share.T)
        chance = min(k or K, E) / E
        drawn, _ = line_chart(
            lines,
            (int(steps[0]), int(steps[-1])),
            percent=True,
            include=(0.0, 1.0),
            references=(chance,),
        )
        caption = f"Dashed: {formatted(chance, percent=True)}, by chance."
        figures.append(figure(title, drawn, caption=caption))
    intro = (
        "<p>The share of a token's experts at each checkpoint that it still has at the last one "
        "(2409.02060, section 5.1): how early routes settle. Cold to warm: first to last layer.</p>"
    )
    return f'{intro}<div class="grid charts">{"".join(figures)}</div>'


def _drops(view: RoutingView) -> str:
    trace = view.last
    bins = min(BINS, trace.token_NS.shape[1])
    share = preferences.dropped_by_position(trace, bins)
    if not np.nansum(share) > 0:
        return "<p>Nothing was dropped in this evaluation.</p>"
    S = trace.token_NS.shape[1]
    places = ((np.arange(bins) + 0.5) * S / bins).astype(int)
    lines = _layer_lines(view, places, share)
    drawn, _ = line_chart(lines, (0, S), percent=True, include=(0.0,), x_title="place in the row")
    caption = (
        "Dropped / wanted assignments by the token's place. Cold to warm: first to last layer."
    )
    return f'<div class="grid charts">{figure("Dropped assignments", drawn, caption=caption)}</div>'


def _layer_lines(view: RoutingView, steps: np.ndarray, values_LS: np.ndarray) -> list[Line]:
    """A line a layer, in the colours that reports have for layers."""
    count = len(values_LS)
    hues = np.linspace(205, 385, count) if count > 1 else [205.0]
    return [
        Line(
            _title(view, layer),
            Series(steps, values_LS[layer]),
            f"hsl({hues[layer] % 360:.0f} 62% var(--layer-light))",
            "total" if count == 1 else "layer",
        )
        for layer in range(count)
    ]


# How the rows of a task are shown is a row here.
SECTIONS: Rows[RoutingView] = (
    ("text", "Text by expert", _text),
    ("samples", "Samples", _samples),
    ("maps", "Classes of pixels", _maps),
    ("boxes", "Objects found", _boxes),
    ("pictures", "Patches by expert", _pictures),
    ("gates", "Gates by experts", _gates),
    ("preferences", "What experts prefer", _preferences),
    ("pairs", "Experts together", _pairs),
    ("saturation", "Saturation", _saturation),
    ("drops", "Drops by position", _drops),
)

STYLE = (
    pictures.STYLE
    + samples.STYLE
    + """
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 10px; max-width: none;
  font: 12.5px/1.65 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color: var(--text); }
.text i, .palette i, .mark { font-style: normal; color: #10151c; border-radius: 2px; }
.texts { display: grid; gap: 0 14px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.texts figure, .pairs figure { display: block; }
.palette { display: flex; flex-wrap: wrap; gap: 3px; }
.palette i, .mark { display: inline-block; min-width: 24px; text-align: center; font-size: 11px;
  padding: 1px 4px; }
.likes table td { white-space: normal; }
.likes { max-width: 100%; }
.token { display: inline-block; margin: 0 10px 2px 0; white-space: nowrap; font-size: 12px;
  color: var(--muted); }
.token code { color: var(--text); background: var(--grid); border-radius: 3px; padding: 0 4px;
  white-space: pre; }
.pairs { display: grid; gap: 0 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
"""
)

"""What other codebases mean by the same numbers, and how to say it in ours.

A load-balance coefficient or a capacity factor is a number in some codebase's convention.
CODEBASES names the conventions; `convert_coefficient` and `convert_capacity_factor` translate
between any two, or say why no number can; `config_overrides` sets this package to a codebase's
conventions, so that its numbers can be used as they are, and `config_gaps` names what it cannot
follow. A row that was not read in the source it names says so in its note.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from moe_jax.config.nearest import choices
from moe_jax.routing.balance import NORMALIZATIONS
from moe_jax.routing.capacity import ROUNDINGS


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How one codebase computes what a number of its configs means.

    None: the codebase has no such thing (no load-balance loss, no capacity), or, for drop_order,
    an order that is none of `token_choice.DROP_ORDERS`. A micro-batch is elsewhere often that of
    one data-parallel rank; here it is that of all.
    """

    normalization: str | None  # a name of balance.NORMALIZATIONS
    count: str = "all"  # choices that the load-balance loss counts: "all", or each token's "first"
    counted: str = "before"  # or "after" capacity has dropped
    over_layers: str = "sum"  # or "mean"; "pooled": one loss of the sums of all layers
    scope: str = "micro_batch"  # what a loss is taken over, see routing/losses.py
    capacity_rounding: str | None = None  # a name of capacity.ROUNDINGS
    min_capacity: int = 1
    drop_order: str | None = None
    renormalize_after_drop: bool = False
    cv_variance: str | None = None  # of importance and load loss
    noise: str = "none"
    max_k: int | None = None  # the loss is defined for no more choices than that
    source: str
    note: str = ""


CODEBASES: dict[str, Convention] = {
    "moe_jax": Convention(
        normalization="one",
        scope="global_batch",
        capacity_rounding="ceil",
        drop_order="token_major",
        cv_variance="population",
        noise="none, or that of the router's paper",
        source="the defaults of this package",
    ),
    "shazeer": Convention(
        normalization=None,
        cv_variance="population",
        noise="N(0, 1) softplus(x W_noise) on the logits, learned",
        source="1701.06538; tensor2tensor/utils/expert_utils.py, cv_squared",
        note="Importance and load loss only. The paper does not say which variance.",
    ),
    "gshard": Convention(
        normalization="one",
        count="first",
        scope="group",
        capacity_rounding="multiple_of_4_without_k",
        drop_order="choice_major",
        max_k=2,
        source="2006.16668; lingvo/core/gshard_layers.py, Top2GatingOnLogits",
        note="Algorithm 1 has 1/E in place of the E of the code: a coefficient on the printed "
        "formula is E^2 times smaller here. That the factor has no k means 2 for no slack. The sum "
        "over layers is from memory.",
    ),
    "switch": Convention(
        normalization="one",
        count="first",
        scope="group",
        capacity_rounding="floor_without_k",
        drop_order="choice_major",
        noise="input times uniform(1 - 0.01, 1 + 0.01)",
        source="2101.03961 eq. 3-6; mesh_tensorflow/transformer/moe.py",
        note="The paper has k = 1; with k = 2 Mesh TensorFlow counts first choices. The second "
        "place loss of that code is off.",
    ),
    "flaxformer": Convention(
        normalization="flaxformer",
        over_layers="mean",
        scope="group",
        capacity_rounding="round_without_k",
        min_capacity=4,
        drop_order="choice_major",
        noise="input times uniform(1 - jitter, 1 + jitter)",
        source="flaxformer/architectures/moe/{routing,moe_layers}.py; t5x/contrib/moe",
        note="batch_priority by an option.",
    ),
    "v_moe": Convention(
        normalization="one",
        count="first",
        scope="group",
        capacity_rounding="multiple_of_4",
        drop_order="choice_major",
        cv_variance="population",
        noise="N(0, 1) / E on the logits",
        source="2106.05974; vmoe/nn/routing.py, vmoe/moe.py, vmoe/nn/vit_moe.py",
        note="The load-balance loss (gshard_loss) is off by default; importance and load loss have "
        "weights of their own, where the paper has one weight on their mean. batch_priority by an "
        "option.",
    ),
    "tutel": Convention(
        normalization="one",
        count="first",
        capacity_rounding="k_times_floor",
        drop_order="choice_major",
        cv_variance="unbiased",
        noise="N(0, 1) gate_noise / E on the logits",
        source="tutel/impls/{losses,fast_dispatch}.py",
        note="Its other loss is the mean of importance and load loss: each has half the "
        "coefficient. Every layer returns its loss; the user adds them up.",
    ),
    "deepspeed": Convention(
        normalization="one",
        count="first",
        capacity_rounding="ceil",
        min_capacity=4,
        drop_order="choice_major",
        renormalize_after_drop=True,
        noise="the second expert is sampled (Gumbel)",
        max_k=2,
        source="deepspeed/moe/{layer,sharded_moe}.py, top2gating",
        note="For k > 2 another function (topkgating) counts all choices and drops the least "
        "probable. Read in forks; every layer returns its loss, the user adds them up.",
    ),
    "megablocks": Convention(
        normalization="one",
        over_layers="mean",
        capacity_rounding="floor",
        drop_order="token_major",
        noise="input times uniform(1 - jitter, 1 + jitter)",
        source="megablocks/layers/moe.py",
        note="dMoE is dropless. Older versions give each of the k choices a capacity of its own. "
        "The drop order is read from the sort by expert, not tried.",
    ),
    "megatron_core": Convention(
        normalization="one",
        capacity_rounding="ceil",
        noise="input times uniform(1 - eps, 1 + eps), if set",
        source="megatron/core/transformer/moe/{moe_utils,router}.py",
        note="Dropless unless a factor is set; drops the least probable tokens of each expert "
        "(moe_token_drop_policy probs). Scope and layers of load balancing type aux_loss.",
    ),
    "maxtext": Convention(
        normalization="maxtext",
        over_layers="mean",
        scope="row",
        capacity_rounding="floor_of_ceil",
        drop_order="token_major",
        source="MaxText/layers/moe.py, MaxText/train.py",
        note="Older versions round once, as floor. Dropless with a factor below 0 (from memory).",
    ),
    "hugging_face": Convention(
        normalization="hugging_face",
        over_layers="pooled",
        source="transformers/models/mixtral/modeling_mixtral.py, load_balancing_loss_func",
        note="Mixtral and its kin. One loss over the logits of all layers: with f = counts / T and "
        "p of a layer and <> the mean over layers, E sum <f> <p>; a mean of losses is E sum <f p>.",
    ),
    "levanter": Convention(
        normalization="levanter",
        source="levanter/models/mixtral.py",
    ),
    "deepseek": Convention(
        normalization="one",
        scope="row",
        source="2401.06066 eq. 12-14, 2405.04434 section 2.2.3; modeling_deepseek.py, MoEGate",
        note="The released code takes the loss of each sequence (seq_aux) and drops nothing; the "
        "training of DeepSeek-V2 dropped by device. Its device-level loss is ours, balanced = 1.",
    ),
}

# The losses whose coefficients can be converted.
LOSSES = ("load_balance", "importance", "load", "router_z")


def convention(codebase: str | Convention) -> Convention:
    """The row of CODEBASES; a Convention stands for itself. Raises ValueError."""
    if isinstance(codebase, Convention):
        return codebase
    if codebase not in CODEBASES:
        message = choices(codebase, CODEBASES)
        raise ValueError(f"no conventions are known by the name {codebase!r}; {message}")
    return CODEBASES[codebase]


def convert_coefficient(
    value: float,
    source: str | Convention,
    target: str | Convention,
    *,
    E: int,
    k: int,
    layers: int = 1,
    loss: str = "load_balance",
) -> float:
    """The coefficient with which the target's loss is, in value and gradient, the source's times
    `value`, whatever the routing.

    source, target: names of CODEBASES, or conventions. E, k, layers: experts, experts per token,
    sparse layers. loss: a name of LOSSES; router_z is the mean of logsumexp^2 everywhere and
    differs over layers only.

    load_balance: value * b_source(k) / b_target(k), with b the loss of a balanced router
    (`balance.NORMALIZATIONS`); importance and load: an unbiased variance is E / (E - 1) times the
    other. All: times layers from a sum to a mean over layers. Both losses are taken over the same
    tokens: the scope is a setting of its own.

    Raises ValueError where no factor exists: one counts all choices and the other the first,
    or before and after drops; layers are pooled on one side only; one has no such loss.
    """
    s, t = convention(source), convention(target)
    if loss not in LOSSES:
        raise ValueError(f"no loss {loss!r}; {choices(loss, LOSSES)}")
    if E < 1 or layers < 1 or not 1 <= k <= E:
        raise ValueError(
            f"E = {E}, k = {k}, layers = {layers}: must be at least 1, and k at most E"
        )
    if loss == "load_balance":
        factor = _balanced(s, t, k)
    elif loss == "router_z":
        factor = 1.0
    else:
        factor = _cv_scale(s, E) / _cv_scale(t, E)
    return value * factor * _layer_factor(s, t, layers, loss)


def _balanced(s: Convention, t: Convention, k: int) -> float:
    """The balanced router's loss in s over that in t. Raises ValueError."""
    for side in (s, t):
        if side.normalization is None:
            raise ValueError(f"{side.source} has no load-balance loss")
        if side.max_k is not None and k > side.max_k:
            raise ValueError(f"{side.source} defines the loss for k <= {side.max_k}, not k = {k}")
    value_s, value_t = (_normalization(side.normalization, k) for side in (s, t))
    if k > 1 and s.count != t.count:
        raise ValueError(
            f"no factor exists with k = {k}: one loss counts {s.count} choices, the other "
            f"{t.count}, so they are different functions of the routing (of a balanced router "
            f"they are {value_s:g} and {value_t:g}). In moe_jax, load_balance.count has both"
        )
    if s.counted != t.counted:
        raise ValueError(
            f"no factor exists: one loss counts {s.counted} drops, the other {t.counted}"
        )
    return value_s / value_t


def _normalization(name: str | None, k: int) -> float:
    return float(NORMALIZATIONS[cast(str, name)](cast(Any, float(k))))


def _cv_scale(side: Convention, E: int) -> float:
    """(std / mean)^2 of this side over that with the population variance. Raises ValueError."""
    if side.cv_variance is None:
        raise ValueError(f"{side.source} has no importance or load loss")
    if side.cv_variance == "population":
        return 1.0
    if E == 1:
        raise ValueError("E = 1: the loss is 0 whatever its coefficient")
    return E / (E - 1)


def _layer_factor(s: Convention, t: Convention, layers: int, loss: str) -> float:
    """The factor from s's combination of layers to t's. Raises ValueError."""
    # A plain mean over tokens is the same pooled; the others are no sums over tokens.
    sides = [
        "mean" if side.over_layers == "pooled" and loss == "router_z" else side.over_layers
        for side in (s, t)
    ]
    if layers > 1 and sides[0] != sides[1] and "pooled" in sides:
        raise ValueError(
            f"no factor exists with {layers} layers: one side takes one loss of the pooled "
            "statistics of all layers, which is neither the sum nor the mean of their losses. "
            "layers=1 compares one layer; of layers with the same loads the pooled loss is the mean"
        )
    weights = [1.0 if how == "sum" else 1 / layers for how in sides]
    return weights[0] / weights[1]


@dataclass(frozen=True)
class FactorRange:
    """The capacity factors that give `slots` slots per expert: smallest to largest.

    simplest: the one with the fewest decimals among them (of those, the smallest). largest is
    inf where more slots than tokens would be offered; smallest is 0 where a minimum decides.
    """

    slots: int
    smallest: float
    largest: float
    simplest: float


def slots_of(factor: float, codebase: str | Convention, *, T: int, E: int, k: int) -> int:
    """Slots of one expert for a group of T tokens, by the codebase's rounding and minimum; at
    most T, since a token chooses an expert at most once. Raises ValueError."""
    side = convention(codebase)
    if side.capacity_rounding is None:
        raise ValueError(f"{side.source} is dropless: it has no capacity factor")
    if not (T >= 1 and E >= 1 and 1 <= k <= E):
        raise ValueError(f"T = {T}, E = {E}, k = {k}: must be at least 1, and k at most E")
    if not 0 < factor < math.inf:
        raise ValueError(f"capacity factor {factor}: must be above 0 and finite")
    slots = ROUNDINGS[side.capacity_rounding](T, E, float(k), float(factor))
    return min(max(slots, side.min_capacity), T)


def convert_capacity_factor(
    factor: float,
    source: str | Convention,
    target: str | Convention,
    *,
    T: int,
    E: int,
    k: int,
) -> FactorRange:
    """The factors that give in the target as many slots as `factor` in the source.

    T: tokens of a group, by which both round. Raises ValueError where the target's rounding cannot
    give that number (V-MoE only has multiples of 4), or one of them is dropless.
    """
    wanted = slots_of(factor, source, T=T, E=E, k=k)

    def slots(candidate: float) -> int:
        return slots_of(candidate, target, T=T, E=E, k=k)

    most = 4.0 * E  # beyond: more than T slots by any rounding
    smallest = _first(lambda f: slots(f) >= wanted, most)
    if (found := slots(smallest)) != wanted:
        below = f"{slots(smallest * (1 - 1e-6))} or " if smallest > TINY else ""
        raise ValueError(
            f"{wanted} slots (T = {T}, E = {E}, k = {k}) cannot be had by the rounding "
            f"{convention(target).capacity_rounding!r}: the nearest are {below}{found}"
        )
    if slots(most) == wanted:
        largest = math.inf
    else:
        largest = math.nextafter(_first(lambda f: slots(f) > wanted, most), 0)
    simplest = _simplest(smallest, largest)
    smallest = 0.0 if smallest == TINY else smallest
    return FactorRange(slots=wanted, smallest=smallest, largest=largest, simplest=simplest)


TINY = 1e-6  # a factor below which no rounding is asked


def _first(reached: Callable[[float], bool], most: float) -> float:
    """The smallest float in [TINY, most] where `reached`, which stays true once it is."""
    low, high = TINY, most
    if reached(low):
        return low
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _simplest(smallest: float, largest: float) -> float:
    """The number with the fewest decimals in [smallest, largest]."""
    for decimals in range(15):
        candidate = math.ceil(smallest * 10**decimals) / 10**decimals
        if smallest <= candidate <= largest:
            return candidate
    return smallest


def config_overrides(codebase: str | Convention) -> dict[str, object]:
    """The settings of a config, by dotted path, that make a codebase's numbers mean here what they
    mean there. What no setting can follow is in `config_gaps`; coefficients, factors and the
    router are the paper's to say."""
    side = convention(codebase)
    overrides: dict[str, object] = {}
    if side.normalization is not None:
        overrides["moe.losses.load_balance.normalization"] = side.normalization
        overrides["moe.losses.load_balance.count"] = side.count
        overrides["moe.losses.load_balance.scope"] = side.scope
    overrides["moe.losses.over_layers"] = "sum" if side.over_layers == "sum" else "mean"
    if side.cv_variance is not None:
        for name in ("importance", "load"):
            overrides[f"moe.losses.{name}.variance"] = side.cv_variance
            overrides[f"moe.losses.{name}.scope"] = side.scope
    if side.capacity_rounding is None:
        overrides["moe.capacity_factor"] = None
        return overrides
    if side.capacity_rounding in ROUNDINGS:
        overrides["moe.capacity_rounding"] = side.capacity_rounding
    overrides["moe.min_capacity"] = side.min_capacity
    overrides["moe.renormalize_after_drop"] = side.renormalize_after_drop
    if side.drop_order is not None:
        overrides["moe.router.drop_order"] = side.drop_order
    return overrides


def config_gaps(codebase: str | Convention) -> dict[str, str]:
    """Where `config_overrides` cannot follow the codebase: path -> what differs."""
    side = convention(codebase)
    gaps = {}
    if side.over_layers == "pooled":
        gaps["moe.losses.over_layers"] = (
            "one loss of all layers' statistics has no setting; mean is the same for layers with "
            "the same loads"
        )
    if side.counted == "after":
        gaps["moe.losses.load_balance"] = "loads are counted before drops here"
    if side.capacity_rounding is not None:
        if side.capacity_rounding not in ROUNDINGS:
            gaps["moe.capacity_rounding"] = (
                f"{side.capacity_rounding} has no setting; convert the factor for your T, E and k"
            )
        if side.drop_order is None:
            gaps["moe.router.drop_order"] = "its order has no setting"
    return gaps

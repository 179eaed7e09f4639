"""How many assignments one expert takes from one group, by each codebase's rounding.

The same factor means different capacities elsewhere: for T=10, E=4, k=2 and factor 1.25 it is 8
in V-MoE, 7 in Megatron, 6 in Tutel, MegaBlocks and MaxText, 4 in Flaxformer.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def _ceil(T: int, E: int, k: float, factor: float) -> int:
    return math.ceil(round(T * k * factor / E, 9))


def _floor(T: int, E: int, k: float, factor: float) -> int:
    return math.floor(round(T * k * factor / E, 9))


def _multiple_of_4(T: int, E: int, k: float, factor: float) -> int:
    return 4 * math.ceil(_ceil(T, E, k, factor) / 4)


def _without_k(T: int, E: int, k: float, factor: float) -> int:
    # Switch eq. 3 counts one expert per token; Flaxformer keeps that formula for k > 1.
    return max(math.ceil(round(T * factor / E, 9)), 4)


def _k_times_floor(T: int, E: int, k: float, factor: float) -> int:
    return int(k * math.floor(round(factor * math.ceil(T / E), 9)))


def _floor_of_ceil(T: int, E: int, k: float, factor: float) -> int:
    return math.floor(round(max(math.ceil(round(T * k / E, 9)) * factor, factor), 9))


def _round_without_k(T: int, E: int, k: float, factor: float) -> int:
    return round(factor * T / E)


def _floor_without_k(T: int, E: int, k: float, factor: float) -> int:
    return math.floor(round(T * factor / E, 9))


def _multiple_of_4_without_k(T: int, E: int, k: float, factor: float) -> int:
    return 4 * math.ceil(_floor_without_k(T, E, k, factor) / 4)


ROUNDINGS: dict[str, Callable[[int, int, float, float], int]] = {
    "ceil": _ceil,  # Megatron-Core
    "floor": _floor,  # MegaBlocks; often the same as Tutel and MaxText, which round twice
    "multiple_of_4": _multiple_of_4,  # V-MoE
    "without_k": _without_k,  # Switch eq. 3, at least 4
    "k_times_floor": _k_times_floor,  # k floor(factor ceil(T / E)): Tutel
    "floor_of_ceil": _floor_of_ceil,  # floor(factor ceil(T k / E)): MaxText
    "round_without_k": _round_without_k,  # round(factor T / E), halves to even: Flaxformer
    "floor_without_k": _floor_without_k,  # floor(factor T / E): Mesh TensorFlow
    "multiple_of_4_without_k": _multiple_of_4_without_k,  # the same, up to 4 n: Lingvo
}


def expert_capacity(
    T: int, E: int, k: float, factor: float | None, rounding: str = "ceil", minimum: int = 1
) -> int | None:
    """Slots of one expert for one group: round(T * k * factor / E), at least `minimum`, at most T.

    Args:
      T: tokens of the group. E: experts. k: experts per token.
      factor: capacity factor; None means dropless and returns None.
      rounding: a name of ROUNDINGS. Products are rounded to 9 decimals first, so that 1.1 * 10
        does not become 12.

    A token chooses an expert at most once, so more than T slots are never used.
    Source: Switch (2101.03961) eq. 3 with the k of V-MoE (2106.05974) eq. 4.
    """
    if factor is None:
        return None
    return min(max(ROUNDINGS[rounding](T, E, k, factor), minimum), T)

"""Mixture of depths: which tokens of a row take part in a block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.nn.context import Context, LayerReport, Routes, TokenBatch
from moe_jax.nn.cost import Cost
from moe_jax.nn.param import parameter
from moe_jax.parallel.mesh import ROW_AXES
from moe_jax.routing.choice import kernel_spec
from moe_jax.routing.types import ROW_PARTS

T = TypeVar("T")
WEIGHTS = ("linear", "sigmoid")
ROWS = PartitionSpec(ROW_AXES)


@dataclass(frozen=True, kw_only=True)
class MixtureOfDepths:
    """In layers first, first + every, ... only c tokens of a row take part; every=0: in none.

    capacity: c = ceil(capacity S) of a row of S. The router scores each token, r_t = w x_t, and
    the c highest of a row are chosen; ties go to the earlier token.
    weight: what the block's contribution is multiplied by, r_t (`linear`) or its `sigmoid`.
    init_scale: the router's initial variance is init_scale / D.

    Raposo et al. (2404.02258) eq. 1; they find every second block and 0.125 best. The choice looks
    at later tokens, so such a model cannot generate; their predictor, which could, is not here.
    """

    every: int = 0
    first: int = 1
    capacity: float = 0.125
    weight: str = "linear"
    init_scale: float = 1.0

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "every", "first", "init_scale")
        yield from one_of(self, WEIGHTS, "weight")
        if not 0 < self.capacity <= 1:
            yield "capacity", "must be above 0 and at most 1"

    def chooses_in(self, layer: int) -> bool:
        """Whether layer number `layer` (from 0) has a router of depths."""
        return self.every > 0 and layer >= self.first and (layer - self.first) % self.every == 0

    def tokens(self, S: int) -> int:
        """c, how many of the S tokens of a row take part."""
        return max(math.ceil(self.capacity * S - 1e-9), 1)

    def make(self, D: int, mesh: Mesh, rngs: nnx.Rngs) -> DepthRouter:
        """What stands around such a block."""
        return DepthRouter(self, D, mesh, rngs)

    def cost(self, block: Callable[[int], Cost], D: int, S: int) -> Cost:
        """Of such a block, given what it costs for rows of so many tokens: of the S of a row c pay,
        and attention is among c."""
        c = self.tokens(S)
        router = Cost(parameters=D, active=D, multiplied=D, router=D)
        return block(c).of_some(c / S) + router

    def fits(self, num_layers: int, sequence: int) -> Iterator[Rule]:
        """The rules of the model around it; sequence: devices that a row is split over."""
        if not self.every:
            return
        if self.first >= num_layers:
            yield "first", f"must be below model.num_layers = {num_layers}"
        if sequence > 1:
            yield (
                "every",
                f"needs mesh.sequence = 1, not {sequence}: it chooses among a whole row",
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DepthReport:
    """Statistics of one block with a mixture of depths, additive over rows."""

    chosen: Int[Array, "*L B"]  # valid tokens that take part
    valid: Int[Array, "*L B"]
    weight: Float[Array, "*L B"]  # sum of the weights of the chosen

    def metrics(self) -> dict[str, np.ndarray]:
        """By layer, from sums over all rows:

        passed_fraction  share of the tokens that pass the block by
        weight           mean weight of those that take part
        """
        chosen, valid, weight = (np.asarray(x) for x in (self.chosen, self.valid, self.weight))
        return {
            "passed_fraction": 1 - chosen / np.maximum(valid, 1),
            "weight": weight / np.maximum(chosen, 1),
        }


def choose_tokens(
    score_T: Float[Array, "T"], valid_T: Bool[Array, "T"], c: int
) -> Int[Array, "{c}"]:
    """The places of the c highest scores, ascending. Padding comes last: it is among them only
    where fewer than c tokens are valid."""
    _, place_C = jax.lax.top_k(jnp.where(valid_T, score_T, -jnp.inf), c)
    return jnp.sort(place_C).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The tokens of a batch that take part: their places in the row, ascending, and the weights of
    the block's contribution (float32; 0 for padding)."""

    place_BC: Int[Array, "B C"]
    weight_BC: Float[Array, "B C"]


# What attention and what the feed-forward layer add to some tokens of rows of `span`, and the
# report of the latter.
Parts = Callable[[Array, TokenBatch, Context, int], tuple[Array, Array, LayerReport | None]]


class DepthRouter(nnx.Module):
    """Chooses the tokens of a row, gathers them and scatters what the block adds to them.

    Each device does it for its own rows: no collective.
    """

    def __init__(self, config: MixtureOfDepths, D: int, mesh: Mesh, rngs: nnx.Rngs):
        spec = kernel_spec(D, 1, config.init_scale)
        form: dict[str, Any] = dict(matrix=spec.matrix, decays=spec.decays)
        self.kernel = parameter(rngs, spec.init, spec.shape, spec.axes, **form)
        self.config, self.mesh = config, mesh

    def around(
        self, parts: Parts, x_BSD: Float[Array, "B S D"], batch: TokenBatch, context: Context
    ) -> tuple[Float[Array, "B S D"], LayerReport | None, DepthReport]:
        """The block's output: each chosen token gets x + r (what the block adds), the others x."""
        S = x_BSD.shape[1]
        x_BCD, batch, chosen, depth = self.gather(x_BSD, batch)
        h_BCD, y_BCD, report = parts(x_BCD, batch, _of_chosen(context, chosen), S)
        if report is not None and report.routes is not None:
            routes = self.spread(report.routes, chosen, S)
            report = dataclasses.replace(report, routes=routes)
        return self.scatter_add(x_BSD, h_BCD + y_BCD, chosen), report, depth

    def gather(
        self, x_BSD: Float[Array, "B S D"], batch: TokenBatch
    ) -> tuple[Float[Array, "B C D"], TokenBatch, Chosen, DepthReport]:
        """The chosen tokens in the order of the row, with their positions and segments."""
        return self._on_rows(self._gather, x_BSD, batch, replicated=(self.kernel[...],))

    def scatter_add(
        self, x_BSD: Float[Array, "B S D"], update_BCD: Float[Array, "B C D"], chosen: Chosen
    ) -> Float[Array, "B S D"]:
        """x with weight * update added at the chosen places."""

        def add(x_bsD: Array, update_bcD: Array, chosen: Chosen) -> Array:
            weighted_bcD = chosen.weight_BC[:, :, None] * update_bcD.astype(jnp.float32)
            row_b1 = jnp.arange(x_bsD.shape[0], dtype=jnp.int32)[:, None]
            at = x_bsD.at[row_b1, chosen.place_BC]
            return at.add(weighted_bcD.astype(x_bsD.dtype), unique_indices=True)

        return self._on_rows(add, x_BSD, update_BCD, chosen)

    def spread(self, routes: Routes, chosen: Chosen, S: int) -> Routes:
        """The routes of the chosen tokens as routes of whole rows: the others have no expert."""

        def rows(leaf_bcN: Array, place_bc: Array, empty: int) -> Array:
            b, _, N = leaf_bcN.shape
            row_b1 = jnp.arange(b, dtype=jnp.int32)[:, None]
            return jnp.full((b, S, N), empty, leaf_bcN.dtype).at[row_b1, place_bc].set(leaf_bcN)

        def whole(leaf: Array, empty: int) -> Array:
            return self._on_rows(lambda x, place: rows(x, place, empty), leaf, chosen.place_BC)

        return dataclasses.replace(
            routes,
            expert_BSK=whole(routes.expert_BSK, routes.unused),
            weight_BSK=whole(routes.weight_BSK, 0),
            kept_BSK=whole(routes.kept_BSK, 0),
            prob_BSE=whole(routes.prob_BSE, 0),
        )

    def _gather(
        self, kernel_D1: Array, x_bsD: Array, batch: TokenBatch
    ) -> tuple[Array, TokenBatch, Chosen, DepthReport]:
        score_bs = jnp.einsum(
            "bsD,D->bs",
            x_bsD.astype(jnp.float32),
            kernel_D1[:, 0].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        valid_bs = batch.segment_BS > 0
        c = self.config.tokens(x_bsD.shape[1])
        place_bc = jax.vmap(lambda score_s, valid_s: choose_tokens(score_s, valid_s, c))(
            score_bs, valid_bs
        )

        def take(leaf_bs: Array) -> Array:
            return jnp.take_along_axis(leaf_bs, place_bc, axis=1)

        weight_bc, valid_bc = take(score_bs), take(valid_bs)
        if self.config.weight == "sigmoid":
            weight_bc = jax.nn.sigmoid(weight_bc)
        weight_bc = jnp.where(valid_bc, weight_bc, 0)
        batch = dataclasses.replace(
            batch,
            token_BS=None if batch.token_BS is None else take(batch.token_BS),
            position_BS=take(batch.position_BS),
            task_BS=None if batch.task_BS is None else take(batch.task_BS),
            segment_BS=take(batch.segment_BS),
            row_part_BS=place_bc * ROW_PARTS // x_bsD.shape[1],
        )
        report = DepthReport(
            chosen=jnp.sum(valid_bc, axis=1, dtype=jnp.int32),
            valid=jnp.sum(valid_bs, axis=1, dtype=jnp.int32),
            weight=jax.lax.stop_gradient(jnp.sum(weight_bc, axis=1)),
        )
        row_b1 = jnp.arange(x_bsD.shape[0], dtype=jnp.int32)[:, None]
        x_bcD = x_bsD.at[row_b1, place_bc].get(unique_indices=True, mode="promise_in_bounds")
        return x_bcD, batch, Chosen(place_BC=place_bc, weight_BC=weight_bc), report

    def _on_rows(
        self,
        function: Callable[..., T],
        *by_row: PyTree[Array],
        replicated: tuple[PyTree[Array], ...] = (),
    ) -> T:
        """function(*replicated, *by_row) on each device's own rows."""
        specs = tuple(PartitionSpec() for _ in replicated) + tuple(ROWS for _ in by_row)
        found: T = jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=ROWS, check_vma=False
        )(*replicated, *by_row)
        return found


def _of_chosen(context: Context, chosen: Chosen) -> Context:
    """The context with the recorded routes of the chosen tokens alone."""

    def take(leaf_LBSK: Array) -> Array:
        return jnp.take_along_axis(leaf_LBSK, chosen.place_BC[None, :, :, None], axis=2)

    return dataclasses.replace(context, recorded=jax.tree.map(take, context.recorded))

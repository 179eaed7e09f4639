"""The parameters of a sparse layer: of its router, of its experts, of what stands around them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from moe_jax.nn.param import fan_in, parameter
from moe_jax.ops.expert_ffn import GATED
from moe_jax.ops.linear import linear
from moe_jax.parallel.axes import MeshAxes
from moe_jax.routing.types import LAST_TWO, Router


class RouterParams(nnx.Module):
    """The parameters that a router asks for, as attributes by name."""

    def __init__(self, router: Router, D: int, E: int, rngs: nnx.Rngs):
        for name, spec in router.params(D, E).items():
            form: dict[str, Any] = dict(matrix=spec.matrix, decays=spec.decays)
            setattr(self, name, parameter(rngs, spec.init, spec.shape, spec.axes, **form))
        self.names = tuple(router.params(D, E))

    def arrays(self) -> dict[str, Array]:
        return {name: getattr(self, name)[...] for name in self.names}


class Latent(nnx.Module):
    """The two projections around the routed experts: down (D, L) before dispatch, up (L, D) behind
    the weighted sum. Neither has a bias, a norm or an activation, as in Nemotron 3.

    LatentMoE, Elango et al. (2601.18089). Kimi K3 has an RMS norm before `up`; we have none.
    """

    def __init__(
        self,
        D: int,
        L: int,
        *,
        init_scale: float,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = fan_in(init_scale)
        weights = partial(parameter, rngs, init, dtype=param_dtype, matrix=LAST_TWO, decays=True)
        self.down = weights((D, L), ("embed", "latent"))
        self.up = weights((L, D), ("latent", "embed"))

    def inward(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S L"]:
        return linear(x_BSD, self.down[...])

    def outward(self, z_BSL: Float[Array, "B S L"]) -> Float[Array, "B S D"]:
        return linear(z_BSL, self.up[...])


class Experts(nnx.Module):
    """The weights of all experts: w_gate, w_up (E, D, F), w_down (E, F, D). D is the latent width
    where there is one."""

    def __init__(
        self,
        E: int,
        D: int,
        F: int,
        *,
        activation: str,
        init_scale: float,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = fan_in(init_scale, batch_axis=0)
        up_axes, down_axes = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
        gated = activation in GATED
        weights = partial(parameter, rngs, init, dtype=param_dtype, matrix=LAST_TWO, decays=True)
        self.w_gate = weights((E, D, F), up_axes) if gated else None
        self.w_up = weights((E, D, F), up_axes)
        self.w_down = weights((E, F, D), down_axes)

    def arrays(self) -> dict[str, Array]:
        return {name: weight[...] for name, weight in self._weights().items()}

    def specs(self, axes: MeshAxes) -> dict[str, PartitionSpec]:
        """How the weights lie on a mesh."""
        names = {name: tuple(w.get_metadata("axes")) for name, w in self._weights().items()}
        return {name: axes.of_weights(logical) for name, logical in names.items()}

    def _weights(self) -> dict[str, nnx.Param]:
        named = {"w_gate": self.w_gate, "w_up": self.w_up, "w_down": self.w_down}
        return {name: weight for name, weight in named.items() if weight is not None}

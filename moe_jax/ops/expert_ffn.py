"""The feed-forward networks of all experts, on three views of their tokens.

A gated expert is (act(x W_gate) * (x W_up)) W_down, a plain one act(x W_up) W_down.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.ops.ffn_batched import ffn_batched
from moe_jax.ops.ffn_blocks import ffn_blocks
from moe_jax.ops.grouped_matmul import BACKENDS, grouped_matmul, resolve
from moe_jax.ops.precision import accumulator, dot_upcast

# A gated name stands for the function of its gate (Shazeer 2020, GLU Variants).
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,  # the tanh form, as in T5 1.1 and Gemma
    "reglu": jax.nn.relu,
    "glu": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
}
GATED = frozenset({"swiglu", "geglu", "reglu", "glu"})
# The whole feed-forward of sorted rows at once; the other backends are of single products.
FUSED = {"blocks": ffn_blocks, "batched": ffn_batched}
OLDER_NAMES = {"waves": "batched"}  # of backends, in configs of before
# From here on, a batched product of all experts is faster on CPU than a loop over them.
MANY_EXPERTS, FEW_ROWS = 32, 128
ROW_BACKENDS = tuple(dict.fromkeys((*BACKENDS, *FUSED)))


def row_backend(backend: str, platform: str | None, R: int, E: int) -> str:
    """The row of ROW_BACKENDS that a name stands for on a platform (None: where JAX runs), for R
    rows on the mean and E experts.

    "auto" is "megablox" on TPU, "triton" on GPU; elsewhere "blocks", or "batched" for many experts
    with few rows each.
    """
    if backend != "auto":
        return OLDER_NAMES.get(backend, backend)
    own = resolve(backend, platform)
    batched = own == "blocks" and E >= MANY_EXPERTS and R <= FEW_ROWS * E
    return "batched" if batched else own


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """The matrices of E experts; w_gate_EDF is None for activations that are not in GATED.

    Inside a shard_map these are the device's experts and its part of F: a caller that shards F
    sums the outputs over that axis. No collective runs here.
    activation: a key of ACTIVATIONS. backend, platform: of `rows`, see `row_backend`.
    Outputs have x's dtype; products accumulate in float32.
    """

    w_gate_EDF: Float[Array, "E D F"] | None
    w_up_EDF: Float[Array, "E D F"]
    w_down_EFD: Float[Array, "E F D"]
    activation: str = field(metadata={"static": True})
    backend: str = field(default="auto", metadata={"static": True})
    platform: str | None = field(default=None, metadata={"static": True})

    def slots(self, x_ECD: Float[Array, "E C D"]) -> Float[Array, "E C D"]:
        """Every expert on its own C slots."""
        h_ECF = self._hidden(functools.partial(_einsum, "ECD,EDF->ECF", x_ECD))
        return _einsum("ECF,EFD->ECD", h_ECF, self.w_down_EFD)

    def rows(
        self, x_RD: Float[Array, "R D"], sizes_E: Int[Array, "E"], expected: int | None = None
    ) -> Float[Array, "R D"]:
        """Rows sorted by expert, sizes_E of them each; rows past sum(sizes) give zeros.

        expected: sum(sizes) under an even load (a buffer for received rows is larger); None: R.
        """
        mean = x_RD.shape[0] if expected is None else expected
        backend = row_backend(self.backend, self.platform, mean, sizes_E.shape[0])
        if backend in FUSED:
            run = FUSED[backend]
            activate = _activate(self.activation)
            return run(activate, x_RD, self._w_in, self.w_down_EFD, sizes_E, expected)
        matmul = functools.partial(grouped_matmul, sizes_E=sizes_E, backend=backend)
        h_RF = self._hidden(functools.partial(matmul, x_RD))
        return matmul(h_RF, self.w_down_EFD)

    def all(self, x_TD: Float[Array, "T D"]) -> Float[Array, "T E D"]:
        """Every expert on every token."""
        h_TEF = self._hidden(functools.partial(_times_all, x_TD))
        # The experts come first, as in the matrices.
        h_ETF = h_TEF.swapaxes(0, 1)
        y_ETD = dot_upcast(h_ETF, self.w_down_EFD, (((2,), (1,)), ((0,), (0,))))
        return y_ETD.swapaxes(0, 1).astype(x_TD.dtype)

    @property
    def _w_in(self) -> tuple[Array, ...]:
        return tuple(w for w in (self.w_gate_EDF, self.w_up_EDF) if w is not None)

    def _hidden(self, times: Callable[[Array], Array]) -> Array:
        """The hidden activations, where times(w) multiplies the tokens by w."""
        return _activate(self.activation)(*map(times, self._w_in))


@functools.cache
def _activate(activation: str) -> Callable[..., Array]:
    """From the products before the activation to the hidden activations."""
    act = ACTIVATIONS[activation]
    return (lambda gate, up: act(gate) * up) if activation in GATED else act


def _times_all(x_TD: Array, w_EDF: Array) -> Array:
    y_TEF = dot_upcast(x_TD, w_EDF, (((1,), (1,)), ((), ())))
    return y_TEF.astype(x_TD.dtype)


def _einsum(subscripts: str, x: Array, w: Array) -> Array:
    dtype = accumulator(x.dtype)
    return jnp.einsum(subscripts, x, w, preferred_element_type=dtype).astype(x.dtype)

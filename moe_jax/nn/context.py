"""What travels through the network beside the activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from moe_jax.routing.counterfactual import Counterfactual
from moe_jax.routing.types import Recorded, Router, Sums, Traffic


def segment_positions(segment_BS: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Position of each token within its segment, from 0."""
    place_S = jnp.arange(segment_BS.shape[1], dtype=jnp.int32)
    changed_BS = segment_BS[:, 1:] != segment_BS[:, :-1]
    starts_BS = jnp.pad(changed_BS, ((0, 0), (1, 0)), constant_values=True)
    start_BS = jax.lax.cummax(jnp.where(starts_BS, place_S[None], 0), axis=1)
    return place_S[None] - start_BS


def each_token(of_row_B: Int[Array, "B"], S: int) -> Int[Array, "B S"]:
    """What a row has, for each of its S tokens."""
    of_row_B = jnp.asarray(of_row_B, jnp.int32)
    return jnp.broadcast_to(of_row_B[:, None], (of_row_B.shape[0], S))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """A batch of packed rows. segment 0 is padding; positions count from each segment's start."""

    token_BS: Int[Array, "B S"] | None  # ids; None: tokens are no ids (patches of an image)
    position_BS: Int[Array, "B S"]
    segment_BS: Int[Array, "B S"]
    row_B: Int[Array, "B"]  # the row's number in the global batch: routing keys hang on it
    member_B: Int[Array, "B"] | None = None  # whose copy the row is, in an ensemble
    # Which of the routing.types.ROW_PARTS parts of its row each token is in; None: as they stand.
    row_part_BS: Int[Array, "B S"] | None = None
    # The task of each token, for routers that route by it; None: not told.
    task_BS: Int[Array, "B S"] | None = None

    @classmethod
    def packed(
        cls,
        token_BS: Int[Array, "B S"],
        segment_BS: Int[Array, "B S"],
        row_B: Int[Array, "B"],
        task_B: Int[Array, "B"] | None = None,
    ) -> TokenBatch:
        """Of rows as they are stored: positions follow from the segments. task_B: of each row."""
        return cls(
            token_BS=token_BS,
            position_BS=segment_positions(segment_BS),
            segment_BS=segment_BS,
            row_B=row_B,
            task_BS=None if task_B is None else each_token(task_B, token_BS.shape[1]),
        )

    def tokens_and_segments(self, S: int, part: int = 0) -> tuple[Array, Array]:
        """(id, segment) of each of the S tokens that the layers of a part of the model see, for who
        looks on."""
        assert self.token_BS is not None
        return self.token_BS, self.segment_BS


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """A batch of pairs: what an encoder reads, and what a decoder reads beside it. Segments of a
    row's target belong to those of its source with the same number."""

    source: TokenBatch
    target: TokenBatch

    def tokens_and_segments(self, S: int, part: int = 0) -> tuple[Array, Array]:
        """Of the encoder's part 0, or the decoder's part 1."""
        return (self.source, self.target)[part].tokens_and_segments(S)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """A batch of images, a row each. A row that is not valid fills up a batch. task: of each row,
    for routers that route by it; None: not told."""

    image_BHWC: Float[Array, "B H W C"]
    valid_B: Bool[Array, "B"]
    row_B: Int[Array, "B"]
    task_B: Int[Array, "B"] | None = None

    def tokens_and_segments(self, S: int, part: int = 0) -> tuple[Array, Array]:
        """(id, segment) of each of the S tokens that the layers see: a patch's place is its id."""
        shape = (self.valid_B.shape[0], S)
        place_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], shape)
        return place_BS, jnp.broadcast_to(self.valid_B[:, None], shape).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TableBatch:
    """Rows of a table. ids: of its categories, one after the other; None where it has none, as
    numbers. A row that is not valid fills up a batch."""

    id_BC: Int[Array, "B C"] | None
    number_BN: Float[Array, "B N"] | None
    valid_B: Bool[Array, "B"]
    row_B: Int[Array, "B"]

    def as_tokens(self) -> TokenBatch:
        """A row is one token, whose id is that of its first category."""
        segment_BS = self.valid_B[:, None].astype(jnp.int32)
        first_BS = jnp.zeros_like(segment_BS) if self.id_BC is None else self.id_BC[:, :1]
        return TokenBatch(
            token_BS=first_BS,
            position_BS=jnp.zeros_like(segment_BS),
            segment_BS=segment_BS,
            row_B=self.row_B,
        )

    def tokens_and_segments(self, S: int, part: int = 0) -> tuple[Array, Array]:
        """(id, segment) of each row's token, for who looks on."""
        return self.as_tokens().tokens_and_segments(S)


@dataclass(frozen=True, kw_only=True)
class Switches:
    """The static switches of a sparse layer; see `Context`."""

    train: bool = False
    capacity_factor: float | None = None
    capture: bool = False
    counterfactual: Counterfactual | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Context:
    """How the network is called: a function of (seed, step), never of a device.

    key: routing key of this step, None for no noise. router: with this step's values of its
    scheduled scalars (`routing.scalars.as_pytree`); None: the layer's own.
    capacity_factor: in place of the config's, for evaluation; None: dropless.
    whole_rows: every row is one routing group whatever its length (generation).
    capture: also return the routes of every MoE layer.
    counterfactual: in place of the router. recorded: the routes that it replays, leaves
    (num_layers, B, S, K), dense layers included.
    per_member: the predictions of an ensemble's members each for itself, rows (B M, ...).
    """

    key: Key[Array, ""] | None = None
    router: Router | None = None
    recorded: Recorded | None = None
    train: bool = field(default=False, metadata={"static": True})
    capacity_factor: float | None = field(default=None, metadata={"static": True})
    whole_rows: bool = field(default=False, metadata={"static": True})
    capture: bool = field(default=False, metadata={"static": True})
    per_member: bool = field(default=False, metadata={"static": True})
    counterfactual: Counterfactual | None = field(default=None, metadata={"static": True})

    @property
    def switches(self) -> Switches:
        """What of it is static inside a sparse layer."""
        return Switches(
            train=self.train,
            capacity_factor=self.capacity_factor,
            capture=self.capture,
            counterfactual=self.counterfactual,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Routes:
    """Where every token went in one layer: for probes, traces and pictures."""

    expert_BSK: Int[Array, "*L B S K"]  # E..E+Z-1: undispatched; unused: no expert
    weight_BSK: Float[Array, "*L B S K"]
    kept_BSK: Shaped[Array, "*L B S K"]
    prob_BSE: Float[Array, "*L B S E"]
    unused: int = field(metadata={"static": True})  # the id of no expert, E + Z

    def filled(self, S: int) -> Routes:
        """With further tokens that no expert takes, S in all."""
        more = S - self.expert_BSK.shape[-2]

        def fill(leaf: Array, value: float) -> Array:
            widths = [(0, 0)] * leaf.ndim
            widths[-2] = (0, more)
            return jnp.pad(leaf, widths, constant_values=value)

        return Routes(
            expert_BSK=fill(self.expert_BSK, self.unused),
            weight_BSK=fill(self.weight_BSK, 0),
            kept_BSK=fill(self.kept_BSK, False),
            prob_BSE=fill(self.prob_BSE, 0),
            unused=self.unused,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """Statistics of one MoE layer, additive over the G groups of its leading axis. What the router
    pools (`BaseRouter.pooled`) has an axis of shards of the batch in its place."""

    sums: Sums
    traffic: Traffic
    routes: Routes | None = None

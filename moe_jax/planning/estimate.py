"""Memory, FLOPs and bytes on the wire of a training step, by formula."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import jax
from jaxtyping import PyTree

from moe_jax.config.errors import ConfigError, Problem
from moe_jax.config.schedules import parse_schedules
from moe_jax.experts import Expert
from moe_jax.experts.types import sizes_of
from moe_jax.models.counts import Counts
from moe_jax.models.layout import Stack
from moe_jax.models.network import Params
from moe_jax.models.text import TextConfig
from moe_jax.models.transformer import DTYPES
from moe_jax.nn.cost import Here, Planned
from moe_jax.nn.mlp import feed_forward_planned
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.predictions import chunks_of
from moe_jax.parallel.mesh import AXES, MeshConfig, axis_names
from moe_jax.routing.capacity import expert_capacity
from moe_jax.routing.losses import global_terms
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check
from moe_jax.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Bytes that one device sends in one step over the mesh axes `axes` by operations `op`."""

    op: str
    axes: tuple[str, ...]
    what: str
    bytes_sent: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One training step on one device. Memory in bytes; gradients and saved activations live
    together, `workspace` is what one layer (or the head) needs beside them."""

    sizes: dict[str, int]
    counts: Counts
    tokens: int  # of the global batch
    parameters: int
    optimizer: int
    other: int  # of the state: the probe, router state, counters
    gradients: int
    activations: int
    workspace: int
    model_flops: float
    hardware_flops: float  # with recomputation and padded slots
    memory_traffic: float
    traffic: tuple[Transfer, ...]

    @property
    def peak(self) -> int:
        state = self.parameters + self.optimizer + self.other
        return state + self.gradients + self.activations + self.workspace


def estimate(experiment: Experiment, num_devices: int, platform: str = "cpu") -> Estimate:
    """The estimate of a config on `num_devices` of a platform, whose kernels may keep less;
    ConfigError where it does not fit the mesh."""
    experiment = experiment.completed().with_vocabulary(0)
    problems = cross_check(experiment, num_devices)
    if experiment.moe.ensemble > 1:
        rule = "must be 1: a plan does not know ensembles"
        problems.append(Problem("moe.ensemble", experiment.moe.ensemble, rule))
    if problems:
        raise ConfigError(problems)
    shape = Shape.of(experiment, num_devices, platform)
    state = _abstract_state(_on_one_device(experiment))
    parameters = state_bytes(state.params, shape.sizes)
    experts = state_bytes(expert_weights(state.params), shape.sizes)
    layers = state_bytes(state.params["layers"], shape.sizes) - experts
    optimizer = state_bytes(state.opt_state, shape.sizes)
    counts = experiment.counts
    model_flops = counts.flops_per_token * shape.batch_tokens / num_devices
    gradients = parameters * (2 if experiment.accumulation > 1 else 1)
    saved = sum(part.saved(experiment.model.remat) * part.layers for part in shape.parts)
    layer = max(part.saved("none") for part in shape.parts)
    again = experiment.model.remat != "none"
    passes = shape.micro_batches * (2 + again + shape.extra_passes)
    weights = shape.weight_bytes(parameters - experts) + shape.whole_expert_bytes * shape.sparse
    memory_traffic = passes * weights + 2.0 * (parameters + optimizer) + gradients
    touched = sum(part.layers * part.saved("none") for part in shape.parts)
    memory_traffic += 3.0 * shape.micro_batches * touched
    return Estimate(
        sizes=shape.sizes,
        counts=counts,
        tokens=shape.batch_tokens,
        parameters=parameters,
        optimizer=optimizer,
        other=state_bytes(state, shape.sizes) - parameters - optimizer,
        gradients=gradients,
        activations=round(saved),
        workspace=round(max(2 * layer + shape.whole_expert_bytes, shape.logits)),
        model_flops=model_flops,
        hardware_flops=model_flops * (shape.recomputation(counts) + shape.extra_passes / 3)
        + sum(part.padding_flops for part in shape.parts),
        memory_traffic=memory_traffic,
        traffic=tuple(shape.traffic(layers, parameters - experts - layers, experts)),
    )


def state_bytes(tree: PyTree[jax.ShapeDtypeStruct], sizes: dict[str, int]) -> int:
    """Bytes on one device of abstract arrays whose shardings name mesh axes of these sizes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        parts = 1
        for axes in getattr(leaf.sharding, "spec", ()):
            for axis in axis_names(axes):
                parts *= sizes[axis]
        total += leaf.size * leaf.dtype.itemsize // parts
    return total


def expert_weights(params: Params) -> list[Params]:
    """The experts of every stack of layers."""
    layers = params["layers"].values()
    return [layer["moe"]["experts"] for layer in layers if layer.get("moe") is not None]


@functools.lru_cache(maxsize=64)
def _has_global_terms(moe: MoEConfig, scheduled: frozenset[str]) -> bool:
    """It traces every loss, and a search asks thousands of times."""
    return bool(global_terms(moe.losses, moe.router, moe.num_experts, scheduled))


@functools.lru_cache(maxsize=4)
def _abstract_state(experiment: Experiment) -> TrainState:
    """Shapes and sharding rules of the program's own state."""
    devices = jax.devices("cpu")[:1]
    return build(experiment, experiment.stand_in(), devices=devices).abstract_state


def _on_one_device(experiment: Experiment) -> Experiment:
    """What the state does not depend on is set alike, so that a search builds it once."""
    return dataclasses.replace(
        experiment,
        mesh=MeshConfig(data=1),
        accumulation=1,
        moe=dataclasses.replace(experiment.moe, transport="all_to_all", overlap_chunks=1),
        model=dataclasses.replace(experiment.model, remat="none"),
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes that the formulas are made of, for one device and one micro-batch.

    `parts` are the layers of one kind each: those in which few tokens take part (a mixture of
    depths), those that attend to a memory. Each has its own tokens and row length; properties of
    tokens and of attention are those of one part.
    """

    experiment: Experiment
    platform: str
    sizes: dict[str, int]
    layers: int
    sparse: int  # sparse layers
    tokens: int  # T: of one device, in one micro-batch
    row: int  # tokens of a row
    kind: Stack  # one of its layers, for what it is

    @classmethod
    def of(cls, experiment: Experiment, num_devices: int, platform: str) -> Shape:
        sizes = experiment.mesh.sizes(num_devices)
        batch = experiment.batch_size * experiment.row_length
        shards = num_devices // sizes["tensor"] * experiment.accumulation
        layers, layout = experiment.model.num_layers, experiment.model.layout(experiment.moe)
        return cls(
            experiment=experiment,
            platform=platform,
            sizes=sizes,
            layers=layers,
            sparse=len(layout.moe_layers),
            tokens=batch // shards,
            row=experiment.row_length,
            kind=layout.stacks[0],
        )

    @functools.cached_property
    def parts(self) -> tuple[Shape, ...]:
        """The layers of each kind; without any, one part of none."""
        model = self.experiment.model
        kinds: dict[tuple[bool, bool, bool], list[Stack]] = {}
        for stack in model.layout(self.experiment.moe).stacks:
            kinds.setdefault((stack.depth, stack.causal, stack.crosses), []).append(stack)
        found = []
        for (depth, _, _), stacks in sorted(kinds.items()):
            row = model.depth.tokens(self.row) if depth else self.row
            part = dataclasses.replace(
                self,
                layers=sum(stack.count for stack in stacks),
                sparse=sum(stack.count for stack in stacks if stack.moe),
                tokens=self.tokens * row // self.row if depth else self.tokens,
                row=row,
                kind=stacks[0],
            )
            found.append(part)
        return tuple(found) or (self,)

    @property
    def micro_batches(self) -> int:
        return self.experiment.accumulation

    @property
    def batch_tokens(self) -> int:
        return self.experiment.batch_size * self.experiment.row_length

    @property
    def extra_passes(self) -> int:
        """Forward passes more per micro-batch: a routing loss over the global batch takes one
        under accumulation."""
        e = self.experiment
        if e.accumulation == 1 or not self.sparse:
            return 0
        scheduled = frozenset(parse_schedules(e))
        return int(_has_global_terms(e.moe, scheduled))

    @property
    def b(self) -> int:
        """Bytes of one number of the compute type."""
        return int(DTYPES[self.experiment.model.dtype](0).dtype.itemsize)

    @property
    def kept(self) -> int:
        """Bytes of one number of a parameter."""
        return int(DTYPES[self.experiment.model.param_dtype](0).dtype.itemsize)

    @property
    def width(self) -> int:
        """Width in which the routed experts work and tokens travel: D, or the latent L."""
        return self.experiment.moe.width(self.experiment.model.model_dim)

    @property
    def expert(self) -> Expert:
        return self.experiment.moe.expert.completed(self.experiment.model.activation)

    @property
    def multiplied(self) -> int:
        """Weights of one expert by which a token is multiplied."""
        return self.expert.multiplied(self.width, self.experiment.moe.expert_dim)

    @property
    def last_product(self) -> int:
        """Of them those of the products that give an expert's output."""
        specs = self.expert.params(1, self.width, self.experiment.moe.expert_dim, 1.0).values()
        last = [s for s in specs if s.matrix is not None and s.axes[-1] == "embed"]
        return sum(math.prod(spec.shape) for spec in last)

    @property
    def hidden(self) -> float:
        """Bytes of the hidden activations of the experts' rows."""
        numbers = self.expert.hidden(self.width, self.experiment.moe.expert_dim)
        return numbers * self.buffer / self.sizes["tensor"] * self.b

    @property
    def here(self) -> Here:
        s = self.sizes
        return Here(
            tokens=self.tokens,
            row=self.row,
            bytes=self.b,
            tensor=s["tensor"],
            sequence=s["sequence"],
            forward=self.forward_passes,
            platform=self.platform,
        )

    @functools.cached_property
    def attention(self) -> Planned:
        """Of the mixer of one layer, and of its attention to a memory."""
        return self.experiment.model.attention_planned(self.kind, self.here)

    @functools.cached_property
    def dense(self) -> Planned:
        """Of one dense feed-forward layer."""
        model = self.experiment.model
        return feed_forward_planned(model.model_dim, model.mlp_dim, model.activation, self.here)

    @functools.cached_property
    def around(self) -> Planned:
        """Of what stands around the experts of one sparse layer."""
        moe, model = self.experiment.moe, self.experiment.model
        widths = moe.widths(model.model_dim)
        parts = moe.surroundings(model.activation)
        planned = [part.planned(widths[name], self.here) for name, part in parts.items()]
        return sum(planned, start=Planned())

    @property
    def whole_expert_bytes(self) -> float:
        """One layer's experts of this device, gathered over fsdp, in the compute type."""
        moe, s = self.experiment.moe, self.sizes
        if not self.sparse:
            return 0.0
        one = sizes_of(self.expert.params(1, self.width, moe.expert_dim, 1.0))
        return moe.num_experts // s["expert"] * one // s["tensor"] * self.b

    def weight_bytes(self, parameters: int) -> float:
        """Parameters on this device, whole over fsdp and in the compute type."""
        return parameters * self.sizes["fsdp"] * self.b / self.kept

    @property
    def experts_per_token(self) -> float:
        """Of all gates."""
        moe = self.experiment.moe
        return moe.gating.asked(moe.experts_per_token(self.row), moe.num_experts)

    @property
    def slots(self) -> float:
        """k T rows, or the slots of a capacity, that this device's tokens take."""
        moe = self.experiment.moe
        k = self.experts_per_token
        own = moe.router.own_capacity
        if moe.layout == "rows" or moe.capacity_factor is None or own:
            return k * self.tokens
        T = moe.group_size or self.row
        C = expert_capacity(
            T,
            moe.num_experts,
            k / moe.gates,
            moe.capacity_factor,
            moe.capacity_rounding,
            moe.min_capacity,
        )
        return float(moe.gates * (C or T) * moe.num_experts * self.tokens / T)

    @property
    def buffer(self) -> float:
        """Rows of the buffer that this device's experts compute on."""
        moe, n = self.experiment.moe, self.sizes["expert"]
        if n == 1 or moe.layout != "rows":
            return self.slots
        rows = self.slots
        if moe.transport == "all_to_all":
            return n * min(rows, math.ceil(moe.receive_factor * rows / n))
        return min(n * rows, math.ceil(moe.receive_factor * rows))

    @property
    def padding_flops(self) -> float:
        """What slots that nobody fills cost in one step: only layouts of fixed shape compute it."""
        moe = self.experiment.moe
        if not self.sparse or moe.layout == "rows":
            return 0.0
        empty = max(self.slots - self.experts_per_token * self.tokens, 0.0)
        of_row = 6 * self.multiplied / self.sizes["tensor"]
        return of_row * empty * self.sparse * self.micro_batches

    def recomputation(self, counts: Counts) -> float:
        """FLOPs of a step as a multiple of the model's: 4/3 if all is computed twice."""
        remat, model = self.experiment.model.remat, self.experiment.model
        if remat in ("none", "dots"):
            return 1.0
        total = counts.flops_per_token
        head = 6.0 * model.ends(self.experiment.io).multiplied
        again = (total - head) / 3
        rows = sum(p.experts_per_token * p.sparse * p.tokens / self.tokens for p in self.parts)
        if remat == "received":
            again -= 2.0 * self.last_product * rows  # the experts' outputs are kept
        if remat == "expert_hidden":
            again -= 2.0 * self.multiplied * rows
        return 1 + again / total

    # --- memory ---

    def saved(self, remat: str) -> float:
        """Bytes of one layer that the backward pass keeps; for "none" also what a recomputed
        layer needs while it is worked on."""
        s, b, T = self.sizes, self.b, self.tokens
        x = T * self.experiment.model.model_dim * b
        rows = self.buffer * self.width * b if self.sparse else 0.0
        sent = rows / (s["tensor"] if s["expert"] > 1 else 1)
        back = self.slots * self.width * b / (s["tensor"] if s["expert"] > 1 else 1)
        named = x + (sent + back if s["expert"] > 1 and self.sparse else 0.0)
        hidden = self.hidden if self.sparse else self.dense.products
        if remat == "full":
            return x
        if remat == "received":
            return x + named
        if remat == "expert_hidden":
            return x + named + hidden
        if remat == "dots":
            return x + self.attention.products + hidden
        around = self.around.kept if self.sparse else 0.0
        return 4 * x + self.attention.kept + 2 * rows + 2 * hidden + around

    @property
    def logits(self) -> float:
        """Logits of a micro-batch (a chunk of them) and their gradient, float32."""
        model, shards = self.experiment.model, self.sizes["tensor"]
        io = self.experiment.io
        if not isinstance(model, TextConfig) or not io.predicts_next:
            return 2.0 * self.tokens / self.row * io.floats * 4
        tokens = math.ceil(self.tokens)
        chunks = chunks_of(model.vocab_size, tokens, shards, model.logits_chunks)
        return 2.0 * self.tokens * model.vocab_size / shards * 4 / chunks

    # --- bytes on the wire ---

    def traffic(self, layers: int, ends: int, experts: int) -> list[Transfer]:
        """Per device and step; parameter bytes on this device of the layers without experts, of
        embedding and head, of the experts."""
        found = [*self._over_expert(), *self._over_tensor(), *self._over_sequence()]
        found += [*self._over_fsdp(layers + ends), *self._gradients(layers, ends, experts)]
        return [traffic for traffic in found if traffic.bytes_sent]

    def exchanged(self) -> float:
        """Bytes of one exchange of one layer over `expert` (docs/transports.md), of the two that
        a forward and the two that a backward pass has."""
        moe, n = self.experiment.moe, self.sizes["expert"]
        row = self.width / self.sizes["tensor"] * self.b
        if n == 1 or not self.sparse:
            return 0.0
        if moe.transport == "gather":
            return (n - 1) * self.tokens * row
        rows = self.buffer if moe.transport == "all_to_all" else self.slots
        return (n - 1) / n * rows * row

    def _over_expert(self) -> list[Transfer]:
        remat, transport = self.experiment.model.remat, self.experiment.moe.transport
        # "full" and "dots" know nothing of the rows kept by name: they communicate again.
        times = 4 + 2 * self.extra_passes + (2 if remat in ("full", "dots") else 0)
        exchanged = sum(part.sparse * part.exchanged() for part in self.parts)
        sent = times * self.micro_batches * exchanged
        op = {"all_to_all": "all-to-all", "ragged": "ragged-all-to-all"}.get(
            transport, "all-gather"
        )
        return [Transfer(op=op, axes=("expert",), what="tokens to experts", bytes_sent=sent)]

    def _over_tensor(self) -> list[Transfer]:
        """Forward: outputs of attention and of a dense MLP are sums. Backward: the gradients of
        their inputs. Sparse layers: docs/transports.md. Once each: the embedding's rows and the
        gradient of the head's input."""
        sums = sum(part.summed_over_tensor() for part in self.parts)
        e = self.experiment
        # The embedding of token ids, and the head over the vocabulary.
        ends = (e.vocabulary is not None) + e.io.predicts_next
        sums += ends * self.tokens * e.model.model_dim * self.b
        t = self.sizes["tensor"]
        share = (t - 1) / t
        reduced = 2 * share * sums
        gathered = share * sum(part.gathered_over_tensor() for part in self.parts)
        return [
            Transfer(
                op="all-reduce",
                axes=("tensor",),
                what="outputs",
                bytes_sent=self.micro_batches * reduced,
            ),
            Transfer(
                op="all-gather",
                axes=("tensor",),
                what="columns",
                bytes_sent=self.micro_batches * gathered,
            ),
        ]

    @property
    def forward_passes(self) -> int:
        return 1 + self.extra_passes + (self.experiment.model.remat != "none")

    def summed_over_tensor(self) -> float:
        """Bytes of the sums of these layers.

        The input of a sparse layer is two arguments, what the router and what the experts see; with
        expert = 1 its outputs are a sum, and their gradient another.
        """
        own = self.forward_passes + 2 if self.sizes["expert"] == 1 else 1
        width = self.experiment.model.model_dim + own * self.width
        sparse = self.around.summed + width * self.tokens * self.b
        dense = (self.layers - self.sparse) * self.dense.summed
        return self.layers * self.attention.summed + dense + self.sparse * sparse

    def gathered_over_tensor(self) -> float:
        """Bytes of what the sparse ones of these layers gather and scatter."""
        forward, tokens, n = self.forward_passes, self.tokens, self.sizes["expert"]
        rows = (forward + 1) * (2 * self.buffer + tokens) if n > 1 else 0.0
        return self.sparse * (rows * self.width * self.b + self.around.gathered)

    def _over_sequence(self) -> list[Transfer]:
        s = self.sizes["sequence"]
        # Gathered forward, reduce-scattered backward.
        times = self.micro_batches * (2 + self.extra_passes)
        exchanged = sum(part.layers * part.attention.exchanged for part in self.parts)
        sent = times * (s - 1) * exchanged
        return [Transfer(op="all-gather", axes=("sequence",), what="keys, values", bytes_sent=sent)]

    def _over_fsdp(self, dense: int) -> list[Transfer]:
        f, again = self.sizes["fsdp"], self.experiment.model.remat != "none"
        whole = self.weight_bytes(dense) + self.sparse * self.whole_expert_bytes
        times = self.micro_batches * (1 + again + self.extra_passes)
        sent = times * (f - 1) / f * whole
        # Gradients are summed in the type of the parameters.
        summed = self.whole_expert_bytes * self.kept / self.b
        scattered = self.micro_batches * (f - 1) / f * self.sparse * summed
        return [
            Transfer(op="all-gather", axes=("fsdp",), what="weights", bytes_sent=sent),
            Transfer(
                op="reduce-scatter", axes=("fsdp",), what="expert gradients", bytes_sent=scattered
            ),
        ]

    def _gradients(self, layers: int, ends: int, experts: int) -> list[Transfer]:
        """Sums over the devices that hold the same parameters: all lie on every device but over
        fsdp and tensor, experts also over expert.

        The gradients of a layer are summed in every micro-batch in float32; over fsdp by
        reduce-scatter. Without fsdp the compilers sum those of embedding and head once a step.
        """
        f = self.sizes["fsdp"]
        ends_times = self.micro_batches if f > 1 else 1
        shard = self.micro_batches * layers + ends_times * ends
        rest = "gradients of the rest"
        return [
            Transfer(op="reduce-scatter", axes=("fsdp",), what=rest, bytes_sent=(f - 1) * shard),
            self._all_reduce(("data", "expert", "sequence"), shard, rest),
            self._all_reduce(
                ("data", "sequence"), self.micro_batches * experts, "gradients of experts"
            ),
        ]

    def _all_reduce(self, over: tuple[str, ...], size: float, what: str) -> Transfer:
        axes = tuple(axis for axis in over if self.sizes[axis] > 1)
        n = math.prod(self.sizes[axis] for axis in axes)
        return Transfer(op="all-reduce", axes=axes, what=what, bytes_sent=2 * (n - 1) / n * size)


def mesh_name(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {sizes[axis]}" for axis in AXES if sizes[axis] > 1) or "one device"

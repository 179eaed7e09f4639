"""Optimizers by name, learning-rate schedules, parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from moe_jax.config.fields import Rule, at_least, kind

Params = Mapping[str, Any]

# --- learning-rate schedules ---


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then a cosine down to final_fraction of the peak at the last step."""

    warmup_steps: int = 50
    final_fraction: float = 0.1

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "warmup_steps", "final_fraction")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        decay = optax.cosine_decay_schedule(
            peak, max(steps - self.warmup_steps, 1), self.final_fraction
        )
        return _after_warmup(peak, self.warmup_steps, decay)


@dataclass(frozen=True, kw_only=True)
class WSD:
    """Warm-up, stable, decay: constant, then linear to final_fraction over the last
    decay_fraction of the steps. (2404.06395)"""

    warmup_steps: int = 50
    decay_fraction: float = 0.2
    final_fraction: float = 0.0

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "warmup_steps", "final_fraction")
        if not 0 < self.decay_fraction <= 1:
            yield "decay_fraction", "must be above 0 and at most 1"

    def build(self, peak: float, steps: int) -> optax.Schedule:
        decay_steps = max(round(self.decay_fraction * steps), 1)
        decay = optax.linear_schedule(
            peak, peak * self.final_fraction, decay_steps, steps - decay_steps - self.warmup_steps
        )
        return _after_warmup(peak, self.warmup_steps, decay)


@dataclass(frozen=True, kw_only=True)
class Rsqrt:
    """peak * sqrt(warmup_steps / max(step, warmup_steps)): T5's and Switch's schedule."""

    warmup_steps: int = 100

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "warmup_steps")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        def decay(step: Any) -> Any:
            # Joined schedules all run: this one on negative steps too, in the warm-up.
            after = jnp.maximum(step, 0)
            return peak * jnp.sqrt(self.warmup_steps / (after + self.warmup_steps))

        return _after_warmup(peak, self.warmup_steps, decay)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up, then constant."""

    warmup_steps: int = 0

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "warmup_steps")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        return _after_warmup(peak, self.warmup_steps, optax.constant_schedule(peak))


def _after_warmup(peak: float, warmup_steps: int, then: optax.Schedule) -> optax.Schedule:
    """Step 0 of a warm-up of n steps has the rate peak / n: no step is wasted at rate 0."""
    if warmup_steps == 0:
        return then
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, then], [warmup_steps])


@runtime_checkable
class Schedule(Protocol):
    """A learning-rate schedule: `peak` scaled by the step, of `steps` in all."""

    def build(self, peak: float, steps: int) -> optax.Schedule: ...


SCHEDULES: dict[str, type] = {
    "warmup_cosine": WarmupCosine,
    "wsd": WSD,
    "rsqrt": Rsqrt,
    "constant": Constant,
}

# --- parameter groups ---


@dataclass(frozen=True, kw_only=True)
class Group:
    """How one group of parameters departs from the rest."""

    learning_rate_multiplier: float = 1.0
    weight_decay_multiplier: float = 1.0
    frozen: bool = False

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "learning_rate_multiplier", "weight_decay_multiplier")


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Parameters by path: ".../router/..." , ".../experts/...", all others."""

    router: Group = field(default_factory=Group)
    experts: Group = field(default_factory=Group)
    rest: Group = field(default_factory=Group)


def path_of(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


def group_of(path: str) -> str:
    """The name of the group of a parameter."""
    parts = path.split("/")
    return next((name for name in ("router", "experts") if name in parts), "rest")


def is_matrix(path: str) -> bool:
    """Whether weight decay applies: everything but norm scales and biases. By name, because a
    scale stacked over layers has two dimensions as well."""
    return path.rsplit("/", 1)[-1] not in ("scale", "bias")


# --- optimizers ---


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers have: the peak learning rate and its schedule, clipping by the global
    norm (0: none), decoupled weight decay on matrices, groups."""

    learning_rate: float = 1e-3
    schedule: Schedule = kind(SCHEDULES, WarmupCosine)
    clip_norm: float = 1.0
    weight_decay: float = 0.1
    groups: Groups = field(default_factory=Groups)

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "clip_norm", "weight_decay")
        if self.learning_rate <= 0:
            yield "learning_rate", "must be above 0"

    def scale(self, params: Params) -> optax.GradientTransformation:
        """Gradients to updates of about unit size, before learning rate and decay."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Loshchilov, Hutter (1711.05101)."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def scale(self, params: Params) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Shazeer, Stern (1804.04235): factored second moments, no first moment, updates clipped to
    root mean square 1, relative to the parameter's scale."""

    weight_decay: float = 0.0
    decay_rate: float = 0.8
    min_dim_size_to_factor: int = 128

    def scale(self, params: Params) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_factored_rms(
                decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor
            ),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Chen et al. (2302.06675); the paper takes learning rates 3 to 10 times below AdamW's."""

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.99

    def scale(self, params: Params) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Jordan et al. 2024: momentum, orthogonalised per matrix by Newton-Schulz; AdamW for
    embedding, head, routers and vectors. Stacks of matrices (layers, experts) are orthogonalised
    matrix by matrix; updates are scaled by 0.2 sqrt(max(rows, columns)) to AdamW's size
    (2502.16982), so that AdamW's learning rate serves both."""

    momentum: float = 0.95
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def scale(self, params: Params) -> optax.GradientTransformation:
        labels = by_path(lambda path, leaf: "muon" if is_muon(path) else "adam", params)
        muon = optax.chain(
            contrib.scale_by_muon(beta=self.momentum, weight_dimension_numbers=_dimensions),
            optax.stateless(lambda updates, params: by_path(_to_adam_size, updates)),
        )
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.partition({"muon": muon, "adam": adam}, labels)


def is_muon(path: str) -> bool:
    """Matrices inside the network: not embedding, head, routers, norms or biases."""
    return path.startswith("layers/") and is_matrix(path) and group_of(path) != "router"


def _matrix_axes(path: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The (row, column) axes of the matrices that a parameter stacks; axis 0 is the layers'."""
    name = path.rsplit("/", 1)[-1]
    if name in ("wq", "wk", "wv"):
        return (1,), (2, 3)  # (layers, D, heads, head_dim)
    if name == "wo":
        return (1, 2), (3,)
    return (rank - 2,), (rank - 1,)


def _dimensions(params: Any) -> Any:
    return by_path(
        lambda path, leaf: contrib.MuonDimensionNumbers(*_matrix_axes(path, leaf.ndim)), params
    )


def _to_adam_size(path: str, update: jax.Array) -> jax.Array:
    rows, columns = (
        math.prod(update.shape[axis] for axis in axes) for axes in _matrix_axes(path, update.ndim)
    )
    return update * (0.2 * max(rows, columns) ** 0.5)


OPTIMIZERS: dict[str, type] = {"adamw": AdamW, "adafactor": Adafactor, "lion": Lion, "muon": Muon}


def by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Maps function(path, leaf) over a tree, paths as "layers/00/moe/router/kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_of(path), leaf), tree)


def make_optimizer(
    config: Optimizer, params: Params, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation for parameters of these shapes, and the learning rate by step.

    update = -learning_rate(step) * multiplier * (scaled gradient + decay * multiplier * param).
    """
    schedule = config.schedule.build(config.learning_rate, steps)
    labels = by_path(lambda path, leaf: group_of(path), params)

    def matrices(tree: Any) -> Any:
        return by_path(lambda path, leaf: is_matrix(path), tree)

    def finish(group: Group) -> optax.GradientTransformation:
        if group.frozen:
            return optax.set_to_zero()
        decay = config.weight_decay * group.weight_decay_multiplier
        return optax.chain(
            optax.add_decayed_weights(decay, mask=matrices),
            optax.scale_by_learning_rate(schedule),
            optax.scale(group.learning_rate_multiplier),
        )

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    groups = {name: finish(getattr(config.groups, name)) for name in ("router", "experts", "rest")}
    return optax.chain(clip, config.scale(params), optax.partition(groups, labels)), schedule

"""Optimizers by name, learning-rate schedules, parameter groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree
from optax import contrib

from moe_jax.config.fields import Rule, at_least, kind
from moe_jax.models.network import Params, flat
from moe_jax.nn.param import Form
from moe_jax.training.adafactor import is_factored, scale_by_adafactor
from moe_jax.training.parameters import Forms, by_path, group_of

# --- learning-rate schedules ---


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then a cosine down to final_fraction of the peak, met after the last step."""

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
        after_warmup = max(steps - self.warmup_steps, 1)
        decay_steps = min(max(round(self.decay_fraction * steps), 1), after_warmup)
        decay = optax.linear_schedule(
            peak, peak * self.final_fraction, decay_steps, after_warmup - decay_steps
        )
        return _after_warmup(peak, self.warmup_steps, decay)


@dataclass(frozen=True, kw_only=True)
class Rsqrt:
    """peak * sqrt(warmup_steps / max(step, warmup_steps)): T5's and Switch's schedule."""

    warmup_steps: int = 100

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "warmup_steps")

    def build(self, peak: float, steps: int) -> optax.Schedule:
        def decay(step: ArrayLike) -> jax.Array:
            # Joined schedules all run: this one on negative steps too, in the warm-up.
            after = jnp.maximum(step, 0)
            return peak * jnp.sqrt(self.warmup_steps / (after + self.warmup_steps))

        return _after_warmup(peak, self.warmup_steps, decay)


@dataclass(frozen=True, kw_only=True)
class ConstantRate:
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
class RateSchedule(Protocol):
    """A learning-rate schedule: `peak` scaled by the step, of `steps` in all."""

    def build(self, peak: float, steps: int) -> optax.Schedule: ...


SCHEDULES: dict[str, type] = {
    "warmup_cosine": WarmupCosine,
    "wsd": WSD,
    "rsqrt": Rsqrt,
    "constant": ConstantRate,
}

# --- parameter groups ---


@dataclass(frozen=True, kw_only=True)
class Group:
    """How one group of parameters departs from the rest. A frozen one does not move, counts for
    nothing in the clipping and takes no optimizer memory."""

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

    def check(self) -> Iterator[Rule]:
        if self.router.frozen and self.experts.frozen and self.rest.frozen:
            yield "rest.frozen", "at least one group must train"

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the groups that do not move."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name).frozen)


# --- optimizers ---


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers have: the peak learning rate and its schedule, clipping by the global
    norm (0: none), decoupled weight decay on the parameters that declare it, groups."""

    learning_rate: float = 1e-3
    schedule: RateSchedule = kind(SCHEDULES, WarmupCosine)
    clip_norm: float = 1.0
    weight_decay: float = 0.1
    groups: Groups = field(default_factory=Groups)

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "clip_norm", "weight_decay")
        if self.learning_rate <= 0:
            yield "learning_rate", "must be above 0"
        for name in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, name, 0.0) < 1:
                yield name, "must be at least 0 and below 1"
        if getattr(self, "eps", 1.0) <= 0:
            yield "eps", "must be above 0"

    def scale(self, params: Params, forms: Forms) -> optax.GradientTransformation:
        """Gradients to updates of about unit size, before learning rate and decay."""
        raise NotImplementedError

    def description(self, path: str, form: Form, shape: tuple[int, ...]) -> str:
        """What `scale` does with a parameter, in a few words for people."""
        return type(self).__name__


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Loshchilov, Hutter (1711.05101); b2 as language models take it, the paper has 0.999."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def scale(self, params: Params, forms: Forms) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)

    def description(self, path: str, form: Form, shape: tuple[int, ...]) -> str:
        return "Adam"


@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Shazeer, Stern (1804.04235): factored second moments, no first moment, updates clipped to
    root mean square 1 and relative to the parameter's scale; each matrix of a stack (layers,
    experts) on its own. The paper's learning rate is 1e-2."""

    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    decay_rate: float = 0.8
    min_dim_size_to_factor: int = 128  # smaller matrices keep every second moment

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "min_dim_size_to_factor")
        if self.decay_rate <= 0:
            yield "decay_rate", "must be above 0"

    def scale(self, params: Params, forms: Forms) -> optax.GradientTransformation:
        return scale_by_adafactor(self.decay_rate, self.min_dim_size_to_factor, forms)

    def description(self, path: str, form: Form, shape: tuple[int, ...]) -> str:
        if is_factored(form, shape, self.min_dim_size_to_factor):
            rows, columns = form.sizes(shape)
            return f"factored, {rows:,} + {columns:,} a matrix"
        return "every entry's second moment"


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Chen et al. (2302.06675), who take learning rates 3 to 10 times below AdamW's and decays
    as much above."""

    learning_rate: float = 1e-4
    weight_decay: float = 1.0
    b1: float = 0.9
    b2: float = 0.99

    def scale(self, params: Params, forms: Forms) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)

    def description(self, path: str, form: Form, shape: tuple[int, ...]) -> str:
        return "sign of the momentum"


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

    def scale(self, params: Params, forms: Forms) -> optax.GradientTransformation:
        def label(path: str, leaf: object) -> str:
            return "muon" if is_muon(path, forms[path]) else "adam"

        def dimensions(params: Params) -> PyTree[contrib.MuonDimensionNumbers]:
            return by_path(
                lambda path, leaf: contrib.MuonDimensionNumbers(*forms[path].axes(leaf.ndim)),
                params,
            )

        def to_adam_size(path: str, update: jax.Array) -> jax.Array:
            scaled: jax.Array = update * (0.2 * max(forms[path].sizes(update.shape)) ** 0.5)
            return scaled

        labels = by_path(label, params)
        muon = optax.chain(
            contrib.scale_by_muon(beta=self.momentum, weight_dimension_numbers=dimensions),
            optax.stateless(lambda updates, params: by_path(to_adam_size, updates)),
        )
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.partition({"muon": muon, "adam": adam}, labels)

    def description(self, path: str, form: Form, shape: tuple[int, ...]) -> str:
        if is_muon(path, form):
            rows, columns = form.sizes(shape)
            return f"orthogonalised as {rows:,} x {columns:,}"
        return "Adam"


def is_muon(path: str, form: Form) -> bool:
    """Matrices inside the network: not embedding, head, routers, nor what is no matrix."""
    return path.startswith("layers/") and form.is_matrix and group_of(path) != "router"


OPTIMIZERS: dict[str, type] = {"adamw": AdamW, "adafactor": Adafactor, "lion": Lion, "muon": Muon}


def make_optimizer(
    config: Optimizer, params: Params, forms: PyTree[Form], steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation for parameters of these shapes and forms (trees of the same structure;
    `Network.abstract` and `Network.forms`), and the learning rate by step.

    update = -learning_rate(step) * multiplier * (scaled gradient + decay * multiplier * param).
    """
    schedule = config.schedule.build(config.learning_rate, steps)
    labels = by_path(lambda path, leaf: group_of(path), params)
    groups = {name: getattr(config.groups, name) for name in ("router", "experts", "rest")}

    form_of = flat(forms)

    def decaying(tree: PyTree[jax.Array]) -> PyTree[bool]:
        return by_path(lambda path, leaf: form_of[path].decays, tree)

    def finish(group: Group) -> optax.GradientTransformation:
        decay = config.weight_decay * group.weight_decay_multiplier
        return optax.chain(
            optax.add_decayed_weights(decay, mask=decaying),
            optax.scale_by_learning_rate(schedule),
            optax.scale(group.learning_rate_multiplier),
        )

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    trained = optax.chain(
        clip,
        config.scale(params, form_of),
        optax.partition({name: finish(group) for name, group in groups.items()}, labels),
    )
    if not any(group.frozen for group in groups.values()):
        return trained, schedule
    freezing = jax.tree.map(lambda name: "frozen" if groups[name].frozen else "trained", labels)
    parts = {"trained": trained, "frozen": optax.set_to_zero()}
    return optax.partition(parts, freezing), schedule

"""An ensemble of expert groups is M models that share all but experts and router columns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.models.counts import count
from moe_jax.models.decoder import DecoderConfig
from moe_jax.models.generation import Generator
from moe_jax.models.types import IO
from moe_jax.nn.context import Context
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import DeepSeekV3, ExpertChoice, GShard, NoisyTopK, TopK
from moe_jax.routing.losses import (
    DeviceBalance,
    Importance,
    Load,
    LoadBalance,
    RouterZ,
    RoutingLosses,
    scoped_loss,
)
from moe_jax.routing.types import Sums
from moe_jax.training.rules import cross_check
from tests.drawn import some
from tests.training.experiments import experiment
from tests.training.steps import MIXTRAL, gap, make, raw_batch

M = 2
ENSEMBLE = dataclasses.replace(MIXTRAL, ensemble=M, losses=RoutingLosses(), router=TopK(k=2))


def one_member(params, m):
    """The parameters of member m's model with E / M experts."""

    def cut(path, leaf):
        names = [key.key for key in path]
        E = 8
        own = slice(m * E // M, (m + 1) * E // M)
        if "experts" in names:
            return leaf[:, own]  # behind the axis of layers
        return leaf[..., own] if "router" in names else leaf

    return jax.tree_util.tree_map_with_path(cut, params)


@pytest.fixture(scope="module")
def both():
    """(ensemble's step and state, one member's step)."""
    step, state = make(ENSEMBLE, optimizer=optax.sgd(1.0))
    alone, _ = make(
        dataclasses.replace(ENSEMBLE, ensemble=1, num_experts=4), optimizer=optax.sgd(1.0)
    )
    return step, state, alone


def test_training_is_the_mean_of_the_members_losses_and_gradients(both):
    step, state, alone = both
    raw, zero = raw_batch(), jnp.int32(0)
    after, result = jax.jit(step.train)(state, raw, {})
    members, train = [], jax.jit(alone.train)
    for m in range(M):
        params = one_member(state.params, m)
        own = dataclasses.replace(state, params=params, step=zero)
        members.append((params, *train(own, raw, {})))
    losses = [float(found.loss) for _, _, found in members]
    assert abs(losses[0] - losses[1]) > 1e-3
    np.testing.assert_allclose(result.loss, np.mean(losses), rtol=1e-6)
    # With learning rate 1 the step is minus the gradient.
    gradient = jax.tree.map(jnp.subtract, state.params, after.params)
    for m, (params, moved, _) in enumerate(members):
        own = jax.tree.map(jnp.subtract, params, moved.params)
        for name in ("experts", "router"):
            for stack, layers in own["layers"].items():
                theirs = one_member(gradient, m)["layers"][stack]["moe"][name]
                for key, leaf in layers["moe"][name].items():
                    np.testing.assert_allclose(theirs[key], leaf / M, rtol=2e-4, atol=2e-6)
    shared = [jax.tree.map(jnp.subtract, p, moved.params)["head"] for p, moved, _ in members]
    np.testing.assert_allclose(gradient["head"], sum(shared) / M, rtol=2e-4, atol=2e-6)
    # Statistics are those of all members together, each on its own experts.
    wanted = [found.sums.routing.wanted_E for _, _, found in members]
    np.testing.assert_array_equal(result.sums.routing.wanted_E, np.concatenate(wanted, axis=1))
    assert int(result.sums.task["tokens"]) == M * int(members[0][2].sums.task["tokens"])


@pytest.mark.grid
@pytest.mark.parametrize(
    "layout", some(["slots_scatter", "slots_einsum", "rows"], ["slots_scatter"])
)
def test_a_member_has_slots_of_its_own_experts_only(layout):
    """Groups of half a row, tight: drops, slots and loss are those of M models with E / M experts,
    and so is the work where slots are all of it, although all copies travel to E experts."""
    moe = dataclasses.replace(ENSEMBLE, capacity_factor=1.0, group_size=16, layout=layout)
    step, state = make(moe)
    alone, _ = make(dataclasses.replace(moe, ensemble=1, num_experts=4))
    compiled = jax.jit(step.train).lower(state, raw_batch(), {}).compile()
    result = compiled(state, raw_batch(), {})[1]

    def member(m):
        params = one_member(state.params, m)
        return dataclasses.replace(state, params=params, opt_state=alone.optimizer.init(params))

    members = [member(m) for m in range(M)]
    train = jax.jit(alone.train).lower(members[0], raw_batch(), {}).compile()
    found = [train(one, raw_batch(), {})[1] for one in members]
    np.testing.assert_allclose(result.loss, np.mean([one.loss for one in found]), rtol=1e-6)
    traffic, theirs = result.sums.traffic, [one.sums.traffic for one in found]
    accepted = np.concatenate([one.accepted_E for one in theirs], axis=1)
    np.testing.assert_array_equal(traffic.accepted_E, accepted)
    for name in ("slots", "dropped", "dropped_tokens", "wanted_N", "dropped_N"):
        expected = np.sum([getattr(one, name) for one in theirs], axis=0)
        np.testing.assert_array_equal(getattr(traffic, name), expected)
    assert int(traffic.dropped.sum()) > 0
    if layout == "slots_scatter":
        flops = [step.cost_analysis()["flops"] for step in (compiled, train)]
        assert flops[0] < 1.1 * M * flops[1]


@pytest.mark.grid
def test_evaluation_is_the_mean_of_probabilities(both):
    step, state, alone = both
    raw = raw_batch()
    found = step.observe(state.params, state.router_state, raw, Context())
    parts = [
        alone.observe(one_member(state.params, m), state.router_state, raw, Context())
        for m in range(M)
    ]
    prob = np.mean([np.exp(-np.asarray(part.loss_BS, np.float64)) for part in parts], axis=0)
    counted = np.asarray(found.loss_BS) != 0
    np.testing.assert_allclose(
        np.asarray(found.loss_BS)[counted], -np.log(prob)[counted], rtol=1e-4
    )
    routes = found.routes
    assert routes.expert_BSK.shape[-1] == ENSEMBLE.choices == 4
    own = np.asarray(parts[1].routes.expert_BSK)
    np.testing.assert_array_equal(routes.expert_BSK[..., 2:], np.where(own < 4, own + 4, 8))
    half = parts[0].routes.weight_BSK / M
    np.testing.assert_allclose(routes.weight_BSK[..., :2], half, rtol=2e-6)


@pytest.mark.grid
@pytest.mark.parametrize("router", [GShard(), NoisyTopK(k=2), DeepSeekV3(k=2)])
def test_meshes_agree(router):
    losses = RoutingLosses(
        load_balance=LoadBalance(coefficient=0.1), router_z=RouterZ(coefficient=0.01)
    )
    moe = dataclasses.replace(ENSEMBLE, router=router, losses=losses, capacity_factor=1.0)

    def one_step(**options):
        step, state = make(moe, optimizer=optax.sgd(1.0), num_layers=1, **options)
        after, result = jax.jit(step.train)(state, raw_batch(), {})
        return jax.device_get((after.params, result.loss, result.sums.traffic))

    params, loss, traffic = one_step()
    assert int(traffic.dropped.sum()) > 0
    for mesh in (MeshConfig(data=2, expert=4), MeshConfig(data=1, fsdp=2, expert=2, sequence=2)):
        other, other_loss, other_traffic = one_step(mesh=mesh)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        assert gap(other, params) < 2e-5
        np.testing.assert_array_equal(other_traffic.dropped, traffic.dropped)
    accumulated = one_step(accumulation=2)
    np.testing.assert_allclose(accumulated[1], loss, rtol=1e-5)


def test_balanced_members_have_balance_loss_one(both):
    step, state, _ = both
    _, result = jax.jit(step.train)(state, raw_batch(), {})
    sums = jax.tree.map(lambda leaf: leaf[0], result.sums.routing)
    even = dataclasses.replace(
        sums,
        wanted_E=jnp.full((8,), 7, jnp.int32),
        prob_E=jnp.full((8,), sums.valid / 8, jnp.float32),
    )
    from moe_jax.routing.balance import load_balance_loss

    np.testing.assert_allclose(np.sum(sums.prob_E), sums.valid, rtol=1e-5)
    np.testing.assert_allclose(load_balance_loss(even), 1, rtol=1e-6)


@pytest.mark.parametrize("scope", ["group", "row", "micro_batch", "global_batch"])
def test_losses_of_balanced_members_do_not_depend_on_their_number(scope):
    """A row of member m wants the experts of m alone, evenly: balance losses are 1, CV^2 is 0."""
    members, own, tokens = 4, 2, 6
    member_1R = jnp.arange(8)[None] % members  # 1 layer, 8 rows
    has_1RE = jnp.repeat(jnp.arange(members), own)[None, None] == member_1R[..., None]
    even_1RE = jnp.where(has_1RE, tokens / own, 0).astype(jnp.float32)
    count_1RE = even_1RE.astype(jnp.int32)
    zeros_1R = jnp.zeros((1, 8), jnp.float32)
    sums = Sums(
        wanted_E=count_1RE,
        first_E=count_1RE,
        prob_E=even_1RE,
        importance_E=even_1RE,
        load_E=even_1RE,
        z=zeros_1R,
        entropy=zeros_1R,
        valid=jnp.full((1, 8), tokens, jnp.int32),
        largest_logit=zeros_1R,
    )

    def loss(**terms):
        return float(scoped_loss(RoutingLosses(**terms), GShard(), sums, (scope,), 1, members))

    weight = dict(coefficient=1.0, scope=scope)
    np.testing.assert_allclose(loss(load_balance=LoadBalance(**weight)), 1, rtol=1e-6)
    device = DeviceBalance(groups=members, **weight)
    np.testing.assert_allclose(loss(device_balance=device), 1, rtol=1e-6)
    assert abs(loss(importance=Importance(**weight))) < 1e-6
    assert abs(loss(load=Load(**weight))) < 1e-6


@pytest.mark.grid
def test_decoding_is_the_full_forward(both):
    step, state, _ = both
    tokens = np.random.default_rng(1).integers(0, 40, 9).tolist()
    generator = Generator(
        network=step.network,
        params=state.params,
        router_state=state.router_state,
        usable_V=np.ones(40, bool),
    )
    full, _, _ = generator.logits(tokens, 9)
    _, cache, _ = generator.logits(tokens[:5], 9)
    for place in range(5, 9):
        token = jnp.asarray([[tokens[place]]], jnp.int32)
        stepped, cache, _ = generator._step(
            state.params, state.router_state, {}, cache, token, place
        )
    np.testing.assert_allclose(stepped, full, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.sum(np.exp(full)), 1, rtol=1e-5)


def test_flops_are_counted_from_the_first_sparse_layer_on():
    config = DecoderConfig(num_layers=4)
    moe = dataclasses.replace(MIXTRAL, first=2, every=2, router=TopK(k=1))
    one = count(config, moe, IO(length=256))
    four = count(config, dataclasses.replace(moe, ensemble=4), IO(length=256))
    assert four.total == one.total
    # Layer 0 and the look-up are shared; the pattern (layers 1-2, then 3) is computed 4 times.
    D, H = config.model_dim, config.num_heads * config.head_dim
    shared = 6 * (4 * D * H + 3 * D * config.mlp_dim)
    attention = one.attention_flops / 4
    assert four.matmul_flops == pytest.approx(4 * one.matmul_flops - 3 * 2 * shared)
    assert four.attention_flops == pytest.approx(4 * one.attention_flops - 3 * 2 * attention)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (dict(ensemble=3), "moe.ensemble"),
        (dict(ensemble=4, router=TopK(k=3)), "moe.router.k"),
        (dict(ensemble=2, router=ExpertChoice()), "moe.ensemble"),
        (dict(ensemble=2, group_size=64), "moe.group_size"),
    ],
)
def test_rules(change, path):
    base = dataclasses.replace(experiment(), mesh=MeshConfig())
    moe = dataclasses.replace(base.moe, num_experts=8, group_size=None)
    moe = dataclasses.replace(moe, **change)
    changed = dataclasses.replace(base, moe=moe)
    if "group_size" in change:
        length = changed.data.sequence_length
        moe = dataclasses.replace(moe, group_size=2 * length)
        changed = dataclasses.replace(changed, moe=moe)
    assert path in {problem.path for problem in cross_check(changed, 1)}

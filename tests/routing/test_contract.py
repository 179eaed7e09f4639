"""The contract of every router in the table: assignments, sums, padding, ties, extremes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import ROUTERS
from moe_jax.routing.capacity import expert_capacity
from moe_jax.routing.plan import make_plan, plan_traffic
from moe_jax.routing.types import SoftPlan
from tests.routing.any_router import E, T, inputs, parameters

# What a kind needs beside its defaults to route E = 6 experts and tokens 0..T-1.
OPTIONS: dict[str, dict] = {}


def make(kind, **options):
    return ROUTERS[kind](**{**OPTIONS.get(kind, {}), **options})


def fields_of(kind):
    return {field.name for field in dataclasses.fields(ROUTERS[kind])}


def decides_softly(kind):
    router = make(kind)
    decide = functools.partial(router.route, parameters(router), router.state(E))
    return isinstance(jax.eval_shape(decide, inputs())[0], SoftPlan)


SOFT = [kind for kind in ROUTERS if decides_softly(kind)]
HARD = [kind for kind in ROUTERS if kind not in SOFT]
# Tokens want as many experts as they like, up to `choices`.
VARIABLE = {kind for kind in HARD if "k_max" in fields_of(kind)}
# Have experts that are undispatched, which compete for the choices.
UNDISPATCHED = {kind for kind in HARD if getattr(make(kind), "Z", 0)}
# Choices do not come from comparing the logits of one token: ties have another rule.
NOT_BY_LOGITS = {"hash", "random", "uniform", "round_robin", "expert_choice"}


@pytest.fixture(params=HARD)
def kind(request):
    return request.param


def token_weights(a):
    """Each token's sum of weights."""
    weight_T = np.zeros(a.T)
    np.add.at(weight_T, np.asarray(a.token_R), np.asarray(a.weight_R, np.float64))
    return weight_T


def test_shapes_dtypes_and_ranges(kind):
    router = make(kind)
    a, sums = router.route(parameters(router), router.state(E), inputs())
    (R,) = a.token_R.shape
    assert a.expert_R.shape == a.weight_R.shape == (R,)
    assert a.token_R.dtype == a.expert_R.dtype == jnp.int32
    assert a.weight_R.dtype == jnp.float32
    assert (a.T, a.E) == (T, E)
    assert np.all((a.token_R >= 0) & (a.token_R < T))
    assert np.all((a.expert_R >= 0) & (a.expert_R <= a.unused))
    assert np.all(np.isfinite(a.weight_R)) and np.all(a.weight_R >= 0)
    if a.k is not None:
        assert a.k == router.choices(E)
        assert np.array_equal(a.token_R, np.arange(R) // a.k)
    used_R = np.asarray(a.expert_R) < E
    if a.c is not None:
        assert np.array_equal(np.asarray(a.expert_R)[used_R], (np.arange(R) // a.c)[used_R])
    # Distinct experts for a token: a slot per expert and token is enough.
    pairs = np.stack([a.token_R, a.expert_R], axis=1)[used_R]
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    for name in ("wanted_E", "first_E", "valid"):
        assert getattr(sums, name).dtype == jnp.int32
    for name in ("prob_E", "importance_E", "load_E", "z", "entropy", "largest_logit"):
        assert getattr(sums, name).dtype == jnp.float32
    assert np.array_equal(sums.wanted_E, np.bincount(a.expert_R, minlength=E + 1)[:E])
    assert int(sums.valid) == T
    np.testing.assert_allclose(np.sum(sums.prob_E), T, rtol=1e-5)
    assert int(np.sum(sums.first_E)) <= T and np.all(sums.first_E <= sums.wanted_E)
    own = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (router.own_sums(E), dict(sums.own)))
    assert own[0] == own[1]
    quiet = router.route(parameters(router), router.state(E), inputs(train=False))[1]
    for metrics in (router.metrics(router.state(E), x) for x in (sums, quiet)):
        assert all(np.isfinite(value) and np.ndim(value) == 0 for value in metrics.values())
    assert jax.tree.map(jnp.shape, router.update(router.state(E), sums)) == jax.tree.map(
        jnp.shape, router.state(E)
    )


def test_deterministic_and_quiet_outside_training(kind):
    router = make(kind)
    params = parameters(router)
    for train in (True, False):
        first, again = (
            router.route(params, router.state(E), inputs(train=train)) for _ in range(2)
        )
        assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    loud = dataclasses.replace(inputs(train=False), key=jax.random.key(3))
    quiet = inputs(train=False)
    a, b = (router.route(params, router.state(E), x)[0].expert_R for x in (loud, quiet))
    assert np.array_equal(a, b)


def test_padding_is_inert(kind):
    """Padding tokens are never routed and never counted, whatever stands in them."""
    router = make(kind)
    params, clean = parameters(router), inputs(padding=5, train=False)
    dirty = dataclasses.replace(clean, x_TD=clean.x_TD.at[-5:].set(1e3))
    (a, sums), (b, dirty_sums) = (router.route(params, router.state(E), x) for x in (clean, dirty))
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, (a.expert_R, a.weight_R, sums), (b.expert_R, b.weight_R, dirty_sums)
        )
    )
    assert int(sums.valid) == T - 5
    tokens = np.asarray(a.token_R)[np.asarray(a.expert_R) < E]
    assert tokens.max() < T - 5
    if not router.causal_choice:
        return  # tokens compete for the places of a whole group
    alone = inputs(tokens=T, train=False)
    short = jax.tree.map(lambda leaf: leaf[: T - 5], alone)
    _, short_sums = router.route(params, router.state(E), short)
    for padded, cut in zip(jax.tree.leaves(sums), jax.tree.leaves(short_sums), strict=True):
        np.testing.assert_allclose(padded, cut, rtol=1e-5)


def test_all_padding(kind):
    router = make(kind)
    a, sums = router.route(parameters(router), router.state(E), inputs(padding=T))
    assert np.all(np.asarray(a.expert_R) == a.unused)
    assert np.all(np.asarray(a.weight_R) == 0)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(sums))


def test_ties_go_to_the_lower_expert(kind):
    if kind in NOT_BY_LOGITS:
        return  # its own file has its rule
    router = make(kind)
    params = jax.tree.map(jnp.zeros_like, parameters(router))
    a, _ = router.route(params, router.state(E), inputs(train=False))
    assert a.k is not None
    experts = np.asarray(a.expert_R).reshape(T, a.k)
    used = experts < E
    assert np.array_equal(experts[used], np.tile(np.arange(a.k), (T, 1))[used])
    assert kind in VARIABLE or np.all(used)


def test_one_expert_and_all_experts(kind):
    for num_experts in (1, 2, 3):
        options = {"k": num_experts} if "k" in fields_of(kind) else {}
        router = make(kind, **options)
        if dict(getattr(router, "check_experts", lambda E: ())(num_experts)):
            continue
        if router.choices(num_experts) > num_experts:
            continue
        a, sums = router.route(parameters(router, num_experts), router.state(num_experts), inputs())
        assert np.all(np.isfinite(a.weight_R))
        by_logits = kind not in VARIABLE | NOT_BY_LOGITS | UNDISPATCHED | {"gshard"}
        if router.choices(num_experts) == num_experts and by_logits:
            assert np.array_equal(sums.wanted_E, [T] * num_experts)


# Which kinds have weights that sum to their `scale` (1 where there is none); of the others every
# token's weights sum to less.
RENORMALIZED = {
    "gshard",
    "mixtral",
    "noisy_top_k",
    "deepseek_v3",
    "quantile_balancing",
    "sqrt_softplus",
    "dense_mixture",
    "hash",
    "random",
    "uniform",
    "round_robin",
    "task_level",
}
UNBOUNDED = {"loss_free", "expert_threshold"}  # each weight is below 1
UNLIMITED = {"remoe"}  # weights may be any number from 0 on
NO_GRADIENT = {"hash", "random", "uniform", "round_robin"}  # constant weights


def test_weights_sum_to_one_where_the_paper_says_so(kind):
    router = make(kind)
    a, _ = router.route(parameters(router), router.state(E), inputs(train=False))
    weight_R = np.asarray(a.weight_R) / getattr(router, "scale", 1)
    total = token_weights(a) / getattr(router, "scale", 1)
    if kind in RENORMALIZED:
        np.testing.assert_allclose(total, 1, rtol=1e-5)
    elif kind in UNBOUNDED:
        assert np.all(weight_R < 1)
    elif kind not in UNLIMITED:
        assert np.all(total < 1)


@pytest.mark.parametrize("kind", [kind for kind in HARD if "bias" in fields_of(kind)])
def test_inadmissible_experts(kind):
    """Logits of -inf: those experts are never chosen; where none is left, rows are unused; no NaN
    in values or gradients."""
    router = make(kind, bias=True)
    params = parameters(router)

    def total(params, batch):
        a, sums = router.route(params, router.state(E), batch)
        floats = [x for x in jax.tree.leaves(sums) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.sum(a.weight_R) + sum(jnp.sum(leaf) for leaf in floats), (a, sums)

    with_gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
    for off in (slice(0, 2), slice(1, None), slice(None)):
        masked = {**params, "bias": params["bias"].at[off].set(-jnp.inf)}
        for train in (False, True):
            (value, (a, sums)), slope = with_gradient(masked, inputs(train=train))
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, sums, slope)))
            expert_R = np.asarray(a.expert_R)
            every = np.arange(a.unused)  # also those undispatched
            assert not np.isin(expert_R, every[off]).any()
            left = len(every) - len(every[off])
            # GShard's second expert may not be wanted.
            if kind not in VARIABLE | NOT_BY_LOGITS and (kind != "gshard" or not train):
                assert np.sum(expert_R < a.unused) == T * min(left, router.choices(E))
            assert np.all(np.asarray(a.weight_R)[expert_R == a.unused] == 0)


def test_one_token(kind):
    """A group of one token, as in generation and in `Routes.prob_BSE`."""
    router = make(kind)
    a, sums = router.route(parameters(router), router.state(E), inputs(tokens=1))
    assert int(sums.valid) == 1 and np.all(np.isfinite(a.weight_R))
    np.testing.assert_allclose(np.sum(sums.prob_E), 1, rtol=1e-5)


def test_bfloat16_inputs_are_routed_in_float32(kind):
    router = make(kind)
    rounded = inputs(dtype=jnp.bfloat16, train=False)
    same = dataclasses.replace(rounded, x_TD=rounded.x_TD.astype(jnp.float32))
    a, b = (router.route(parameters(router), router.state(E), x) for x in (rounded, same))
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


@contextlib.contextmanager
def in_float64_mode():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def in_float64(tree):
    """The tree with float64 for float32."""
    cast = {jnp.dtype("float32"): jnp.float64}
    return jax.tree.map(lambda leaf: leaf.astype(cast.get(leaf.dtype, leaf.dtype)), tree)


def check_slope(value, h=1e-4):
    """d value(step) / d step at 0 against central differences of fourth order in float64."""
    slope = jax.jit(jax.grad(value))(0.0)
    assert slope.dtype == jnp.float64 and abs(slope) > 0.01
    v = [value(step * h) for step in (-2.0, -1.0, 1.0, 2.0)]
    numeric = (v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * h)
    np.testing.assert_allclose(slope, numeric, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in HARD if kind not in NO_GRADIENT])
def test_weight_gradient_against_finite_differences(kind):
    """d(sum c_r weight_r) / d parameters along a direction, away from ties, in float64."""
    router = make(kind)
    with in_float64_mode():
        # With seed 3 no score is so near 0 or the threshold that a step takes it across.
        params = parameters(router, seed=3 if kind in {"remoe", "threshold"} else 1)
        params, batch = in_float64(params), in_float64(inputs(train=False))
        a0, _ = router.route(params, router.state(E), batch)
        # By pair, not by row: experts that choose have their tokens in the order of the scores.
        coefficient_TE = jax.random.normal(jax.random.key(5), (T, a0.unused + 1), jnp.float64)
        keys = jax.random.split(jax.random.key(6), len(params))
        direction = {
            name: jax.random.normal(key, x.shape, x.dtype)
            for key, (name, x) in zip(keys, params.items(), strict=True)
        }

        def value(step):
            moved = {name: x + step * direction[name] for name, x in params.items()}
            a, _ = router.route(moved, router.state(E), batch)
            pairs = jnp.zeros(coefficient_TE.shape, jnp.int32).at[a.token_R, a.expert_R].add(1)
            if not isinstance(step, jax.core.Tracer):
                chosen.append(np.asarray(pairs))
            return jnp.sum(a.weight_R * coefficient_TE[a.token_R, a.expert_R])

        chosen = []
        check_slope(value)
        assert all(np.array_equal(chosen[0], other) for other in chosen)  # no choice flipped


def test_plan_serves_in_order_and_counts(kind):
    router = make(kind)
    a, sums = router.route(parameters(router), router.state(E), inputs(padding=3))
    capacity = expert_capacity(T, E, router.experts_per_token(E, T), 0.75)
    plan = make_plan(a, capacity)
    capacity = plan.capacity
    kept, expert, slot = (np.asarray(x) for x in (plan.kept_R, a.expert_R, plan.slot_R))
    for e in range(E):
        mine = np.flatnonzero(expert == e)
        priority = np.zeros(len(mine)) if a.priority_R is None else np.asarray(a.priority_R)[mine]
        served = mine[np.lexsort((mine, priority))]
        assert np.array_equal(slot[served], np.arange(len(mine)))
        assert kept[mine].sum() == min(len(mine), capacity) == plan.accepted_E[e]
    traffic = plan_traffic(plan, inputs().valid_T.at[-3:].set(False), inputs().row_part_T)
    assert int(traffic.dropped) == int(np.sum(sums.wanted_E)) - kept.sum()
    lost = {int(t) for t in np.asarray(a.token_R)[expert < E]}
    undispatched = (expert >= E) & (expert < a.unused)
    lost -= {int(t) for t in np.asarray(a.token_R)[kept | undispatched]}
    assert int(traffic.dropped_tokens) == len(lost)
    # By rank, by place in the row, and per token: numpy on the same rows.
    wanted, gone = expert < E, (expert < E) & ~kept
    rank, place = np.arange(len(expert)) % (a.k or 1), np.asarray(a.token_R) * 8 // T
    for by, K, wanted_by, gone_by in (
        (rank, a.k or 1, traffic.wanted_K, traffic.dropped_K),
        (place, 8, traffic.wanted_N, traffic.dropped_N),
    ):
        assert np.array_equal(wanted_by, np.bincount(by[wanted], minlength=K))
        assert np.array_equal(gone_by, np.bincount(by[gone], minlength=K))
    served = np.bincount(np.asarray(a.token_R)[kept | undispatched], minlength=T)[: T - 3]
    assert np.array_equal(traffic.served_H, np.bincount(served, minlength=len(traffic.served_H)))
    full = make_plan(a, None)
    assert int(plan_traffic(full, inputs(padding=3).valid_T).dropped) == 0
    assert np.array_equal(full.kept_R, expert < E)


# --- routers that mix tokens into slots ---


@pytest.fixture(params=SOFT)
def soft(request):
    router = make(request.param)
    return router, parameters(router)


def test_soft_shapes_and_sums(soft):
    router, params = soft
    plan, sums = router.route(params, router.state(E), inputs())
    assert type(router).soft and type(router).own_capacity and not router.causal
    for share_TEC in (plan.dispatch_TEC, plan.combine_TEC):
        assert share_TEC.shape[:2] == (T, E) and share_TEC.dtype == jnp.float32
        assert np.all(share_TEC >= 0)
    np.testing.assert_allclose(np.sum(plan.dispatch_TEC, axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(plan.combine_TEC, axis=(1, 2)), 1, rtol=1e-5)
    C = plan.dispatch_TEC.shape[2]
    assert router.experts_per_token(E, T) == pytest.approx(E * C / T)
    assert sums.wanted_E.dtype == sums.first_E.dtype == sums.valid.dtype == jnp.int32
    assert int(sums.valid) == T == int(np.sum(sums.first_E))
    np.testing.assert_allclose(np.sum(sums.prob_E), T, rtol=1e-5)
    traffic = plan_traffic(plan, inputs().valid_T)
    assert int(traffic.slots) == int(np.sum(traffic.accepted_E)) == E * C


def test_soft_deterministic_and_quiet_outside_training(soft):
    router, params = soft
    for train in (True, False):
        one, two = (router.route(params, router.state(E), inputs(train=train)) for _ in range(2))
        assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    loud = dataclasses.replace(inputs(train=False), key=jax.random.key(3))
    one, two = (router.route(params, router.state(E), x)[0] for x in (loud, inputs(train=False)))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_soft_padding_is_inert(soft):
    """As if the group were shorter, whatever stands in the padding."""
    router, params = soft
    clean = inputs(padding=5, train=False)
    dirty = dataclasses.replace(clean, x_TD=clean.x_TD.at[-5:].set(1e3))
    found, other = (router.route(params, router.state(E), x) for x in (clean, dirty))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, other))
    short = jax.tree.map(lambda leaf: leaf[: T - 5], inputs(train=False))
    plan, sums = router.route(params, router.state(E), short)
    for name in ("dispatch_TEC", "combine_TEC"):
        padded = getattr(found[0], name)
        np.testing.assert_allclose(padded[: T - 5], getattr(plan, name), rtol=1e-5)
        assert np.all(np.asarray(padded[T - 5 :]) == 0)
    for padded, cut in zip(jax.tree.leaves(found[1]), jax.tree.leaves(sums), strict=True):
        np.testing.assert_allclose(padded, cut, rtol=1e-5)


def test_soft_all_padding(soft):
    router, params = soft

    def total(params):
        found = router.route(params, router.state(E), inputs(padding=T))
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(found)), found

    slope, found = jax.grad(total, has_aux=True)(params)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves((slope, found)))


def test_soft_one_token(soft):
    router, params = soft
    plan, sums = router.route(params, router.state(E), inputs(tokens=1))
    assert np.all(np.asarray(plan.dispatch_TEC) == 1)
    np.testing.assert_allclose(np.sum(sums.prob_E), 1, rtol=1e-5)


def test_soft_probabilities_are_of_each_token(soft):
    """`Sums.prob_E` of a group is the sum of those of its tokens alone."""
    router, params = soft
    batch = inputs(train=False)
    alone = jax.tree.map(lambda leaf: leaf[:, None], batch)
    each_TE = jax.vmap(lambda token: router.route(params, router.state(E), token)[1].prob_E)(alone)
    _, sums = router.route(params, router.state(E), batch)
    np.testing.assert_allclose(np.sum(each_TE, axis=0), sums.prob_E, rtol=1e-5)


def test_soft_bfloat16_inputs_are_routed_in_float32(soft):
    router, params = soft
    rounded = inputs(dtype=jnp.bfloat16, train=False)
    same = dataclasses.replace(rounded, x_TD=rounded.x_TD.astype(jnp.float32))
    a, b = (router.route(params, router.state(E), x) for x in (rounded, same))
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_soft_gradient_against_finite_differences(soft):
    router, params = soft
    with in_float64_mode():
        params, batch = in_float64(params), in_float64(inputs(train=False))
        plan, _ = router.route(params, router.state(E), batch)
        keys = iter(jax.random.split(jax.random.key(5), 2 + len(params)))
        c1, c2 = (
            jax.random.normal(next(keys), plan.combine_TEC.shape, jnp.float64) for _ in range(2)
        )
        direction = {
            name: jax.random.normal(next(keys), x.shape, x.dtype) for name, x in params.items()
        }

        def value(step):
            moved = {name: x + step * direction[name] for name, x in params.items()}
            plan, _ = router.route(moved, router.state(E), batch)
            return jnp.sum(plan.dispatch_TEC * c1) + jnp.sum(plan.combine_TEC * c2)

        check_slope(value)

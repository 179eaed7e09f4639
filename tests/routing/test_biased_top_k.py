"""Scores, group limits and balancing biases against published examples and float64 numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import DeepSeekV3, LossFree, QuantileBalancing
from moe_jax.routing.bias_balanced.base import BaseBiasedTopK, limit_to_groups
from moe_jax.routing.bias_balanced.bias import (
    MARKS,
    margins_below,
    proportional_update,
    quantile_bias,
    sign_update,
)
from moe_jax.routing.choice import best
from moe_jax.routing.scores import SCORES
from tests.routing.given import identity_logits, inputs

# DeepSeek-V3's published example of group-limited selection: 16 experts in 4 groups.
GROUPED = [0.20, 0.10, 0.05, 0.10, 0.10, 0.60, 0.30, 0.10, 0.80, 0.01, 0.01, 0.01]
GROUPED += [0.05, 0.80, 0.20, 0.10]


def logit(p):
    p = np.asarray(p, np.float64)
    return np.log(p / (1 - p)).astype(np.float32)


def test_group_limited_selection():
    score_TE = jnp.asarray([GROUPED], jnp.float32)
    limited_TE = limit_to_groups(score_TE, 4, 2, "top2_sum")
    assert best(score_TE, 4, limited_TE)[1].tolist() == [[13, 5, 6, 14]]
    # By its best expert alone the third group (0.80) would have been among the two best.
    by_max = limit_to_groups(score_TE, 4, 2, "max")
    assert best(score_TE, 4, by_max)[1].tolist() == [[8, 13, 14, 15]]
    assert jnp.array_equal(limit_to_groups(score_TE, 4, 4, "max"), score_TE)


def test_the_router_limits_groups_and_weighs_without_the_bias():
    router = DeepSeekV3(k=4, expert_groups=4, kept_groups=2)
    a, _ = identity_logits(router, jnp.asarray([logit(GROUPED)]))
    assert a.expert_R.tolist() == [13, 5, 6, 14]
    chosen = np.asarray(GROUPED)[[13, 5, 6, 14]]
    np.testing.assert_allclose(a.weight_R, 2.5 * chosen / chosen.sum(), rtol=1e-5)

    params = {"kernel": jnp.eye(16)}
    bias_E = jnp.zeros(16).at[4].set(0.55)  # 0.1 -> 0.65: now the second best
    a, _ = router.route(params, {"bias": bias_E}, inputs(jnp.asarray([logit(GROUPED)])))
    assert a.expert_R.tolist() == [13, 4, 5, 6]
    chosen = np.asarray(GROUPED)[[13, 4, 5, 6]]
    np.testing.assert_allclose(a.weight_R, 2.5 * chosen / chosen.sum(), rtol=1e-5)


def choices_in_float64(score_TE, bias_E, *, k, groups, kept, of_group, biased_groups=True):
    """Experts of each token, best first: the k largest of score + bias within the `kept` groups
    whose `of_group` best of score + bias add up to most."""
    chosen_TK = []
    for score_E in score_TE:
        by_E = score_E + bias_E
        ranked_Ne = np.sort((by_E if biased_groups else score_E).reshape(groups, -1), axis=1)
        sum_N = ranked_Ne[:, -of_group:].sum(1)
        best_N = np.argsort(-sum_N, kind="stable")[:kept]
        open_E = np.isin(np.arange(len(by_E)) // (len(by_E) // groups), best_N)
        chosen_TK.append(np.argsort(-np.where(open_E, by_E, -np.inf), kind="stable")[:k])
    return np.array(chosen_TK)


@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_every_ingredient_decides_against_float64(score, group_score):
    """Score, bias, groups, weights and scale together, where the bias decides between groups for
    many tokens, and each of the others for some."""
    T, E, k, groups, kept, scale = 40, 12, 3, 4, 2, 1.7
    rng = np.random.default_rng(5)
    z = rng.normal(size=(T, E))
    score_TE = {
        "softmax": np.exp(z) / np.exp(z).sum(1, keepdims=True),
        "sigmoid": 1 / (1 + np.exp(-z)),
        "sqrt_softplus": np.sqrt(np.log1p(np.exp(z))),
    }[score]
    bias_E = score_TE.std() * rng.normal(size=E)
    of_group = {"max": 1, "top2_sum": 2}[group_score]
    sizes = dict(k=k, groups=groups, kept=kept, of_group=of_group)
    expected_TK = choices_in_float64(score_TE, bias_E, **sizes)
    for others in (
        choices_in_float64(score_TE, bias_E, **sizes, biased_groups=False),
        choices_in_float64(score_TE, 0 * bias_E, **sizes),
        choices_in_float64(score_TE, bias_E, **sizes | {"kept": groups}),
        choices_in_float64(score_TE, bias_E, **sizes | {"of_group": 3 - of_group}),
    ):
        assert np.any(np.sort(others) != np.sort(expected_TK), axis=1).sum() >= 4
    router = BaseBiasedTopK(
        k=k,
        score=score,
        scale=scale,
        expert_groups=groups,
        kept_groups=kept,
        group_score=group_score,
        bias_update="sign",
    )
    state = {"bias": jnp.asarray(bias_E, jnp.float32)}
    params = {"kernel": jnp.eye(E)}
    a, sums = router.route(params, state, inputs(jnp.asarray(z, jnp.float32)))
    np.testing.assert_array_equal(np.reshape(a.expert_R, (T, k)), expected_TK)
    weight_TK = np.take_along_axis(score_TE, expected_TK, axis=1)
    weight_TK /= weight_TK.sum(1, keepdims=True)
    np.testing.assert_allclose(np.reshape(a.weight_R, (T, k)), scale * weight_TK, rtol=1e-5)
    prob_TE = score_TE / score_TE.sum(1, keepdims=True)
    np.testing.assert_allclose(sums.prob_E, prob_TE.sum(0), rtol=1e-5)
    importance_E = np.zeros(E)
    np.add.at(importance_E, expected_TK, weight_TK)
    np.testing.assert_allclose(sums.importance_E, importance_E, rtol=1e-5)


def test_a_bias_has_no_gradient_and_gives_none():
    router = LossFree()
    x_TD = jax.random.normal(jax.random.key(0), (8, 6))
    params = {"kernel": jnp.eye(6)}

    def total(bias_E):
        return jnp.sum(router.route(params, {"bias": bias_E}, inputs(x_TD))[0].weight_R)

    assert np.all(np.asarray(jax.grad(total)(jnp.zeros(6))) == 0)


def test_sign_update_of_the_paper():
    """2408.15664 on counts [5, 4, 3, 4] with rate 0.01."""
    choices = [[0, 1], [3, 0], [3, 1], [1, 0], [0, 3], [2, 0], [1, 2], [2, 3]]
    counts_E = jnp.asarray(np.bincount(np.ravel(choices)), jnp.int32)
    found = sign_update(jnp.zeros(4), counts_E, 0.01)
    np.testing.assert_allclose(found, [-0.01, 0, 0.01, 0], atol=1e-9)
    proportional = proportional_update(jnp.zeros(4), counts_E, 0.01)
    np.testing.assert_allclose(proportional, [-0.0025, 0, 0.0025, 0], atol=1e-9)


def test_sign_update_is_exact_for_large_counts():
    """Counts that float32 cannot tell apart, and a mean that is no integer."""
    near = 2**25
    counts_E = jnp.asarray([near - 1, near, near + 1, near], jnp.int32)
    np.testing.assert_array_equal(sign_update(jnp.zeros(4), counts_E, 1.0), [1, 0, -1, 0])
    np.testing.assert_array_equal(
        sign_update(jnp.zeros(2), jnp.asarray([2, 3], jnp.int32), 1.0), [1, -1]
    )


def test_update_moves_the_bias_only_where_one_is_kept():
    sums = identity_logits(LossFree(), jax.random.normal(jax.random.key(0), (9, 4)))[1]
    for kind in ("sign", "proportional"):
        router = LossFree(bias_update=kind, bias_rate=0.5)
        moved = router.update(router.state(4), sums)["bias"]
        counts_E = np.asarray(sums.wanted_E)
        assert np.array_equal(np.sign(moved), np.sign(counts_E.mean() - counts_E))
    still = LossFree(bias_update="none")
    assert still.state(4) == {} and still.update({}, sums) == {}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_quantile_bias_against_numpy(k):
    """-(quantile 1 - k/E of score - cutoff), minus its mean, to the distance of two marks."""
    T, E = 4000, 6
    rng = np.random.default_rng(0)
    score_TE = 1 / (1 + np.exp(-(rng.normal(size=(T, E)) + np.linspace(-1, 1, E))))
    bias_E = 0.1 * rng.normal(size=E)
    valid_T = np.arange(T) < T - 100
    by_TE = score_TE + bias_E
    cutoff_T = np.sort(by_TE, axis=1)[:, ::-1][:, k]
    margin_TE = (score_TE - cutoff_T[:, None])[valid_T]
    expected_E = -np.quantile(margin_TE, 1 - k / E, axis=0)
    below_EN = margins_below(
        jnp.asarray(score_TE, jnp.float32),
        jnp.asarray(by_TE, jnp.float32),
        k,
        jnp.asarray(valid_T),
    )
    assert below_EN.shape == (E, MARKS)
    np.testing.assert_allclose(below_EN[:, -1], T - 100, rtol=1e-6)
    found_E = quantile_bias(below_EN, k)
    np.testing.assert_allclose(found_E, expected_E - expected_E.mean(), atol=2 / (MARKS - 1))


def test_quantile_balancing_balances_the_batch_it_saw():
    """Skewed scores, a few steps on one batch: max violation falls from above 1 to below 0.05."""
    T, E, k = 2048, 8, 2
    x_TD = jax.random.normal(jax.random.key(0), (T, E)) + jnp.linspace(-1.5, 1.5, E)[None, :]
    router, params = QuantileBalancing(k=k), {"kernel": jnp.eye(E)}
    state, violation = router.state(E), []
    for _ in range(8):
        _, sums = router.route(params, state, inputs(x_TD, train=True))
        counts_E = np.asarray(sums.wanted_E)
        violation.append(counts_E.max() / counts_E.mean() - 1)
        state = router.update(state, sums)
    assert violation[0] > 1 and violation[-1] < 0.05


def test_margins_are_counted_in_training_only():
    for train, rows in ((True, 1), (False, 0)):
        _, sums = identity_logits(QuantileBalancing(), jnp.zeros((5, 4)), train=train)
        assert len(sums.own) == rows


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("softmax", lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)),
        ("sigmoid", lambda z: 1 / (1 + np.exp(-z))),
        ("sqrt_softplus", lambda z: np.sqrt(np.log1p(np.exp(z)))),
    ],
)
def test_scores(name, formula):
    logits_TE = np.random.default_rng(1).normal(size=(20, 5)) * 3
    found = SCORES[name](jnp.asarray(logits_TE, jnp.float32))
    np.testing.assert_allclose(found, formula(logits_TE), rtol=2e-6)
    assert SCORES[name](jnp.full((1, 2), -jnp.inf)).tolist() == [[0, 0]]


def test_checks():
    rules = dict(DeepSeekV3(expert_groups=4, kept_groups=5, scale=0.0).check())
    assert set(rules) == {"kept_groups", "scale"}
    assert dict(QuantileBalancing(score="sqrt_softplus").check())
    assert dict(DeepSeekV3(expert_groups=4).check_experts(6)) == {
        "expert_groups": "must divide the 6 experts"
    }
    assert "k" in dict(DeepSeekV3(expert_groups=4, kept_groups=1, k=3).check_experts(8))
    assert not dict(DeepSeekV3(expert_groups=4, kept_groups=2, k=4).check_experts(8))

"""The faults: each a plausible mistake of one line, and the tests that must notice it.

`old` stands exactly once in `file`. The tests are node ids, few and fast.
"""

from __future__ import annotations

from dataclasses import dataclass

ROUTING = "moe_jax/routing/"
DISPATCH = "moe_jax/dispatch/"
TRANSPORT = DISPATCH + "transport/"
STEP = "moe_jax/training/step.py"
LAYER = "moe_jax/nn/moe_layer.py"
SHARD = "moe_jax/nn/moe_shard.py"

ORACLES = "tests/routing/test_oracles.py::test_"
BIASED = "tests/routing/test_biased_top_k.py::test_"
CONTRACT = "tests/routing/test_contract.py::test_"
SUMS = "tests/routing/test_sums.py::test_"
NOISE = "tests/routing/test_noise.py::test_"
TIES = "tests/routing/test_ties.py::test_"
COSINE = "tests/routing/test_cosine.py::test_"
PERMUTE = "tests/ops/test_permute.py::test_"
MOVES = "tests/dispatch/test_contract.py::test_"
LAYERS = "tests/nn/test_moe_layer.py::test_"
STEPS = "tests/training/test_step.py::test_"
SAME = "tests/training/test_invariance.py::test_"
ATTENTION = "tests/nn/test_attention.py::test_"
CARDS = "tests/experiments/test_cards.py::test_"
TASK = "tests/tasks/test_language_model.py::test_"


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in `file`; at least one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _fault(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, file, old, new, tests)


CHOICES = (
    _fault(
        "switch: softmax after the choice",
        ROUTING + "token_choice/switch.py",
        "self.decide(weight_TK,",
        "self.decide(softmax(weight_TK),",
        ORACLES + "switch_router_keeps_its_gradient_and_mixtral_with_one_does_not",
    ),
    _fault(
        "gshard: second expert with probability p2, not 2 p2",
        ROUTING + "token_choice/gshard.py",
        "< 2 * weight_TK[:, 1]",
        "< weight_TK[:, 1]",
        ORACLES + "gshard_second_expert_at_random_has_probability_twice_its_weight",
    ),
    _fault(
        "gshard: second expert at random in evaluation",
        ROUTING + "token_choice/gshard.py",
        "inputs.train and inputs.key is not None",
        "inputs.key is not None",
        ORACLES + "gshard_second_expert_at_random_has_probability_twice_its_weight",
    ),
    _fault(
        "gshard: weights not renormalised",
        ROUTING + "token_choice/gshard.py",
        "renormalize(best_TK)",
        "best_TK",
        CONTRACT + "weights_sum_to_one_where_the_paper_says_so[gshard]",
    ),
    _fault(
        "gshard: tokens served one after the other",
        ROUTING + "token_choice/gshard.py",
        '"choice_major"',
        '"token_major"',
        "tests/models/test_decoder.py::test_causality_and_the_leak_of_choice_major_capacity",
    ),
    _fault(
        "mixtral: softmax over all experts, not over the chosen",
        ROUTING + "token_choice/mixtral.py",
        "weight_TK = softmax(best_TK)",
        "weight_TK = softmax(logits_TE)[:, : self.k]",
        ORACLES + "mixtral_is_renormalised_softmax",
    ),
    _fault(
        "top_k: renormalised by default",
        ROUTING + "token_choice/top_k.py",
        "renormalize: bool = False",
        "renormalize: bool = True",
        CONTRACT + "weights_sum_to_one_where_the_paper_says_so[top_k]",
    ),
    _fault(
        "noisy top-k: noise in evaluation",
        ROUTING + "token_choice/noisy_top_k.py",
        "inputs.train and inputs.key is not None",
        "inputs.key is not None",
        ORACLES + "noise_only_in_training_and_by_key",
    ),
    _fault(
        "noisy top-k: softmax of all noisy logits",
        ROUTING + "token_choice/noisy_top_k.py",
        "weight_TK = softmax(best_TK)",
        "weight_TK = softmax(logits_TE)[:, : self.k]",
        CONTRACT + "weights_sum_to_one_where_the_paper_says_so[noisy_top_k]",
    ),
    _fault(
        "noisy top-k: threshold counts the expert itself",
        ROUTING + "token_choice/noisy_top_k.py",
        "jnp.where(noisy_TE >= kth_T1, next_T1, kth_T1)",
        "jnp.where(noisy_TE >= kth_T1, kth_T1, kth_T1)",
        ORACLES + "noisy_top_k_load_is_the_probability_under_fresh_noise",
    ),
    _fault(
        "noisy top-k: load with the noise drawn, not afresh",
        ROUTING + "token_choice/noisy_top_k.py",
        "gap_TE = jnp.where(clean_TE > -jnp.inf, clean_TE, 0)",
        "gap_TE = jnp.where(clean_TE > -jnp.inf, noisy_TE, 0)",
        ORACLES + "noisy_top_k_load_is_the_probability_under_fresh_noise",
    ),
    _fault(
        "noisy top-k: learned noise without softplus",
        ROUTING + "token_choice/noisy_top_k.py",
        "jax.nn.softplus(raw_TE)",
        "jnp.abs(raw_TE)",
        NOISE + "noisy_top_k_against_float64",
    ),
    _fault(
        "v-moe: noise not divided by the number of experts",
        ROUTING + "token_choice/v_moe.py",
        "jnp.float32) / E, 1e-6",
        "jnp.float32), 1e-6",
        ORACLES + "v_moe_load_against_scipy",
    ),
    _fault(
        "v-moe: importance of the noisy probabilities",
        ROUTING + "token_choice/v_moe.py",
        "gate_TE=prob_TE",
        "gate_TE=noisy_prob_TE",
        NOISE + "v_moe_importance_is_of_the_probabilities_without_noise",
    ),
    _fault(
        "v-moe: weights renormalised",
        ROUTING + "token_choice/v_moe.py",
        "            weight_TK, expert_TK, inputs",
        "            weight_TK / jnp.sum(weight_TK, axis=1, keepdims=True), expert_TK, inputs",
        CONTRACT + "weights_sum_to_one_where_the_paper_says_so[v_moe]",
    ),
    _fault(
        "biased top-k: the bias enters the weights",
        ROUTING + "bias_balanced/base.py",
        "best(score_TE, self.k, limited_TE)",
        "best(limited_TE, self.k, limited_TE)",
        BIASED + "the_router_limits_groups_and_weighs_without_the_bias",
    ),
    _fault(
        "biased top-k: the bias is not used in the choice",
        ROUTING + "bias_balanced/base.py",
        'by_TE = by_TE + state["bias"][None, :]',
        'by_TE = by_TE + 0 * state["bias"][None, :]',
        BIASED + "the_router_limits_groups_and_weighs_without_the_bias",
    ),
    _fault(
        "biased top-k: the scale of DeepSeek is missing",
        ROUTING + "bias_balanced/base.py",
        "self.scale * weight_TK",
        "1.0 * weight_TK",
        BIASED + "the_router_limits_groups_and_weighs_without_the_bias",
    ),
    _fault(
        "biased top-k: groups by their best expert, not two",
        ROUTING + "bias_balanced/base.py",
        '"top2_sum": 2',
        '"top2_sum": 1',
        BIASED + "group_limited_selection",
    ),
    _fault(
        "biased top-k: not renormalised",
        ROUTING + "bias_balanced/base.py",
        "weight_TK = renormalize(weight_TK)",
        "weight_TK = weight_TK * 1.0",
        CONTRACT + "weights_sum_to_one_where_the_paper_says_so[deepseek_v3]",
    ),
    _fault(
        "biased top-k: probabilities of losses not normalised",
        ROUTING + "bias_balanced/base.py",
        "            renormalize(score_TE),",
        "            score_TE,",
        CONTRACT + "shapes_dtypes_and_ranges[deepseek_v3]",
    ),
    _fault(
        "sqrt-softplus without the root",
        ROUTING + "scores.py",
        "jnp.sqrt(jax.nn",
        "1.0 * (jax.nn",
        BIASED + "scores",
    ),
    _fault(
        "cosine: no normalisation",
        ROUTING + "token_choice/cosine.py",
        'unit(x_TP), unit(params["directions"])',
        'x_TP, params["directions"]',
        COSINE + "cosine_router_against_float64",
    ),
    _fault(
        "cosine: times the temperature",
        ROUTING + "token_choice/cosine.py",
        "cosine_TE / jnp.maximum(",
        "cosine_TE * jnp.maximum(",
        COSINE + "cosine_router_against_float64",
    ),
    _fault(
        "jitter in evaluation",
        ROUTING + "choice.py",
        "if not inputs.train or inputs.key is None or (",
        "if inputs.key is None or (",
        NOISE + "jitter_is_uniform_around_one_and_only_in_training",
    ),
    _fault(
        "jitter only upward",
        ROUTING + "choice.py",
        "x_TD.dtype, -1.0, 1.0)",
        "x_TD.dtype, 0.0, 1.0)",
        NOISE + "jitter_is_uniform_around_one_and_only_in_training",
    ),
    _fault(
        "logits of bfloat16 inputs",
        ROUTING + "choice.py",
        "jitter(upcast(inputs.x_TD)",
        "jitter(upcast(inputs.x_TD.astype(jnp.bfloat16))",
        ORACLES + "mixtral_is_renormalised_softmax",
    ),
    _fault(
        "ties to the higher expert",
        ROUTING + "choice.py",
        "by_TK, expert_TK = jax.lax.top_k(by_TE, k)",
        "by_TK, expert_TK = (lambda v, i: (v, by_TE.shape[1] - 1 - i))"
        "(*jax.lax.top_k(by_TE[:, ::-1], k))",
        CONTRACT + "ties_go_to_the_lower_expert[mixtral]",
    ),
    _fault(
        "ties: rounding decides who is served",
        ROUTING + "choice.py",
        "<= min(TIED, 1 / (8 * T)) * jnp.abs(before_t)",
        "<= 0",
        TIES + "the_order_does_not_depend_on_rounding",
    ),
    _fault(
        "ties: rounding decides which tokens an expert takes",
        ROUTING + "expert_choice/expert_choice.py",
        "jax.lax.top_k(tied_at_last(by_TE.T, c), c)",
        "jax.lax.top_k(by_TE.T, c)",
        "tests/training/test_ties.py::test_the_same_tokens_are_dropped_on_every_mesh_and_batch"
        "[moe.router.kind=expert_choice evaluation.capacity_factor=none]",
    ),
    _fault(
        "ties: in large groups most are equal",
        ROUTING + "choice.py",
        "min(TIED, 1 / (8 * T))",
        "TIED",
        TIES + "in_large_groups_few_scores_are_equal_by_chance",
    ),
)

ORDER = (
    _fault(
        "priority ignored",
        ROUTING + "plan.py",
        "if a.priority_R is None:",
        "if True:",
        ORACLES + "v_moe_position_and_batch_priority",
    ),
    _fault(
        "ties of priority to the later row",
        ROUTING + "plan.py",
        "jnp.argsort(a.priority_R, stable=True)",
        "jnp.argsort(a.priority_R[::-1], stable=True)[::-1]",
        CONTRACT + "plan_serves_in_order_and_counts[gshard]",
    ),
    _fault(
        "choice-major for token-major",
        ROUTING + "choice.py",
        "priority_R = None",
        "priority_R = rank_TK.reshape(-1)",
        ORACLES + "drop_order_of_two_tokens",
    ),
    _fault(
        "batch priority: the least confident first",
        ROUTING + "choice.py",
        "(rank_TK - (best_T",
        "(rank_TK + (best_T",
        ORACLES + "v_moe_position_and_batch_priority",
    ),
    _fault(
        "batch priority before the rank of choice",
        ROUTING + "choice.py",
        "(rank_TK - (best_T / (1 + best_T))",
        "(0.1 * rank_TK - (best_T / (1 + best_T))",
        ORACLES + "batch_priority_never_serves_a_second_choice_before_a_first",
    ),
    _fault(
        "one row too many for each expert",
        ROUTING + "plan.py",
        "slot_R < capacity",
        "slot_R <= capacity",
        ORACLES + "drop_order_of_two_tokens",
    ),
    _fault(
        "places in the queue counted from one",
        ROUTING + "plan.py",
        "row_R - edge_E[sorted_R], 0)",
        "row_R - edge_E[sorted_R] + 1, 0)",
        ORACLES + "v_moe_position_and_batch_priority",
    ),
    _fault(
        "padding is routed",
        ROUTING + "choice.py",
        "inputs.valid_T[:, None] & (expert_TK",
        "(expert_TK",
        CONTRACT + "padding_is_inert[mixtral]",
    ),
    _fault(
        "weights scaled after drops although not asked",
        SHARD,
        "if config.renormalize_after_drop else",
        "if not config.renormalize_after_drop else",
        LAYERS + "weights_after_drops",
    ),
    _fault(
        "weights after drops scaled to the kept, not to all",
        ROUTING + "plan.py",
        "all_T / jnp.where(",
        "1 / jnp.where(",
        LAYERS + "weights_after_drops",
    ),
    _fault(
        "capacity: k is missing",
        ROUTING + "capacity.py",
        "math.ceil(round(T * k * factor / E, 9))",
        "math.ceil(round(T * factor / E, 9))",
        ORACLES + "capacity_of_each_codebase",
    ),
    _fault(
        "capacity: floor for ceil",
        ROUTING + "capacity.py",
        "math.ceil(round(T * k * factor / E, 9))",
        "math.floor(round(T * k * factor / E, 9))",
        ORACLES + "capacity_of_each_codebase",
    ),
    _fault(
        "capacity: 1.1 x 10 becomes 12",
        ROUTING + "capacity.py",
        "math.ceil(round(T * k * factor / E, 9))",
        "math.ceil(T * k * factor / E)",
        ORACLES + "capacity_bounds",
    ),
    _fault(
        "capacity: more slots than tokens",
        ROUTING + "capacity.py",
        "min(max(ROUNDINGS[rounding](T, E, k, factor), minimum), T)",
        "max(ROUNDINGS[rounding](T, E, k, factor), minimum)",
        ORACLES + "capacity_bounds",
    ),
    _fault(
        "capacity: the minimum is ignored",
        ROUTING + "capacity.py",
        "factor), minimum), T)",
        "factor), 1), T)",
        ORACLES + "capacity_bounds",
    ),
)

BALANCE = (
    _fault(
        "the bias moves the wrong way",
        ROUTING + "bias_balanced/bias.py",
        "bias_E + rate * (below_E",
        "bias_E - rate * (below_E",
        BIASED + "sign_update_of_the_paper",
    ),
    _fault(
        "the bias moves against a mean rounded down",
        ROUTING + "bias_balanced/bias.py",
        "(wanted_E == total // E) & (total % E > 0)",
        "(wanted_E == total // E) & (total % E < 0)",
        BIASED + "sign_update_is_exact_for_large_counts",
    ),
    _fault(
        "the proportional bias moves the wrong way",
        ROUTING + "bias_balanced/bias.py",
        "rate * (mean - counts_E)",
        "rate * (counts_E - mean)",
        BIASED + "sign_update_of_the_paper",
    ),
    _fault(
        "the quantile bias has the wrong sign",
        ROUTING + "bias_balanced/bias.py",
        "jnp.mean(quantile_E) - quantile_E",
        "quantile_E - jnp.mean(quantile_E)",
        BIASED + "quantile_bias_against_numpy[2]",
    ),
    _fault(
        "quantile: the cutoff is the k-th score",
        ROUTING + "bias_balanced/bias.py",
        "k + 1)[0][:, k:]",
        "k)[0][:, k - 1 :]",
        BIASED + "quantile_bias_against_numpy[2]",
    ),
    _fault(
        "quantile: padding is counted",
        ROUTING + "bias_balanced/bias.py",
        "valid_T[:, None].astype",
        "(valid_T | True)[:, None].astype",
        BIASED + "quantile_bias_against_numpy[2]",
    ),
    _fault(
        "variance of a sample for that of a population",
        ROUTING + "balance.py",
        'variance == "population"',
        'variance == "unbiased"',
        ORACLES + "squared_cv_against_numpy",
    ),
    _fault(
        "mean of each group instead of a sum",
        ROUTING + "choice.py",
        "jnp.sum(jnp.where(mask_T1, x_TE, 0), axis=0)",
        "jnp.mean(jnp.where(mask_T1, x_TE, 0), axis=0)",
        CONTRACT + "shapes_dtypes_and_ranges[mixtral]",
    ),
    _fault(
        "padding in the probabilities",
        ROUTING + "choice.py",
        "jnp.where(mask_T1, x_TE, 0)",
        "x_TE",
        CONTRACT + "padding_is_inert[mixtral]",
    ),
    _fault(
        "padding in the z-loss",
        ROUTING + "choice.py",
        "valid_z_T = valid_T & routable_T",
        "valid_z_T = routable_T",
        CONTRACT + "padding_is_inert[mixtral]",
    ),
    _fault(
        "padding in the entropy",
        ROUTING + "choice.py",
        "jnp.where(valid_T, entropy_T, 0)",
        "jnp.where(valid_T | True, entropy_T, 0)",
        CONTRACT + "padding_is_inert[mixtral]",
    ),
    _fault(
        "z-loss without the square",
        ROUTING + "choice.py",
        "jnp.square(lse_T)",
        "lse_T",
        ORACLES + "z_loss_of_zero_logits",
    ),
    _fault(
        "entropy with the wrong sign",
        ROUTING + "choice.py",
        "entropy_T = -jnp.sum(",
        "entropy_T = jnp.sum(",
        SUMS + "sums_and_metrics_against_float64",
    ),
    _fault(
        "load balance: a gradient through soft counts",
        ROUTING + "balance.py",
        "share_E = _ratio(counts_E, total)",
        "share_E = _ratio(sums.importance_E, jnp.sum(sums.importance_E))",
        ORACLES + "gshard_balance_loss_counts_first_choices",
    ),
    _fault(
        "load balance: no gradient through the probabilities",
        ROUTING + "balance.py",
        "    prob_E = _ratio(sums.prob_E, sums.valid)",
        "    prob_E = _ratio(jax.lax.stop_gradient(sums.prob_E), sums.valid)",
        SUMS + "gradient_of_the_load_balance_loss",
    ),
    _fault(
        "load balance: all choices for the first",
        ROUTING + "balance.py",
        "counts_E = sums.wanted_E if count",
        "counts_E = sums.wanted_E if True or count",
        ORACLES + "gshard_balance_loss_counts_first_choices",
    ),
    _fault(
        "load balance: levanter's normalisation the other way",
        ROUTING + "balance.py",
        '"levanter": lambda k: 1 / k',
        '"levanter": lambda k: k',
        ORACLES + "balanced_router_by_normalization[2]",
    ),
    _fault(
        "importance loss of the load",
        ROUTING + "balance.py",
        "squared_cv(sums.importance_E, variance)",
        "squared_cv(sums.load_E, variance)",
        ORACLES + "importance_loss_of_both_variances",
    ),
    _fault(
        "load loss of the importance",
        ROUTING + "balance.py",
        "squared_cv(sums.load_E, variance)",
        "squared_cv(sums.importance_E, variance)",
        SUMS + "losses_of_v_moe_against_float64",
    ),
    _fault(
        "max violation of the smallest load",
        ROUTING + "balance.py",
        "jnp.max(load_E) - jnp.mean(load_E)",
        "jnp.mean(load_E) - jnp.min(load_E)",
        SUMS + "sums_and_metrics_against_float64",
    ),
    _fault(
        "load_cv without the root",
        ROUTING + "balance.py",
        "jnp.sqrt(squared_cv(sums.wanted_E))",
        "squared_cv(sums.wanted_E)",
        SUMS + "sums_and_metrics_against_float64",
    ),
    _fault(
        "dead experts: the live ones counted",
        ROUTING + "balance.py",
        "jnp.sum(sums.wanted_E == 0)",
        "jnp.sum(sums.wanted_E > 0)",
        SUMS + "sums_and_metrics_against_float64",
    ),
    _fault(
        "dropped fraction of the accepted",
        ROUTING + "balance.py",
        "_ratio(traffic.dropped, wanted)",
        "_ratio(traffic.dropped, jnp.sum(traffic.accepted_E))",
        SUMS + "sums_and_metrics_against_float64",
    ),
    _fault(
        "dropped tokens: those that kept an expert",
        ROUTING + "plan.py",
        "(served_T == 0) & valid_T",
        "(served_T > 0) & valid_T",
        CONTRACT + "plan_serves_in_order_and_counts[gshard]",
    ),
    _fault(
        "dropped counts the kept rows",
        ROUTING + "plan.py",
        "wanted_R & ~plan.kept_R",
        "wanted_R & plan.kept_R",
        CONTRACT + "plan_serves_in_order_and_counts[mixtral]",
    ),
    _fault(
        "capacity utilization of the wanted",
        ROUTING + "balance.py",
        "_ratio(jnp.sum(traffic.accepted_E), traffic.slots)",
        "_ratio(wanted, traffic.slots)",
        SUMS + "sums_and_metrics_against_float64",
    ),
    _fault(
        "losses: a row is a group",
        ROUTING + "losses.py",
        'if scope == "group":',
        'if scope in ("group", "row"):',
        SUMS + "scopes_against_float64",
    ),
    _fault(
        "losses: summed over groups, not averaged",
        ROUTING + "losses.py",
        "jnp.mean(value_LU, axis=1)",
        "jnp.sum(value_LU, axis=1)",
        SUMS + "scopes_against_float64",
    ),
    _fault(
        "losses: mean over layers for the sum",
        ROUTING + "losses.py",
        'losses.over_layers == "sum"',
        'losses.over_layers == "mean"',
        SUMS + "scopes_against_float64",
    ),
)

TWO_LOADS = "equals_dense_on_every_load[rows-all_to_all-3-data 2, expert 4]"

MOVEMENT = (
    _fault(
        "combine: weights not applied",
        "moe_jax/ops/permute.py",
        "rows_TKD * weight_TK[..., None]",
        "rows_TKD",
        PERMUTE + "combine_rows_and_its_gradients",
    ),
    _fault(
        "combine: weights applied twice",
        "moe_jax/ops/permute.py",
        "rows_TKD * weight_TK[..., None]",
        "rows_TKD * weight_TK[..., None] ** 2",
        PERMUTE + "combine_rows_and_its_gradients",
    ),
    _fault(
        "combine backward: weight missing",
        "moe_jax/ops/permute.py",
        "(dout_MD * weight_M[:, None])",
        "(dout_MD * (weight_M[:, None] != 0))",
        PERMUTE + "combine_rows_and_its_gradients",
    ),
    _fault(
        "combine backward: weights get no gradient",
        "moe_jax/ops/permute.py",
        "dot_M.at[place_TK]",
        "(0 * dot_M).at[place_TK]",
        PERMUTE + "combine_rows_and_its_gradients",
    ),
    _fault(
        "gather backward: first choice only",
        "moe_jax/ops/permute.py",
        "jnp.sum(dx_NKD.astype(jnp.float32), axis=1)",
        "dx_NKD.astype(jnp.float32)[:, 0]",
        PERMUTE + "gather_rows_and_its_gradient",
    ),
    _fault(
        "index past the end reads the last row",
        "moe_jax/ops/permute.py",
        'x_ND.at[index].get(mode="fill", fill_value=0)',
        'x_ND.at[index].get(mode="clip")',
        PERMUTE + "combine_rows_and_its_gradients",
    ),
    _fault(
        "slots: dropped rows keep a place",
        DISPATCH + "slots.py",
        "jnp.where(plan.kept_R, a.expert_R * C + plan.slot_R, M)",
        "jnp.where(a.expert_R < a.E, a.expert_R * C + plan.slot_R, M)",
        MOVES + "equals_dense_on_every_load[slots_scatter-gather-3-data 8]",
    ),
    _fault(
        "slots: off by one",
        DISPATCH + "slots.py",
        "a.expert_R * C + plan.slot_R",
        "a.expert_R * C + plan.slot_R + 1",
        MOVES + "equals_dense_on_every_load[slots_scatter-gather-3-data 8]",
    ),
    _fault(
        "slots einsum: combine by 1",
        DISPATCH + "slots.py",
        'at.add(a.weight_R, mode="drop")',
        'at.add(a.weight_R * 0 + 1, mode="drop")',
        MOVES + "equals_dense_on_every_load[slots_einsum-all_to_all-3-data 8]",
    ),
    _fault(
        "rows: an expert starts where it ends",
        DISPATCH + "rows.py",
        "start_E = jnp.cumsum(sizes_E) - sizes_E",
        "start_E = jnp.cumsum(sizes_E)",
        MOVES + "equals_dense_on_every_load[rows-all_to_all-3-data 8]",
    ),
    _fault(
        "rows: groups start where they end",
        DISPATCH + "rows.py",
        "jnp.cumsum(sizes_gE, axis=0) - sizes_gE",
        "jnp.cumsum(sizes_gE, axis=0)",
        MOVES + "chunks[gather]",
    ),
    _fault(
        "rows: dropped rows keep a place",
        DISPATCH + "rows.py",
        "fits_gR = plan_g.kept_R & (place_gR < M)",
        "fits_gR = place_gR < M",
        MOVES + "equals_dense_on_every_load[rows-all_to_all-3-data 8]",
    ),
    _fault(
        "tensor: no sum of the partial outputs",
        DISPATCH + "sharded.py",
        "return jax.lax.psum(y_gTD, tensor), lost_g",
        "return y_gTD, lost_g",
        MOVES + "tensor_parallel_without_expert_parallel",
    ),
    _fault(
        "tensor: every rank sends the first columns",
        DISPATCH + "sharded.py",
        "jax.lax.axis_index(tensor) * d",
        "jax.lax.axis_index(tensor) * 0",
        MOVES + "equals_dense_on_every_load[rows-all_to_all-3-expert 4, tensor 2]",
    ),
    _fault(
        "fsdp: weights gathered in another order of the devices",
        DISPATCH + "sharded.py",
        'return _gathered(w, spec.axes.index("embed"), kept, fsdp)',
        'return jnp.flip(_gathered(w, spec.axes.index("embed"), kept, fsdp), 1)',
        MOVES + "equals_dense_on_every_load[rows-all_to_all-3-fsdp 2, expert 4]",
    ),
    _fault(
        "all-to-all: counts of the sender for the receiver",
        TRANSPORT + "all_to_all.py",
        "received_ne = jax.lax.all_to_all(sent_ne, axis, 0, 0)",
        "received_ne = sent_ne",
        MOVES + TWO_LOADS,
    ),
    _fault(
        "all-to-all: receive buffer off by one",
        TRANSPORT + "all_to_all.py",
        "used_M & (j_M < B)",
        "used_M & (j_M <= B)",
        MOVES + "overflow_is_counted_and_nothing_else_is_lost[all_to_all]",
    ),
    _fault(
        "all-to-all: lost rows not counted",
        TRANSPORT + "all_to_all.py",
        "return y_MD, used_M & ~fits_M",
        "return y_MD, used_M & fits_M & ~fits_M",
        MOVES + "overflow_is_counted_and_nothing_else_is_lost[all_to_all]",
    ),
    _fault(
        "all-to-all: counts beyond the buffer are sent",
        TRANSPORT + "all_to_all.py",
        "jnp.minimum(jnp.cumsum(sizes_ne, axis=1), B)",
        "jnp.cumsum(sizes_ne, axis=1)",
        MOVES + "overflow_is_counted_and_nothing_else_is_lost[all_to_all]",
    ),
    _fault(
        "all-to-all: slots come back transposed",
        TRANSPORT + "all_to_all.py",
        "y_necD.reshape(E, g, C, D).transpose(1, 0, 2, 3)",
        "y_necD.reshape(g, E, C, D)",
        MOVES + "equals_dense_on_every_load[slots_einsum-all_to_all-3-expert 4, tensor 2]",
    ),
    _fault(
        "gather: experts of lower devices are mine",
        TRANSPORT + "gather.py",
        "own_GR = (expert_GR >= 0) & (expert_GR < e)",
        "own_GR = expert_GR < e",
        MOVES + "equals_dense_on_every_load[rows-gather-3-data 2, expert 4]",
    ),
    _fault(
        "ragged: buffer one row short",
        TRANSPORT + "ragged.py",
        "jnp.clip(N - arrival_nn, 0, wanted_nn)",
        "jnp.clip(N - 1 - arrival_nn, 0, wanted_nn)",
        MOVES + "overflow_is_counted_and_nothing_else_is_lost[ragged]",
    ),
    _fault(
        "ragged: rows arrive where others end",
        TRANSPORT + "ragged.py",
        "jnp.cumsum(wanted_nn, axis=0) - wanted_nn",
        "jnp.cumsum(wanted_nn, axis=0)",
        MOVES + "equals_dense_on_every_load[rows-ragged-3-data 2, expert 4]",
    ),
    _fault(
        "received rows: sources of one expert overlap",
        TRANSPORT + "receive.py",
        "jnp.cumsum(sizes_ne, axis=0) - sizes_ne",
        "jnp.cumsum(sizes_ne, axis=0)",
        MOVES + TWO_LOADS,
    ),
)

IN_THE_LAYER = (
    _fault(
        "the same noise for all groups",
        SHARD,
        "jax.random.fold_in(key, group)",
        "jax.random.fold_in(key, 0 * group)",
        LAYERS + "noise_hangs_on_step_layer_and_group_alone[NoisyTopK]",
    ),
    _fault(
        "the same noise for all layers",
        LAYER,
        "jax.random.fold_in(context.key, layer)",
        "jax.random.fold_in(context.key, 0 * layer)",
        LAYERS + "noise_hangs_on_step_layer_and_group_alone[NoisyTopK]",
    ),
    _fault(
        "pieces of two rows share a group number",
        LAYER,
        "row_B[:, None] * grouping.pieces + piece_P",
        "row_B[:, None] + piece_P",
        LAYERS + "group_numbers_are_distinct_and_of_the_rows_alone",
    ),
    _fault(
        "padding is taken for text",
        SHARD,
        "cut(batch.segment_BS) > 0",
        "cut(batch.segment_BS) >= 0",
        LAYERS + "dropless_layer_with_shared_experts[rows]",
    ),
    _fault(
        "shared experts take the place of the routed ones",
        LAYER,
        "else y_BSD + self._of_each_gate(beside)",
        "else self._of_each_gate(beside)",
        LAYERS + "dropless_layer_with_shared_experts[rows]",
    ),
    _fault(
        "counts after the drops",
        SHARD,
        "Routed(plan=plan, sums=sums, traffic",
        "Routed(plan=plan, sums=dataclasses.replace(sums, wanted_E=plan.accepted_E), traffic",
        LAYERS + "routes_are_what_was_counted",
    ),
    _fault(
        "evaluation has the capacity of training",
        SHARD,
        "self.switches.capacity_factor",
        "self.config.capacity_factor",
        LAYERS + "capacity_is_the_context_s",
    ),
    _fault(
        "overflow is counted as dropped",
        SHARD,
        "dataclasses.replace(traffic_g, overflow=overflow_g)",
        "dataclasses.replace(traffic_g, dropped=traffic_g.dropped + overflow_g)",
        LAYERS + "overflow_is_no_drop",
    ),
)

IN_THE_STEP = (
    _fault(
        "accumulation: losses not divided",
        STEP,
        "local / self.accumulation",
        "local / 1",
        STEPS + "every_additive_scope_under_accumulation",
    ),
    _fault(
        "accumulation: the gradient of the global batch twice",
        STEP,
        "loss += _inner(global_gradient",
        "loss += 2 * _inner(global_gradient",
        SAME + "micro_batches",
    ),
    _fault(
        "accumulation: the loss is the surrogate",
        STEP,
        "loss - surrogate + global_loss",
        "loss + 0 * surrogate",
        STEPS + "a_global_loss_that_is_not_linear_in_its_sums_under_accumulation",
    ),
    _fault(
        "accumulation: a mean of the micro-batches' means",
        STEP,
        "sums.task[name] / weight",
        'sums.task[name] / jnp.maximum(sums.task["tokens"], 1) / self.accumulation',
        SAME + "micro_batches",
    ),
    _fault(
        "accumulation: groups of rows are torn",
        STEP,
        "        n = grouping.rows\n",
        "        n = 1\n",
        SAME + "micro_batches",
    ),
    _fault(
        "accumulation: micro-batches of neighbouring rows",
        STEP,
        "jnp.moveaxis(cut, 1, 0)",
        "jnp.moveaxis(cut, 0, 0)",
        STEPS + "micro_batches_take_turns_among_the_groups_of_rows",
    ),
    _fault(
        "a skipped step updates the router",
        STEP,
        "router_state=kept[2]",
        "router_state=new_state.router_state",
        STEPS + "loss_scalars_and_bad_losses",
    ),
    _fault(
        "a skipped step updates the optimizer",
        STEP,
        "opt_state=kept[1]",
        "opt_state=new_state.opt_state",
        STEPS + "loss_scalars_and_bad_losses",
    ),
    _fault(
        "the same noise at every step",
        STEP,
        "jax.random.fold_in(routing_key(self.noise_seed), state.step)",
        "routing_key(self.noise_seed)",
        STEPS + "noise_and_capacity_of_training_and_evaluation",
    ),
    _fault(
        "no noise in training",
        STEP,
        "            train=True,",
        "            train=False,",
        STEPS + "noise_and_capacity_of_training_and_evaluation",
    ),
    _fault(
        "evaluation: the capacity factor is training's",
        STEP,
        "            capacity_factor=capacity_factor,",
        "            capacity_factor=self.moe.capacity_factor,",
        STEPS + "noise_and_capacity_of_training_and_evaluation",
    ),
    _fault(
        "norm of an expert's gradient without the root",
        STEP,
        "jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))",
        "jnp.sum(jnp.stack(squares), axis=0)",
        STEPS + "reported_norms_and_the_other_layout_and_remat_policy",
    ),
    _fault(
        "targets across documents",
        "moe_jax/tasks/language_model.py",
        "(here == following) & (following > 0)",
        "(here >= 0) & (following > 0)",
        TASK + "sums_are_those_of_the_counted_targets",
    ),
    _fault(
        "padding in the cross-entropy",
        "moe_jax/tasks/language_model.py",
        '"nats": jnp.sum(jnp.where(mask_BS, nll_BS, 0))',
        '"nats": jnp.sum(nll_BS)',
        TASK + "sums_are_those_of_the_counted_targets",
    ),
)

KERNELS = (
    _fault(
        "attention: keys behind the query",
        "moe_jax/ops/attention.py",
        "mask_BSP = jnp.tril(mask_BSP)",
        "mask_BSP = jnp.tril(mask_BSP, 9)",
        ATTENTION + "attention",
    ),
    _fault(
        "attention: gradient of the softmax without its mean",
        "moe_jax/ops/attention.py",
        "dpower_BMPR - dots[i][:, :, None]",
        "dpower_BMPR",
        ATTENTION + "blocks_are_the_whole",
    ),
    _fault(
        "attention: keys that are not seen, in the gradients",
        "moe_jax/ops/attention.py",
        "power_BMPR = jnp.where(mask_B1PR, power_BMPR, 0)",
        "power_BMPR = jnp.where(True, power_BMPR, 0)",
        ATTENTION + "blocks_are_the_whole",
    ),
    _fault(
        "gpu: rows of the next group in a matrix's gradient",
        "moe_jax/ops/grouped_matmul/triton.py",
        "live_r = row_r < end",
        "live_r = row_r < end + tiles.depth",
        "tests/ops/test_grouped_matmul.py::test_rows_of_no_group_may_hold_anything[triton]",
        "tests/ops/test_grouped_matmul.py::test_bfloat16_accumulates_in_float32[triton]",
    ),
    _fault(
        "splash: logits without their scale",
        "moe_jax/ops/attention_splash.py",
        "query_BSNH * jnp.asarray(H**-0.5, query_BSNH.dtype)",
        "query_BSNH * jnp.asarray(1.0, query_BSNH.dtype)",
        ATTENTION + "splash_is_the_blocks",
    ),
    _fault(
        "rotations: the pairs turn the other way",
        "moe_jax/nn/attention.py",
        "jnp.asarray([[-1], [1]], dtype)",
        "jnp.asarray([[1], [-1]], dtype)",
        ATTENTION + "attention",
    ),
    _fault(
        "chunks of the loss: sums of two scales",
        "moe_jax/ops/cross_entropy.py",
        "sum_BS * jnp.exp(max_BS - larger_BS) + terms_BS",
        "sum_BS + terms_BS",
        "tests/ops/test_cross_entropy.py::test_against_float64",
    ),
    _fault(
        "wave: the tail starts at the expert's first row",
        "moe_jax/ops/ffn_batched.py",
        "self.start_E + C",
        "self.start_E",
        "tests/ops/test_expert_ffn.py::test_any_sizes_give_the_same_as_separate_products[batched]",
    ),
    _fault(
        "wave: the rows of the next expert in the gradients",
        "moe_jax/ops/ffn_batched.py",
        "jnp.where(c_1C < sizes_E[:, None], start_E[:, None] + c_1C, R)",
        "start_E[:, None] + c_1C",
        "tests/ops/test_expert_ffn.py::test_rows_equal_the_dense_oracle",
    ),
)

LABORATORY = (
    _fault(
        "verdict: a gain of the wrong sign",
        "experiments/judge.py",
        'sign = -1.0 if test.direction == "lower" else 1.0',
        "sign = 1.0",
        CARDS + "the_gain_is_signed_paired_and_in_its_unit",
    ),
    _fault(
        "verdict: holds by its mean",
        "experiments/judge.py",
        "if gain.low > band:",
        "if gain.mean > band:",
        CARDS + "verdicts_by_interval",
    ),
    _fault(
        "verdict: the null is the treatment",
        "experiments/judge.py",
        "tuple(find(test, records, null=True, seeds=asked) for test in claim.tests)",
        "tuple(find(test, records, seeds=asked) for test in claim.tests)",
        CARDS + "a_claim_holds_where_it_is_true_and_never_between_equal_arms",
    ),
    _fault(
        "verdict: one test that passes is enough",
        "experiments/judge.py",
        "if Verdict.DOES_NOT_HOLD in found:",
        "if Verdict.HOLDS not in found:",
        CARDS + "a_claim_that_is_false_is_said_to_be",
    ),
    _fault(
        "interval: the bootstrap alone",
        "moe_jax/sweeps/statistics.py",
        "min(a.low, b.low), max(a.high, b.high)",
        "b.low, b.high",
        "tests/sweeps/test_statistics.py::test_the_cautious_interval_covers_the_truth_as_often_as_it_says",
    ),
    _fault(
        "pairs: in the order of the runs, not of the seeds",
        "moe_jax/sweeps/statistics.py",
        "[treatment[seed] - baseline[seed] for seed in",
        "[treatment[seed] - list(baseline.values())[0] for seed in",
        "tests/sweeps/test_statistics.py::test_pairs_are_of_the_same_seed",
    ),
    _fault(
        "sweep: two engines start the same point",
        "moe_jax/sweeps/engine.py",
        "            if lock is None:",
        "            if lock is None and False:",
        "tests/sweeps/test_engine.py::test_two_engines_share_the_work",
    ),
    _fault(
        "sweep: exit code 0 is enough",
        "moe_jax/sweeps/engine.py",
        "if code == 0 and job.whole():",
        "if code == 0:",
        "tests/sweeps/test_engine.py::test_exit_code_0_of_something_unfinished_is_a_failure",
    ),
    _fault(
        "sweep: runs outlive a killed engine",
        "moe_jax/sweeps/enter.py",
        "prctl(PR_SET_PDEATHSIG, signal.SIGTERM)",
        "prctl(PR_SET_PDEATHSIG, 0)",
        "tests/sweeps/test_engine.py::test_an_engine_that_is_killed_leaves_nothing_running_and_the_next_goes_on",
    ),
    _fault(
        "matching: FLOPs of dropped assignments count",
        "moe_jax/sweeps/matching.py",
        "- dropped * counts.routed_flops",
        "- 0 * counts.routed_flops",
        "tests/sweeps/test_points.py::test_assignments_that_must_be_dropped_cost_nothing",
    ),
    _fault(
        "co-activation: shares of the other expert's tokens",
        "moe_jax/analysis/preferences.py",
        "both_EE / own_E[:, None]",
        "both_EE / own_E[None, :]",
        "tests/analysis/test_preferences.py::test_co_activation_is_the_share_of_common_tokens",
    ),
    _fault(
        "text by expert: the colour of an expert that dropped the token",
        "moe_jax/analysis/preferences.py",
        "np.where(there, trace.weight_LNSK, -np.inf)",
        "trace.weight_LNSK",
        "tests/analysis/test_preferences.py::test_the_leading_expert_has_the_largest_weight_of_those_that_took_the_token",
    ),
    _fault(
        "saturation: against the first trace",
        "moe_jax/analysis/preferences.py",
        "for t in (trace, last))",
        "for t in (trace, traces[0]))",
        "tests/analysis/test_preferences.py::test_saturation_is_the_share_that_stayed",
    ),
    _fault(
        "object store: the last lines are not sent",
        "moe_jax/config/paths.py",
        "        else:\n            self.send()",
        "        else:\n            pass",
        "tests/training/test_object_store.py::test_lines_are_sent_seldom_and_all_of_them_at_the_end",
    ),
    _fault(
        "object store: a folder without a manifest counts as a step",
        "moe_jax/training/checkpoint.py",
        "if self._remote else found",
        "if not self._remote else found",
        "tests/training/test_object_store.py::test_a_killed_first_save_is_no_step",
    ),
    _fault(
        "object store: a checkpoint ahead of the metrics",
        "moe_jax/training/loop.py",
        "        self.writer.send()\n",
        "",
        "tests/training/test_object_store.py::test_a_checkpoint_is_never_ahead_of_the_metrics",
    ),
    _fault(
        "hosts: a missed meeting is the user's error",
        "moe_jax/parallel/hosts.py",
        "raise UserError(_nobody(meeting, timeout), exit_code=1)",
        "raise UserError(_nobody(meeting, timeout))",
        "tests/launch/test_agreement.py::test_a_coordinator_that_is_not_there",
    ),
    _fault(
        "slurm: who was stopped does not wait to be queued again",
        "launch/slurm.py",
        "time.sleep(PATIENCE)",
        "pass",
        "tests/launch/test_slurm.py::test_who_was_stopped_waits_to_be_queued_again",
    ),
    _fault(
        "xpk: all nodes are process 0",
        "launch/kubernetes.py",
        '"$(NODE_RANK)"',
        '"0"',
        "tests/launch/test_renderers.py::test_the_xpk_command_is_the_same_workload",
    ),
    _fault(
        "kubernetes: a pod a chip",
        "launch/kubernetes.py",
        '"completions": where.hosts',
        '"completions": where.chips',
        "tests/launch/test_renderers.py::test_eight_nodes_of_eight_h200_meet",
    ),
    _fault(
        "launch: v5p-128 taken for 128 chips",
        "launch/hardware.py",
        "chips = int(match[2]) // TPUS[kind].cores",
        "chips = int(match[2])",
        "tests/launch/test_renderers.py::test_names_of_slices_and_of_plans_agree",
    ),
    _fault(
        "points: only each value's own rules are checked",
        "moe_jax/sweeps/points.py",
        "cross_check(experiment, experiment.mesh.min_devices)",
        "[]",
        "tests/sweeps/test_points.py::test_all_problems_of_all_points_are_told_at_once",
    ),
    _fault(
        "plan: what would fit is not held to the memory that is left",
        "moe_jax/planning/advice.py",
        "one.fits(hardware, filled)",
        "one.fits(hardware)",
        "tests/planning/test_advice.py::test_suggestions_fit_and_are_the_smallest[0.9]",
    ),
    _fault(
        "plan: what would fit is asked of another number of micro-batches, of fewer too",
        "moe_jax/planning/advice.py",
        "if variant.accumulation > experiment.accumulation:",
        "if variant.accumulation < experiment.accumulation:",
        "tests/planning/test_advice.py::test_each_suggestion_is_a_command_line_that_fits",
    ),
    _fault(
        "train: the loop is imported before the config is read",
        "moe_jax/train.py",
        "    from moe_jax.parallel.host_memory import keep_freed_memory\n",
        "    from moe_jax.parallel.host_memory import keep_freed_memory\n"
        "    from moe_jax.training.loop import train\n",
        "tests/commands/test_start.py::test_a_mistake_in_the_config_does_not_wait_for_what_trains",
    ),
)

FILES = (
    _fault(
        "folder: validation files are trained on",
        "moe_jax/data/folder.py",
        "(held if same_file(file) in names else kept)",
        "(held if file.name in names else kept)",
        "tests/data/test_sources.py::test_validation_below_the_path_is_not_trained_on",
    ),
    _fault(
        "folder: a cut at the very end of a text",
        "moe_jax/data/folder.py",
        "len(text) - share / 2, last)",
        "len(text) - share / 2, len(text))",
        "tests/data/test_splits.py::test_every_short_text_is_cut_inside",
    ),
    _fault(
        "readers: line ends become others",
        "moe_jax/data/readers.py",
        'text = content.decode("utf-8-sig")',
        'text = content.decode("utf-8-sig").replace("\\r\\n", "\\n")',
        "tests/data/test_formats.py::test_line_ends_are_kept_in_every_format",
    ),
    _fault(
        "readers: a .zst that is cut off ends there",
        "moe_jax/data/readers.py",
        "if self._frame is not None:",
        "if False:",
        "tests/data/test_damage.py::test_a_packed_file_that_is_cut_off",
    ),
    _fault(
        "columns: what no one has looked at is taken as it is",
        "moe_jax/data/columns.py",
        "column.validate(full=True)",
        "column.validate()",
        "tests/data/test_damage.py::test_a_broken_batch_is_named_and_the_others_are_read",
    ),
    _fault(
        "memmap: the second file begins at the first's length",
        "moe_jax/data/memmap.py",
        "stream[max(start - first, 0) : stop - first]",
        "stream[max(start - first, 0) : stop]",
        "tests/data/test_sources.py::test_ids_of_several_files",
    ),
)

EXPERTS = "tests/experts/test_experts.py::test_"
CLASSES = "tests/tasks/test_classification.py::test_"
VIT = "tests/models/test_vit.py::test_"
IMAGES = "tests/data/test_images.py::test_"

KINDS = (
    _fault(
        "views: what a formula makes of nothing",
        "moe_jax/experts/views.py",
        "return jnp.where((expert_R < E)[:, None], y_RD, 0)",
        "return y_RD",
        EXPERTS + "rows_of_no_expert_are_zeros_whatever_the_formula",
    ),
    _fault(
        "views: the vector of the expert before",
        "moe_jax/experts/views.py",
        'side="right"',
        'side="left"',
        EXPERTS + "rows[swiglu with biases-auto]",
    ),
    _fault(
        "views: an output bias from every device of an expert",
        "moe_jax/experts/views.py",
        "jax.lax.axis_index(self.tensor) == 0, value, 0",
        "jax.lax.axis_index(self.tensor) >= 0, value, 0",
        EXPERTS + "a_mesh_changes_nothing[clamped-expert 2, tensor 4]",
    ),
    _fault(
        "expert: a bias that no view adds once",
        "moe_jax/experts/feed_forward.py",
        'y + view.once(view.vector("b_down"))',
        'y + view.vector("b_down")',
        EXPERTS + "a_mesh_changes_nothing[swiglu with biases-fsdp 2, tensor 2]",
    ),
    _fault(
        "expert: a vector whose axis no mesh splits",
        "moe_jax/experts/base.py",
        'names = ("expert", AXES.get(axis))',
        'names = ("expert", None)',
        EXPERTS + "parameters_say_what_they_are",
    ),
    _fault(
        "clamped: the gate is clamped below too",
        "moe_jax/experts/clamped_swiglu.py",
        'g = jnp.minimum(view.times(x, "w_gate") + view.vector("b_gate"), self.limit)',
        'g = jnp.clip(view.times(x, "w_gate") + view.vector("b_gate"), -self.limit, self.limit)',
        EXPERTS + "rows[clamped-auto]",
    ),
    _fault(
        "around: from the inside out",
        LAYER,
        "for name, around in reversed(self.surroundings):",
        "for name, around in self.surroundings:",
        "tests/nn/test_around.py::test_one_in_the_other",
    ),
    _fault(
        "counts: a depth's block costs as much as any",
        "moe_jax/nn/depth.py",
        "return block(c).of_some(c / S) + router",
        "return block(c) + router",
        "tests/nn/test_around.py::test_costs_of_some",
    ),
    _fault(
        "classification: label and prediction change places",
        "moe_jax/tasks/classification.py",
        "jnp.maximum(label_B, 0) * self._C + best_B",
        "best_B * self._C + jnp.maximum(label_B, 0)",
        CLASSES + "metrics_are_scikit_learns",
    ),
    _fault(
        "classification: F1 over classes that do not occur",
        "moe_jax/tasks/classification.py",
        "return float(np.mean(2 * right_C[there_C] / either_C[there_C])) if there_C.any() else 0.0",
        "return float(np.sum(2 * right_C[there_C] / either_C[there_C])) / len(there_C)",
        CLASSES + "f1_of_classes_that_do_not_occur",
    ),
    _fault(
        "classification: the other image of a mixture has the label's share",
        "moe_jax/tasks/classification.py",
        "share_B * of_label_B + (1 - share_B) *",
        "share_B * of_label_B + share_B *",
        CLASSES + "smoothed_labels_and_mixtures",
    ),
    _fault(
        "classification: smoothing beside the whole label",
        "moe_jax/tasks/classification.py",
        "-(1 - smoothing) * of_label_B",
        "-of_label_B",
        CLASSES + "smoothed_labels_and_mixtures",
    ),
    _fault(
        "vit: patches column by column",
        "moe_jax/models/vit.py",
        "jnp.swapaxes(cut, 2, 3)",
        "jnp.moveaxis(cut, 3, 1).swapaxes(2, 3)",
        VIT + "patches_are_in_reading_order",
    ),
    _fault(
        "vit: rows and columns change places",
        "moe_jax/models/vit.py",
        'indexing="ij"',
        'indexing="xy"',
        VIT + "sincos_is_the_formula",
    ),
    _fault(
        "images: what fills up a batch is routed",
        "moe_jax/models/vit.py",
        "segment_BS=valid_BS.astype(jnp.int32),",
        "segment_BS=jnp.ones((B, S), jnp.int32),",
        VIT + "images_that_fill_up_a_batch_are_not_routed",
    ),
    _fault(
        "images: the mixture's share of the other image",
        "moe_jax/data/images.py",
        'share * row["image"] + (1 - share) * self._varied(other, random)',
        '(1 - share) * row["image"] + share * self._varied(other, random)',
        IMAGES + "a_mixture_is_one_of_two_images",
    ),
    _fault(
        "sentiment: sentences of one review in both splits",
        "moe_jax/data/sentiment.py",
        "f\"{domain} {match['id'].partition('_')[0]}\"",
        "f\"{domain} {match['id']}\"",
        "tests/data/test_labelled.py::test_ratings_become_classes_and_sources_domains",
    ),
    _fault(
        "images: RandAugment in one direction",
        "moe_jax/data/rand_augment.py",
        "strength = -strength",
        "strength = strength",
        "tests/data/test_rand_augment.py::test_the_edges_move_in",
    ),
    _fault(
        "by layer: the layers of a stack in reverse",
        "moe_jax/models/by_layer.py",
        "for layer in layers) if found else ()",
        "for layer in layers[::-1]) if found else ()",
        "tests/models/test_by_layer.py::test_rows_of_a_stack_are_its_layers",
    ),
    _fault(
        "ensemble: attention of copies costs nothing",
        "moe_jax/nn/ensemble.py",
        "attended=M * cost.attended",
        "attended=cost.attended",
        "tests/training/test_ensemble.py::test_flops_are_counted_from_the_first_sparse_layer_on",
    ),
    _fault(
        "ensemble: every copy may choose any expert",
        "moe_jax/nn/ensemble.py",
        "return jnp.repeat(member_b, pieces)[:, None] == member_E[None, :]",
        "return jnp.repeat(member_b, pieces)[:, None] >= 0 * member_E[None, :]",
        "tests/training/test_ensemble.py::test_training_is_the_mean_of_the_members_losses_and_gradients",
    ),
    _fault(
        "counterfactual: the layer routes as its router does",
        "moe_jax/nn/moe_shard.py",
        "router = rerouted(a.router, self.switches.counterfactual)",
        "router = rerouted(a.router, None)",
        LAYERS + "other_routes_in_the_place_of_the_router_s",
    ),
)

GATES, TILES = "tests/nn/test_gates.py::test_", "tests/tasks/test_segmentation.py::test_"
LEVELS, TARGETS = "tests/nn/test_levels.py::test_", "tests/tasks/test_multi_task.py::test_"
ITEMS = "tests/tasks/test_next_item.py::test_"
PACKAGES = "tests/data/test_package_sections.py::test_"
APPLICATIONS = (
    _fault(
        "gates: the same noise for all",
        "moe_jax/nn/gates.py",
        "lambda key: jax.random.fold_in(key, number)",
        "lambda key: key",
        GATES + "noise_is_each_gates_own",
    ),
    _fault(
        "gates: parameters that are drawn alike",
        "moe_jax/nn/gates.py",
        "for k in jax.random.split(key, shape[0])",
        "for k in [key] * shape[0]",
        GATES + "parameters_say_what_they_are",
    ),
    _fault(
        "gates: the experts' arithmetic is there once",
        "moe_jax/nn/gates.py",
        "float(sum(min(k, n) for n in self.allowed(E).sum(axis=1)))",
        "float(k)",
        GATES + "parameters_say_what_they_are",
    ),
    _fault(
        "gates: every expert reads the first stream",
        "moe_jax/nn/gates.py",
        "token_R=a.token_R + stream_R * a.T",
        "token_R=a.token_R",
        LEVELS + "a_level_is_the_papers_formula",
    ),
    _fault(
        "gates: the shared gate sees shared experts alone",
        "moe_jax/nn/gates.py",
        "own_KE | (owner_E == shared)[None] | (gate_K == shared)[:, None]",
        "own_KE | (owner_E == shared)[None]",
        LEVELS + "who_sees_what",
    ),
    _fault(
        "gates: figures over experts that a gate may not choose",
        "moe_jax/nn/gates.py",
        "return _of_experts(found, at)",
        "return found",
        LEVELS + "figures_are_over_what_a_gate_may_choose",
    ),
    _fault(
        "recommender: the last level asks its shared gate",
        "moe_jax/models/recommender.py",
        "target_K | (layer < self.last)",
        "target_K | (layer <= self.last)",
        "tests/models/test_recommender.py::test_rows_that_fill_up_a_batch_change_nothing[ple]",
    ),
    _fault(
        "targets: what is not known is counted",
        "moe_jax/tasks/multi_task.py",
        "return jnp.where(known_BT, errors_BT, 0)",
        "return errors_BT",
        TARGETS + "what_is_unknown_counts_nowhere",
    ),
    _fault(
        "targets: equal scores are in favour of the positive ones",
        "moe_jax/tasks/multi_task.py",
        "np.cumsum(count) - (count - 1) / 2",
        "np.cumsum(count)",
        TARGETS + "area_of_equal_scores_and_of_one_outcome",
    ),
    _fault(
        "targets: a real target's likelihood without its half",
        "moe_jax/tasks/multi_task.py",
        "< self._binary, 1.0, 0.5)",
        "< self._binary, 1.0, 1.0)",
        TARGETS + "losses_are_weighed_as_said",
    ),
    _fault(
        "next item: what was seen is ranked too",
        "moe_jax/tasks/next_item.py",
        "(id_1V < self._items) & ~seen_BV &",
        "(id_1V < self._items) &",
        ITEMS + "ranks_are_among_all_items_that_were_not_seen",
    ),
    _fault(
        "next item: ids that no item has are ranked",
        "moe_jax/tasks/next_item.py",
        "(id_1V > 0) & (id_1V < self._items) &",
        "(id_1V > 0) &",
        ITEMS + "ranks_are_among_all_items_that_were_not_seen",
    ),
    _fault(
        "next item: of equal scores the target is the first",
        "moe_jax/tasks/next_item.py",
        "logits_BV >= own_B1",
        "logits_BV > own_B1",
        ITEMS + "ranks_are_among_all_items_that_were_not_seen",
    ),
    _fault(
        "next item: an evaluation counts every place",
        "moe_jax/tasks/next_item.py",
        "(held_B1 < 0) | (place_S[None] == held_B1)",
        "(held_B1 < 0) | (place_S[None] <= held_B1)",
        ITEMS + "only_what_was_held_out_counts_where_something_was",
    ),
    _fault(
        "histories: what validates trains",
        "moe_jax/data/histories.py",
        "kept = history[:-HELD]",
        "kept = history[:-1]",
        "tests/data/test_movielens.py::test_the_last_films_are_held_out_and_in_no_other_split",
    ),
    _fault(
        "tables: unknown values of all columns are one",
        "moe_jax/data/tables.py",
        "number.get(value, first + UNKNOWN)",
        "number.get(value, UNKNOWN)",
        "tests/data/test_census_income.py::test_statistics_and_values_are_of_those_who_train",
    ),
    _fault(
        "tables: statistics of the whole",
        "moe_jax/data/census_income.py",
        'Vocabulary.of(cells_of(records["train"])',
        'Vocabulary.of(cells_of(records["train"] + published)',
        "tests/data/test_census_income.py::test_statistics_and_values_are_of_those_who_train",
    ),
    _fault(
        "tables: rows are drawn one by one",
        "moe_jax/data/table_file.py",
        "return row[self.together] if self.together else repr(sorted(row.items()))",
        "return repr(sorted(row.items()))",
        "tests/data/test_table_file.py::test_nobody_is_in_two_splits",
    ),
    _fault(
        "segmentation: the union counts the intersection twice",
        "moe_jax/tasks/segmentation.py",
        "confusion.sum(axis=1) - right",
        "confusion.sum(axis=1)",
        TILES + "metrics_are_scikit_learns",
    ),
    _fault(
        "segmentation: the loss counts pixels without a class",
        "moe_jax/tasks/segmentation.py",
        "return jnp.where(self.valid(raw), -of_label, 0)",
        "return -of_label",
        TILES + "pixels_without_a_label_have_no_gradient",
    ),
    _fault(
        "segmentation: the first tokens are patches",
        "moe_jax/nn/head.py",
        "x_BSD[:, x_BSD.shape[1] - rows * columns :]",
        "x_BSD[:, : rows * columns]",
        "tests/models/test_vit.py::test_a_class_for_each_pixel",
    ),
    _fault(
        "tagging: equal scores one by one",
        "moe_jax/tasks/tagging.py",
        "np.append(score[1:] != score[:-1], True)",
        "np.ones(len(score), bool)",
        "tests/tasks/test_tagging.py::test_average_precision_of_equal_scores_and_of_none",
    ),
    _fault(
        "detections: an object is found twice",
        "moe_jax/tasks/average_precision.py",
        "free_M[best], right_TN[t, n] = False, True",
        "free_M[best], right_TN[t, n] = True, True",
        "tests/tasks/test_average_precision.py::test_an_object_is_found_once",
    ),
    _fault(
        "boxes: the hull's rest is not taken off",
        "moe_jax/ops/boxes.py",
        "return ratio - (hull - union) / jnp.maximum(hull, SMALLEST)",
        "return ratio",
        "tests/ops/test_boxes.py::test_boxes_apart_are_drawn_together",
    ),
    _fault(
        "fetch: any archive will do",
        "moe_jax/data/fetch/archives.py",
        "if sha256 != archive.sha256:",
        "if not sha256:",
        "tests/data/test_fetch.py::test_a_changed_archive_and_a_changed_file_are_refused",
    ),
    _fault(
        "fetch: what is prepared is not looked at again",
        "moe_jax/data/fetch/dataset.py",
        "if not is_unchanged(folder / name, str(sha256)):",
        "if not (folder / name):",
        "tests/data/test_fetch.py::test_a_changed_archive_and_a_changed_file_are_refused",
    ),
    _fault(
        "packages: sources that share a description in two splits",
        "moe_jax/data/debian.py",
        "groups.join(_source(blocks[0]), _source(block))",
        "groups.join(_source(block), _source(block))",
        PACKAGES + "no_source_is_in_two_splits",
    ),
    _fault(
        "pairs: paragraphs of the training split validate",
        "moe_jax/data/package_descriptions.py",
        "texts, seen = self.texts(language), set(trained)",
        "texts, seen = self.texts(language), set()",
        "tests/data/test_paired.py::test_what_was_trained_on_does_not_validate",
    ),
    _fault(
        "climate: a tile that moves leaves its block",
        "moe_jax/data/climate.py",
        "return int(np.clip(moved, first, end - length))",
        "return int(np.clip(moved, 0, end - length))",
        "tests/data/test_climate.py::test_no_longitude_is_in_two_splits",
    ),
)

FAULTS = (
    CHOICES
    + ORDER
    + BALANCE
    + MOVEMENT
    + IN_THE_LAYER
    + IN_THE_STEP
    + KERNELS
    + LABORATORY
    + FILES
    + KINDS
    + APPLICATIONS
)

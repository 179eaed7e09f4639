"""Faults in what is reduced over groups, layers, micro-batches and batches, and in the ingredients
of routers: each must decide in some test."""

from __future__ import annotations

from tests.mutants.faults import ROUTING, SHARD, STEP, Fault, _fault

EVALUATION = "moe_jax/training/evaluation.py"
BIAS = ROUTING + "bias_balanced/bias.py"

REDUCED = "tests/checking/test_statistics.py::test_"
BY_KIND = REDUCED + "leaves_reduce_by_their_kind"
OF_A_STEP = REDUCED + "every_statistic_of_a_step_against_float64"
OF_AN_EVALUATION = REDUCED + "metrics_of_a_step_and_of_an_evaluation_against_float64"
SOFT = "tests/routing/test_soft_counts.py::test_"
BIASED = "tests/routing/test_biased_top_k.py::test_"
THRESHOLD = "tests/routing/test_expert_threshold.py::test_"
CONTENT = "tests/routing/test_content_free.py::test_"
VARIABLE = "tests/routing/test_variable_choice.py::test_"
REMOE = "tests/routing/test_remoe.py::test_"
ROUNDING = "tests/checking/test_rounding.py::test_"
CHECK = "tests/checking/test_check.py::test_"

REDUCTIONS = (
    _fault(
        "statistics: the largest logit is added up",
        ROUTING + "plan.py",
        'PEAKS = frozenset({"largest_logit"})',
        "PEAKS: frozenset[str] = frozenset()",
        BY_KIND,
    ),
    _fault(
        "statistics: the largest of two sets is their sum",
        ROUTING + "plan.py",
        "return np.maximum(x, y) if isinstance(x, np.ndarray) else jnp.maximum(x, y)",
        "return x + y",
        BY_KIND,
    ),
    _fault(
        "statistics: on the host the largest is the last",
        ROUTING + "plan.py",
        "return np.maximum(x, y) if isinstance(x, np.ndarray)",
        "return y if isinstance(x, np.ndarray)",
        BY_KIND,
    ),
    _fault(
        "statistics: groups are averaged",
        ROUTING + "plan.py",
        "return jnp.sum(leaf, axis=axis, dtype=leaf.dtype)",
        "return jnp.mean(leaf, axis=axis).astype(leaf.dtype)",
        BY_KIND,
    ),
    _fault(
        "statistics: the largest logit, not of its size",
        ROUTING + "choice.py",
        "jnp.abs(jax.lax.stop_gradient(logits_TE))",
        "jax.lax.stop_gradient(logits_TE)",
        "tests/routing/test_sums.py::test_sums_and_metrics_against_float64",
        OF_A_STEP + "[1 device rows]",
    ),
    _fault(
        "statistics: of the last micro-batch",
        STEP,
        "return (*total, add_sums(carry[2], sums)), None",
        "return (*total, sums), None",
        OF_A_STEP + "[1 device rows accumulation=4]",
    ),
    _fault(
        "statistics: of the last batch of an evaluation",
        EVALUATION,
        "total = wide if total is None else add_sums(total, wide)",
        "total = wide",
        OF_AN_EVALUATION,
    ),
    _fault(
        "statistics: the largest logit is a mean over layers",
        EVALUATION,
        'WORST = frozenset({"max_violation", "largest_logit"})',
        'WORST = frozenset({"max_violation"})',
        OF_AN_EVALUATION,
    ),
    _fault(
        "statistics: drops by rank, of all drops",
        EVALUATION,
        "_ratio(traffic.dropped_K, traffic.wanted_K)",
        "_share(traffic.dropped_K)",
        OF_AN_EVALUATION,
    ),
    _fault(
        "statistics: mass of the gates is that of the probabilities",
        EVALUATION,
        "_share(routing.importance_E)",
        "_share(routing.prob_E)",
        OF_AN_EVALUATION,
    ),
    _fault(
        "statistics: places counted from the token shard's start",
        SHARD,
        "axis_index(sequence) * s",
        "0 * s",
        OF_A_STEP + "[data=2 expert=2 sequence=2 rows/all_to_all accumulation=2 remat=full]",
    ),
    _fault(
        "statistics: padding among the tokens without an expert",
        ROUTING + "plan.py",
        "count_experts(jnp.minimum(served_T, most), valid_T, most + 1)",
        "count_experts(jnp.minimum(served_T, most), valid_T | True, most + 1)",
        OF_A_STEP + "[1 device rows]",
    ),
)

BIASES = (
    _fault(
        "groups of experts: chosen without the balancing bias",
        ROUTING + "bias_balanced/base.py",
        "limited_TE = limit_to_groups(by_TE, self.expert_groups, self.kept_groups, "
        "self.group_score)",
        "open_TE = limit_to_groups(score_TE, self.expert_groups, self.kept_groups, "
        "self.group_score)\n"
        "        limited_TE = jnp.where(open_TE > -jnp.inf, by_TE, -jnp.inf)",
        BIASED + "every_ingredient_decides_against_float64",
    ),
    _fault(
        "groups of experts: the best by two experts",
        ROUTING + "bias_balanced/base.py",
        'GROUP_SCORES = {"max": 1,',
        'GROUP_SCORES = {"max": 2,',
        BIASED + "every_ingredient_decides_against_float64[sigmoid-max]",
    ),
    _fault(
        "groups of experts: all of them open",
        ROUTING + "bias_balanced/base.py",
        "jnp.where(kept_TN[:, :, None], by_group_TNe, -jnp.inf)",
        "jnp.where(kept_TN[:, :, None] | True, by_group_TNe, -jnp.inf)",
        BIASED + "every_ingredient_decides_against_float64[softmax-top2_sum]",
    ),
    _fault(
        "proportional bias: of the counts, not of their share",
        BIAS,
        "(mean - counts_E) / jnp.maximum(mean, 1)",
        "(mean - counts_E)",
        BIASED + "sign_update_of_the_paper",
    ),
    _fault(
        "soft counts: a value in one bin",
        BIAS,
        "upper_TE = place_TE - lower_TE",
        "upper_TE = jnp.round(place_TE - lower_TE)",
        SOFT + "a_value_at_a_mark_that_moves_by_its_last_bit",
    ),
    _fault(
        "soft counts: the shares the other way round",
        BIAS,
        "mark_TE + 1].add(weight_TE * upper_TE)",
        "mark_TE + 1].add(weight_TE * (1 - upper_TE))",
        SOFT + "counts_against_float64",
    ),
    _fault(
        "soft counts: the quantile jumps over a gap",
        BIAS,
        "half_E1 = jnp.maximum(0.5, total_E1 * 2.0**-20)",
        "half_E1 = jnp.maximum(1e-4, total_E1 * 2.0**-20)",
        SOFT + "far_values_are_those_of_hazen",
    ),
    _fault(
        "soft counts: half a mark too high",
        BIAS,
        "(jnp.arange(N + 1, dtype=jnp.float32) - 0.5) / (N - 1)",
        "jnp.arange(N + 1, dtype=jnp.float32) / (N - 1)",
        SOFT + "quantiles_have_no_bias_against_float64",
    ),
    _fault(
        "margins: of the scores with the bias",
        BIAS,
        "jnp.clip(score_TE - cutoff_T1, -1, 1)",
        "jnp.clip(by_TE - cutoff_T1, -1, 1)",
        SOFT + "margins_are_those_to_the_cutoff",
    ),
)

INGREDIENTS = (
    _fault(
        "expert threshold: the first quantile only in part",
        ROUTING + "expert_choice/expert_threshold.py",
        "old_E == UNSET, quantile_E, self.decay",
        "old_E == UNSET, (1 - self.decay) * quantile_E, self.decay",
        THRESHOLD + "update_against_numpy[sigmoid]",
    ),
    _fault(
        "expert threshold: the share above for the share below",
        ROUTING + "expert_choice/expert_threshold.py",
        "counted_quantile(below_EN, 1 - self.capacity_factor / E)",
        "counted_quantile(below_EN, self.capacity_factor / E)",
        THRESHOLD + "update_against_numpy[sigmoid]",
    ),
    _fault(
        "expert threshold: at first rounded down",
        ROUTING + "expert_choice/expert_threshold.py",
        "first = min(-int(-self.capacity_factor // 1)",
        "first = min(int(self.capacity_factor // 1)",
        THRESHOLD + "before_the_first_update_a_token_takes_its_best",
    ),
    _fault(
        "expert threshold: padding is over k_max",
        ROUTING + "expert_choice/expert_threshold.py",
        "jnp.sum(jnp.where(inputs.valid_T, over_T, 0), dtype=jnp.float32)",
        "jnp.sum(over_T, dtype=jnp.float32)",
        THRESHOLD + "k_max_keeps_the_best_and_counts_the_rest",
    ),
    _fault(
        "hash: padding is counted in the table",
        ROUTING + "content_free/hash.py",
        "jnp.where(known_T & inputs.valid_T, inputs.id_T, self._V)",
        "jnp.where(known_T, inputs.id_T, self._V)",
        CONTENT + "padding_and_unknown_ids",
    ),
    _fault(
        "hash: the rarest ids first",
        ROUTING + "content_free/hash.py",
        "jnp.argsort(-count_V, stable=True)",
        "jnp.argsort(count_V, stable=True)",
        CONTENT + "greedy_table_against_python",
    ),
    _fault(
        "moe++: tau weighs the matrix experts",
        ROUTING + "token_choice/moe_plus_plus.py",
        "< E, 1.0, self.tau)",
        "< E, self.tau, 1.0)",
        "tests/routing/test_moe_plus_plus.py::test_balance_loss_is_equation_7",
    ),
    _fault(
        "remoe: the share of active tokens is not per k",
        ROUTING + "token_choice/remoe.py",
        "(E / self.k) / tokens",
        "float(E) / tokens",
        REMOE + "loss_and_its_gradient",
    ),
    _fault(
        "remoe: lambda grows where gates are too sparse",
        ROUTING + "token_choice/remoe.py",
        "jnp.float32(self.alpha) ** step",
        "jnp.float32(self.alpha) ** -step",
        REMOE + "one_step_of_the_controller",
    ),
    _fault(
        "top-p: an expert too few",
        ROUTING + "token_choice/top_p.py",
        "((better_TE < p) & (ranked_TE > 0))",
        "((better_TE + ranked_TE < p) & (ranked_TE > 0))",
        VARIABLE + "top_p_takes_the_smallest_set",
    ),
    _fault(
        "v-moe: load by the threshold without noise",
        ROUTING + "token_choice/v_moe.py",
        "jax.lax.top_k(noisy_TE, self.k)",
        "jax.lax.top_k(clean_TE, self.k)",
        "tests/routing/test_oracles.py::test_v_moe_load_against_scipy",
    ),
    _fault(
        "variable choice: padding is truncated",
        ROUTING + "token_choice/variable.py",
        "taken_TE[:, K:] & inputs.valid_T[:, None]",
        "taken_TE[:, K:] & (inputs.valid_T[:, None] | True)",
        VARIABLE + "k_max_keeps_the_best_and_counts_the_others",
    ),
)

THE_CHECK = (
    _fault(
        "bfloat16: the embedding is cast before the look-up",
        "moe_jax/ops/embedding.py",
        "dtable_VD = zeros_VD.at[id_BS].add(dx.astype(like_V.dtype))",
        "dtable_VD = zeros_VD.astype(dtype).at[id_BS].add(dx).astype(like_V.dtype)",
        ROUNDING + "bfloat16_is_within_its_rounding",
    ),
    _fault(
        "check: a group of half a row that it does not divide",
        "moe_jax/checking/shrink.py",
        "if length % n == 0), None)",
        "if n == parts), None)",
        CHECK + "groups_divide_a_row_that_keeps_its_length",
    ),
    _fault(
        "check: bfloat16 that is float32",
        "moe_jax/checking/variants.py",
        "dtype=self.dtype)",
        'dtype="float32")',
        ROUNDING + "bfloat16_is_within_its_rounding",
    ),
)

STATISTICS: tuple[Fault, ...] = REDUCTIONS + BIASES + INGREDIENTS + THE_CHECK

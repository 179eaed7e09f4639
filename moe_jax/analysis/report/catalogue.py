"""What each metric is called in the report, what it means, and what balanced looks like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is shown. include: values that the axis must reach. early: it falls steeply at
    first. reference: a dashed level, as (value or "ln E", what it is). best: "min" or "max" where
    a table may point out the best run. worst: over layers the greatest is taken, not the mean."""

    title: str
    meaning: str
    percent: bool = False
    log: bool = False
    early: bool = False
    include: tuple[float, ...] = ()
    reference: tuple[float | str, str] | None = None
    best: str | None = None
    worst: bool = False


LEARNING = {
    "cross_entropy": Metric(
        title="Cross-entropy",
        meaning="Nats per prediction, without auxiliary losses. Lower is better.",
        early=True,
        best="min",
    ),
    "bits_per_byte": Metric(
        title="Bits per byte",
        meaning="Cross-entropy in bits per byte of text: comparable between tokenizers.",
        early=True,
        best="min",
    ),
    "loss": Metric(
        title="Training loss",
        meaning="What is minimised: cross-entropy plus the weighted routing losses.",
        early=True,
    ),
    "perplexity": Metric(
        title="Perplexity",
        meaning="exp(cross-entropy).",
        log=True,
        best="min",
    ),
    "accuracy": Metric(
        title="Accuracy",
        meaning="Share of predictions whose most probable outcome is right.",
        percent=True,
        best="max",
    ),
    "macro_f1": Metric(
        title="Macro F1",
        meaning="Mean over classes of 2 TP / (2 TP + FP + FN).",
        percent=True,
        best="max",
    ),
    "mean_average_precision": Metric(
        title="Mean average precision",
        meaning="Mean over labels of the area below precision by recall.",
        percent=True,
        best="max",
    ),
    "micro_f1": Metric(
        title="Micro F1",
        meaning="2 TP / (2 TP + FP + FN) of all labels of all rows, at probability 1/2.",
        percent=True,
        best="max",
    ),
    "top5_accuracy": Metric(
        title="Top-5 accuracy",
        meaning="Share of rows whose class is among the five most probable ones.",
        percent=True,
        best="max",
    ),
    "bleu": Metric(
        title="BLEU",
        meaning="Of texts that the model writes by itself, the mean over pairs of languages; 100 "
        "is the true text.",
        best="max",
        include=(0.0,),
    ),
    "chrf": Metric(
        title="chrF",
        meaning="F score of runs of letters, of the same texts.",
        best="max",
        include=(0.0,),
    ),
    "smoothed_cross_entropy": Metric(
        title="Smoothed cross-entropy",
        meaning="The part of the loss that the task has, with label smoothing.",
        best="min",
    ),
    "mean_iou": Metric(
        title="Mean intersection over union",
        meaning="Mean over classes of TP / (TP + FP + FN), of all pixels.",
        percent=True,
        best="max",
    ),
    "pixel_accuracy": Metric(
        title="Pixel accuracy",
        meaning="Share of pixels whose most probable class is right.",
        percent=True,
        best="max",
    ),
    "auc": Metric(
        title="Area under the ROC curve",
        meaning="Mean over binary targets of the share of pairs, one positive and one not, in "
        "which the positive row has the larger score. 0.5 is chance.",
        best="max",
    ),
    "rho_squared": Metric(
        title="McFadden's rho squared",
        meaning="1 - log-likelihood / log-likelihood of equal chances of all that is available.",
        best="max",
    ),
    "ndcg_at_10": Metric(
        title="NDCG at 10",
        meaning="Of the item that was held out, 1 / log2(rank + 1) among all items that were not "
        "seen, 0 beyond rank 10; mean over histories.",
        best="max",
    ),
    "hit_rate_at_10": Metric(
        title="Hit rate at 10",
        meaning="Share of histories whose held-out item is among the ten best of all items.",
        percent=True,
        best="max",
    ),
    "mean_squared_error": Metric(
        title="Mean squared error",
        meaning="Mean over real targets.",
        early=True,
        best="min",
    ),
    "average_precision": Metric(
        title="Average precision",
        meaning="Area below precision by recall as COCO has it, mean over ten overlaps from 0.5 to "
        "0.95 and over classes.",
        percent=True,
        best="max",
    ),
    "ap50": Metric(
        title="Average precision at overlap 0.5",
        meaning="An object is found by a box that has half of their union in common with it.",
        percent=True,
        best="max",
    ),
    "ap75": Metric(
        title="Average precision at overlap 0.75",
        meaning="The same at three quarters of the union.",
        percent=True,
        best="max",
    ),
    "detection_loss": Metric(
        title="Detection loss",
        meaning="Of class, box and overlap together, for each object, added over the layers that "
        "predict. Lower is better.",
        early=True,
        best="min",
    ),
    "calibration_error": Metric(
        title="Calibration error",
        meaning="Mean distance of confidence and accuracy, over 15 bins of confidence. 0 is "
        "calibrated.",
        percent=True,
        best="min",
        include=(0.0,),
    ),
    "grad_norm": Metric(
        title="Gradient norm",
        meaning="Global norm before clipping. Spikes announce an unstable run.",
        early=True,
        include=(0.0,),
    ),
    "learning_rate": Metric(
        title="Learning rate",
        meaning="After warm-up and decay.",
        include=(0.0,),
    ),
}

ROUTING = {
    "moe/max_violation": Metric(
        title="Max violation",
        meaning="(Busiest expert − mean) / mean, before drops. 0 is balanced; 1 is an expert with "
        "twice its share; E − 1 is all on one expert.",
        include=(0.0,),
        worst=True,
    ),
    "moe/load_cv": Metric(
        title="Load: coefficient of variation",
        meaning="Standard deviation of the load over experts, divided by its mean. 0 is balanced.",
        include=(0.0,),
    ),
    "moe/router_entropy": Metric(
        title="Router entropy",
        meaning="Nats per token. ln E is a router that does not decide; 0 is one that is certain. "
        "It should fall slowly: a sudden drop is a collapse.",
        include=(0.0,),
        reference=("ln E", "undecided: ln E"),
    ),
    "moe/largest_logit": Metric(
        title="Largest router logit",
        meaning="The greatest absolute logit in any layer. Steady growth announces trouble.",
        include=(0.0,),
        worst=True,
    ),
    "moe/experts_per_token": Metric(
        title="Experts per token",
        meaning="Wanted, on average: k, or what a router with a dynamic number asks for.",
        include=(0.0,),
    ),
    "moe/dropped_fraction": Metric(
        title="Dropped assignments",
        meaning="Share of wanted (token, expert) pairs that found their expert full. 0 where "
        "dropless.",
        percent=True,
        include=(0.0,),
    ),
    "moe/dropped_token_fraction": Metric(
        title="Dropped tokens",
        meaning="Share of tokens that lost all their experts; only the residual carries them on.",
        percent=True,
        include=(0.0,),
    ),
    "moe/probe/churn": Metric(
        title="Route churn",
        meaning="Share of tokens of a fixed batch whose set of experts changed since the last "
        "probe. It should settle; 0 is a frozen router.",
        percent=True,
        include=(0.0,),
    ),
    "moe/probe/overlap": Metric(
        title="Route overlap",
        meaning="Mean share of a token's experts that stayed since the last probe. 1 is frozen, "
        "k / E is chance.",
        percent=True,
        include=(1.0,),
    ),
    "moe/probe/margin": Metric(
        title="Route margin",
        meaning="Mean gap between the probabilities of a token's first and second expert: how "
        "firm the choices are.",
        include=(0.0,),
    ),
    "moe/load_balance_loss": Metric(
        title="Load-balance loss",
        meaning="E · Σ (share of assignments) · (mean probability), unweighted. Balanced is 1.",
        reference=(1.0, "balanced: 1"),
    ),
    "moe/router_z_loss": Metric(
        title="Router z-loss",
        meaning="Mean of logsumexp(logits)², unweighted. Growth means growing router logits.",
        include=(0.0,),
        early=True,
    ),
    "moe/dead_experts": Metric(
        title="Dead experts",
        meaning="Experts of a layer that no token of the batch wanted. 0 is healthy.",
        include=(0.0,),
    ),
    "moe/capacity_utilization": Metric(
        title="Capacity utilization",
        meaning="Filled share of the experts' slots; the rest is padding.",
        percent=True,
        include=(0.0, 1.0),
    ),
    "moe/capacity_factor": Metric(
        title="Capacity factor",
        meaning="Slots per expert, relative to a perfectly even load.",
        include=(0.0,),
    ),
    "moe/overflow_fraction": Metric(
        title="Receive-buffer overflow",
        meaning="Share of assignments beyond a bounded receive buffer; not part of the drops. "
        "Should be 0.",
        percent=True,
        include=(0.0,),
    ),
}

SPEED = {
    "tokens_per_s": Metric(
        title="Tokens per second", meaning="All devices together.", include=(0.0,), best="max"
    ),
    "step_time_s": Metric(title="Step time", meaning="Seconds per optimizer step.", include=(0.0,)),
    "mfu": Metric(
        title="Model FLOPs utilization",
        meaning="Useful FLOPs over the devices' peak.",
        percent=True,
        include=(0.0,),
        best="max",
    ),
    "flops_per_token": Metric(
        title="FLOPs per token",
        meaning="Of the model, with k experts, without padding.",
        include=(0.0,),
    ),
}

METRICS = {**LEARNING, **ROUTING, **SPEED}


def metric(name: str) -> Metric:
    """The entry of a metric; one that is not known is shown under its own name."""
    return METRICS.get(name) or Metric(title=name, meaning="")

"""Who goes where: routers, capacity, balance. Plain arrays, no Flax, no collective."""

from moe_jax.routing.assignment.base_layers import BaseLayers
from moe_jax.routing.assignment.sinkhorn import Sinkhorn
from moe_jax.routing.bias_balanced.deepseek_v3 import DeepSeekV3
from moe_jax.routing.bias_balanced.loss_free import LossFree
from moe_jax.routing.bias_balanced.quantile_balancing import QuantileBalancing
from moe_jax.routing.bias_balanced.sqrt_softplus import SqrtSoftplus
from moe_jax.routing.content_free.hash import Hash
from moe_jax.routing.content_free.random import Random
from moe_jax.routing.content_free.round_robin import RoundRobin
from moe_jax.routing.content_free.uniform import Uniform
from moe_jax.routing.expert_choice.expert_choice import ExpertChoice
from moe_jax.routing.expert_choice.expert_threshold import ExpertThreshold
from moe_jax.routing.expert_choice.soft_moe import SoftMoE
from moe_jax.routing.token_choice.cosine import Cosine
from moe_jax.routing.token_choice.deepseek_v2 import DeepSeekV2
from moe_jax.routing.token_choice.dense_mixture import DenseMixture
from moe_jax.routing.token_choice.gshard import GShard
from moe_jax.routing.token_choice.mixtral import Mixtral
from moe_jax.routing.token_choice.moe_plus_plus import MoEPlusPlus
from moe_jax.routing.token_choice.noisy_top_k import NoisyTopK
from moe_jax.routing.token_choice.remoe import ReMoE
from moe_jax.routing.token_choice.switch import Switch
from moe_jax.routing.token_choice.task_level import TaskLevel
from moe_jax.routing.token_choice.threshold import Threshold
from moe_jax.routing.token_choice.top_k import TopK
from moe_jax.routing.token_choice.top_p import TopP
from moe_jax.routing.token_choice.v_moe import VMoE

# A new router is a new file and one row here.
ROUTERS: dict[str, type] = {
    "switch": Switch,
    "gshard": GShard,
    "mixtral": Mixtral,
    "top_k": TopK,
    "noisy_top_k": NoisyTopK,
    "v_moe": VMoE,
    "deepseek_v2": DeepSeekV2,
    "deepseek_v3": DeepSeekV3,
    "loss_free": LossFree,
    "quantile_balancing": QuantileBalancing,
    "sqrt_softplus": SqrtSoftplus,
    "cosine": Cosine,
    "dense_mixture": DenseMixture,
    "hash": Hash,
    "random": Random,
    "uniform": Uniform,
    "round_robin": RoundRobin,
    "expert_choice": ExpertChoice,
    "expert_threshold": ExpertThreshold,
    "soft_moe": SoftMoE,
    "base": BaseLayers,
    "sinkhorn": Sinkhorn,
    "remoe": ReMoE,
    "top_p": TopP,
    "threshold": Threshold,
    "moe_plus_plus": MoEPlusPlus,
    "task_level": TaskLevel,
}

"""Who goes where: routers, capacity, balance. Plain arrays, no Flax, no collective."""

from moe_jax.routing.base_layers import BaseLayers
from moe_jax.routing.cosine import Cosine
from moe_jax.routing.deepseek_v2 import DeepSeekV2
from moe_jax.routing.deepseek_v3 import DeepSeekV3
from moe_jax.routing.dense_mixture import DenseMixture
from moe_jax.routing.expert_choice import ExpertChoice
from moe_jax.routing.expert_threshold import ExpertThreshold
from moe_jax.routing.gshard import GShard
from moe_jax.routing.hash import Hash
from moe_jax.routing.loss_free import LossFree
from moe_jax.routing.mixtral import Mixtral
from moe_jax.routing.moe_plus_plus import MoEPlusPlus
from moe_jax.routing.noisy_top_k import NoisyTopK
from moe_jax.routing.quantile_balancing import QuantileBalancing
from moe_jax.routing.random import Random
from moe_jax.routing.remoe import ReMoE
from moe_jax.routing.round_robin import RoundRobin
from moe_jax.routing.sinkhorn import Sinkhorn
from moe_jax.routing.soft_moe import SoftMoE
from moe_jax.routing.sqrt_softplus import SqrtSoftplus
from moe_jax.routing.switch import Switch
from moe_jax.routing.threshold import Threshold
from moe_jax.routing.top_k import TopK
from moe_jax.routing.top_p import TopP
from moe_jax.routing.uniform import Uniform
from moe_jax.routing.v_moe import VMoE

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
}

"""The quickstart's iso-FLOP dense twin: every layer dense, of k * F = 2 * 256 hidden units.

The same data, steps and recipe, and the same FLOPs per token but for the router's (2 D E a layer).
"""

from pathlib import Path

from ml_collections import ConfigDict

from moe_jax.config.overrides import read_config_file


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = read_config_file(Path(__file__).with_name("quickstart.py"))
    config.name = "dense_quickstart"
    config.moe.every = 0
    config.model.mlp_dim = config.moe.router.k * config.moe.expert_dim
    return config

"""A JAX research framework for sparse Mixture-of-Experts models.

    layer = moe_jax.MoE(512, experts=8, hidden=1024, rngs=nnx.Rngs(0))   # in a model of your own
    run = moe_jax.train("configs/quickstart.py", "runs/quickstart")      # as the command does
    run = moe_jax.load("runs/quickstart")                                # a trained run

`routers` are the routers, `experts` what an expert may be, `MeshAxes` says what a mesh's axes are
for. What is not named here may move between versions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_jax import experts
    from moe_jax import routing as routers
    from moe_jax.nn.moe import MoE, Report, updated
    from moe_jax.notebook import load, train
    from moe_jax.parallel.axes import MeshAxes
    from moe_jax.routing.losses import RoutingLosses

__version__ = "0.1.0"

# Lazy, so that `import moe_jax` is instant and does not start the JAX backend.
_WHERE = {
    "MeshAxes": "moe_jax.parallel.axes",
    "MoE": "moe_jax.nn.moe",
    "Report": "moe_jax.nn.moe",
    "RoutingLosses": "moe_jax.routing.losses",
    "experts": "moe_jax.experts",
    "load": "moe_jax.notebook",
    "routers": "moe_jax.routing",
    "train": "moe_jax.train",
    "updated": "moe_jax.nn.moe",
}

__all__ = [
    "MeshAxes",
    "MoE",
    "Report",
    "RoutingLosses",
    "__version__",
    "experts",
    "load",
    "routers",
    "train",
    "updated",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return module if name in ("experts", "routers", "train") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The state that a new run begins with: a fresh one, or one made from another run's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject
from moe_jax.config.paths import folder_of
from moe_jax.config.tree import from_json_dict
from moe_jax.data.types import DataInfo
from moe_jax.models.network import Params
from moe_jax.models.types import RouterStates
from moe_jax.parallel.agreement import say
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.parallel.placement import put
from moe_jax.training.build import Program, build, init_seed
from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints
from moe_jax.training.experiment import Experiment
from moe_jax.training.state import TrainState
from moe_jax.training.warm_start import Like, growth_warnings, warm_start
from moe_jax.training.workdir import info_of

STATE = "router_state"


def new_state(
    program: Program, info: DataInfo, warm_start_from: str | None, grow: str
) -> TrainState:
    """A fresh state; parameters from another run where asked."""
    state = program.init()
    if warm_start_from is None:
        return state
    origin, old, old_info = load_origin(folder_of(warm_start_from))
    mine, other = program.experiment.moe, origin.experiment.moe
    stacking: dict[str, Any] = dict(
        new_like=Like(program.layout, mine.num_experts),
        old_like=Like(origin.layout, other.num_experts),
    )
    params, report = warm_start(
        state.params,
        old.params,
        same_tokens=_described(old_info) == _described(info),
        grow=grow,
        seed=init_seed(program.experiment),
        **stacking,
    )
    router_state = state.router_state
    if type(mine.router) is type(other.router) and jax.tree.leaves(router_state):
        fresh, before = ({"layers": wrapped(s)} for s in (router_state, old.router_state))
        found, more = warm_start(fresh, before, grow="copy", **stacking)
        router_state = {name: found["layers"][name][STATE] for name in router_state}
        report += more
    if program.layout.moe_layers and origin.layout.moe_layers:
        k = getattr(other.router, "k", None), getattr(mine.router, "k", None)
        report.warnings += growth_warnings((other.num_experts, mine.num_experts), k, grow)
    say(str(report))
    return replace(
        state,
        params=put(params, program.state_shardings.params),
        router_state=put(router_state, program.state_shardings.router_state),
    )


def wrapped(router_state: RouterStates) -> Params:
    """Named as a part of each layer, as its parameters are."""
    return {name: {STATE: state} for name, state in router_state.items()}


def _described(info: DataInfo) -> JsonObject | None:
    return None if info.tokenizer is None else info.tokenizer.describe()


def load_origin(workdir: Path) -> tuple[Program, TrainState, DataInfo]:
    """The newest good checkpoint of a run (its model, as numpy), built from its own config, and
    what it knows of its data."""
    checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True)
    with checkpoints:
        known = checkpoints.read_metadata()
        if known is None:
            raise UserError(f"{workdir}: no checkpoint to start from")
        config = from_json_dict(known.config, Experiment)
        info = info_of(workdir, config)
        config = replace(config, mesh=MeshConfig())
        program = build(config, info, devices=jax.local_devices()[:1])
        restored = checkpoints.restore(program.abstract_model, partial=True)
        if restored is None:
            raise UserError(f"{workdir}: no checkpoint to start from")
        return program, jax.device_get(restored.state), info

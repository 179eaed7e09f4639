"""A fixed batch whose routes are watched over training: churn, overlap, margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np

from moe_jax.analysis.routes import churn, margin, overlap
from moe_jax.data.pipeline import filled_up
from moe_jax.data.types import Rows
from moe_jax.parallel.placement import put
from moe_jax.training.build import Program
from moe_jax.training.evaluation import by_layer
from moe_jax.training.state import TrainState


class Probe:
    """Routes the same few rows at every call, without noise or drops.

    The previous routes are part of the state, so that a resumed run reports what an
    uninterrupted one would.
    """

    def __init__(self, program: Program, rows: Rows):
        self._program = program
        # Few rows, once: each process reads all, for the metrics need all. They are the start of a
        # batch that fits the mesh; its other rows are padding, which no router counts.
        count, whole = program.probe_rows, program.probe_batch_size
        chosen = [rows[i % len(rows)] for i in range(count)]
        self._raw = filled_up(chosen, whole, program.columns)
        valid_PBS = program.tokens_and_segments(self._raw)[1][:, :count] > 0
        gates = program.experiment.moe.gates  # beside each other where layers are
        parts = np.repeat(program.layout.part_of_moe_layers, gates)
        self._valid = [valid_PBS[part] for part in parts]

    def __call__(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """The state with the new routes in it, and the metrics `moe/probe/...`.

        churn: share of tokens whose set of experts changed since the last probe; overlap: mean
        share of a token's experts that stayed; margin: mean gap between the probabilities of the
        first and second expert. Churn and overlap are absent at the first probe.
        """
        program = self._program
        raw = program.put(self._raw)
        scalars = program.scalars(int(state.step))
        routes = program.probe_step(state.params, state.router_state, raw, scalars)
        expert, probability, old = jax.device_get((routes.expert_BSK, routes.prob_BSE, state.probe))
        metrics = self._metrics(expert, probability, old)
        new = put(expert.astype(np.int32), program.state_shardings.probe)
        return replace(state, probe=new), metrics

    def _metrics(
        self, expert: np.ndarray, probability: np.ndarray, old: np.ndarray
    ) -> dict[str, float]:
        per_layer: dict[str, list[float]] = {"margin": []}
        if np.all(old >= 0):
            per_layer |= {"churn": [], "overlap": []}
        for row in range(expert.shape[0]):
            valid = self._valid[row]
            per_layer["margin"].append(float(margin(probability[row][valid], 1)))
            if "churn" in per_layer:
                before, after = old[row][valid], expert[row][valid]
                per_layer["churn"].append(float(churn(before, after)))
                per_layer["overlap"].append(float(overlap(before, after)))
        return self._named(per_layer)

    def _named(self, per_layer: Mapping[str, list[float]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, values in per_layer.items():
            metrics |= by_layer(self._program, f"probe/{name}", np.asarray(values))
        return metrics

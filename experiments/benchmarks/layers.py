"""What experiments.benchmarks.moe_layer measures."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers import TorchPeer
from experiments.benchmarks.plot import draw
from experiments.benchmarks.timing import (
    MIB,
    TimedProgram,
    add_results,
    compiled,
    interleaved,
    limits,
)
from experiments.benchmarks.workloads import WORKLOADS
from moe_jax.cli import Arguments
from moe_jax.dispatch.rows import from_rows, sort_rows, to_rows
from moe_jax.models.network import Network
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.ops.permute import combine_rows, gather_rows, invert_index
from moe_jax.parallel.host_memory import keep_freed_memory
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import Mixtral
from moe_jax.routing.plan import make_plan, plan_traffic
from moe_jax.routing.types import RouterInputs

GROUP = 512
LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": dict(layout="rows"),
    "blocks": dict(layout="rows", matmul="blocks"),
    "batched": dict(layout="rows", matmul="batched"),
    "slots_scatter": dict(layout="slots_scatter", capacity_factor=1.25),
    "slots_einsum": dict(layout="slots_einsum", capacity_factor=1.25),
    "ragged_dot": dict(layout="rows", matmul="ragged_dot"),
}
SLOW = ("ragged_dot",)
KEYS = ("T", "D", "F", "E", "k", "dtype", "load")  # of a case


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    T: int
    D: int
    F: int
    E: int
    k: int
    dtype: str
    load: str

    @property
    def flops(self) -> float:
        """Forward + backward: three products of 2 T k D F, each with two more for its gradients."""
        return 18.0 * self.T * self.k * self.D * self.F

    @property
    def bytes(self) -> float:
        """Traffic that no order of the work avoids; see the module's text."""
        size = jnp.dtype(self.dtype).itemsize
        weights = 3 * self.E * self.D * self.F
        hidden, tokens = self.T * self.k * self.F, self.T * self.D
        return size * (3.0 * weights + 2 * 2 * hidden + 4 * tokens)


@dataclass(frozen=True)
class Arrays:
    """Inputs of all arms, the same for our layers and the peers'."""

    x_TD: jax.Array
    dy_TD: jax.Array
    router_DE: jax.Array
    w_gate_EDF: jax.Array
    w_up_EDF: jax.Array
    w_down_EFD: jax.Array

    @property
    def params(self) -> dict[str, Any]:
        experts = dict(w_gate=self.w_gate_EDF, w_up=self.w_up_EDF, w_down=self.w_down_EFD)
        return {"router": {"kernel": self.router_DE}, "experts": experts}


def weights_of(params: Any) -> ExpertWeights:
    """The experts of a layer's parameters."""
    experts = params["experts"]
    return ExpertWeights(
        w_gate_EDF=experts["w_gate"],
        w_up_EDF=experts["w_up"],
        w_down_EFD=experts["w_down"],
        activation="swiglu",
    )


def make_arrays(case: Case) -> Arrays:
    """Random arrays; for a workload the tokens are such that the router makes its choices."""
    T, D, F, E = case.T, case.D, case.F, case.E
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((T, D), np.float32) for _ in range(2))
    router = rng.standard_normal((D, E), np.float32) / np.sqrt(D)
    if case.load != "random":
        if D < E:
            raise ValueError("a workload needs as many dimensions as experts")
        wanted_TK = WORKLOADS[case.load](T, E, case.k, rng)
        logits = 0.1 * rng.standard_normal((T, E), np.float32)
        lift = np.linspace(4, 3, case.k, dtype=np.float32)[None]
        np.put_along_axis(logits, wanted_TK, lift, axis=1)
        x = (x + (logits - x @ router) @ np.linalg.pinv(router)).astype(np.float32)
    shapes = ((E, D, F), (E, D, F), (E, F, D))
    matrices = [
        rng.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[1])) for shape in shapes
    ]
    x, dy, *matrices = (jnp.asarray(value, case.dtype) for value in (x, dy, *matrices))
    return Arrays(x, dy, jnp.asarray(router), *matrices)


# --- arms: (parameters, x_TD) -> y_TD, statistics ---

Arm = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


def layer_arm(case: Case, **settings: Any) -> Arm:
    """The layer as models use it, with its statistics."""
    config = MoEConfig(num_experts=case.E, expert_dim=case.F, router=Mixtral(k=case.k), **settings)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(
        lambda rngs: MoELayer(
            config,
            model_dim=case.D,
            activation="swiglu",
            init_scale=1.0,
            param_dtype=jnp.dtype(case.dtype),
            mesh=mesh,
            rngs=rngs,
        ),
        mesh,
    )
    B, S = case.T // GROUP, GROUP
    batch = TokenBatch(
        token_BS=jnp.zeros((B, S), jnp.int32),
        position_BS=jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S)),
        segment_BS=jnp.ones((B, S), jnp.int32),
        row_B=jnp.arange(B, dtype=jnp.int32),
    )
    context = Context(train=True, capacity_factor=config.capacity_factor)

    def run(params: Any, x_TD: jax.Array) -> tuple[jax.Array, Any]:
        layer = jnp.zeros((), jnp.int32)
        y_BSD, report = network.apply(params, x_TD.reshape(B, S, case.D), batch, context, {}, layer)
        return y_BSD.reshape(x_TD.shape), (report.sums, report.traffic)

    return run


def dense(params: Any, x_TD: jax.Array) -> tuple[jax.Array, Any]:
    gate, up, down = params
    return (jax.nn.silu(x_TD @ gate) * (x_TD @ up)) @ down, ()


def even_arm(case: Case) -> Arm:
    """Perfectly even experts, with the gather and the combine that any layer has."""
    T, E, k = case.T, case.E, case.k
    expert_R = np.arange(T * k) % E
    row_M = jnp.asarray(np.argsort(expert_R, kind="stable"), jnp.int32)
    place_TK = invert_index(row_M, T * k).reshape(T, k)

    def run(params: Any, x_TD: jax.Array) -> tuple[jax.Array, Any]:
        logits_TE = x_TD.astype(jnp.float32) @ params["router"]["kernel"]
        weight_TK = jax.nn.softmax(logits_TE[:, :k])
        x_MD = gather_rows(x_TD, row_M // k, place_TK)
        y_MD = weights_of(params).slots(x_MD.reshape(E, -1, case.D)).reshape(x_MD.shape)
        return combine_rows(y_MD, weight_TK, place_TK, row_M), ()

    return run


def both(arm: Arm) -> Callable[..., Any]:
    """The gradients of <y, dy>, and the statistics."""

    def value(params: Any, x_TD: jax.Array, dy_TD: jax.Array) -> tuple[jax.Array, Any]:
        y_TD, statistics = arm(params, x_TD)
        return jnp.sum(y_TD.astype(jnp.float32) * dy_TD.astype(jnp.float32)), statistics

    return jax.grad(value, argnums=(0, 1), has_aux=True)


def programs(case: Case, arrays: Arrays, slow: bool) -> dict[tuple[str, str], TimedProgram]:
    """Every arm of ours, compiled for both passes."""
    arms: dict[str, tuple[Arm, Any]] = {"dense": (dense, dense_params(case))}
    if case.T * case.k % case.E == 0:
        arms["even"] = (even_arm(case), arrays.params)
    for name, settings in LAYOUTS.items():
        if slow or name not in SLOW:
            arms[name] = (layer_arm(case, **settings), arrays.params)
    found = {}
    for name, (arm, params) in arms.items():
        found[name, "forward"] = compiled(arm, params, arrays.x_TD)
        found[name, "both"] = compiled(both(arm), params, arrays.x_TD, arrays.dy_TD)
    return found


def dense_params(case: Case) -> tuple[jax.Array, ...]:
    width = case.k * case.F
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = ((case.D, width), (case.D, width), (width, case.D))
    return tuple(
        jax.random.normal(key, shape, case.dtype) * shape[0] ** -0.5
        for key, shape in zip(keys, shapes, strict=True)
    )


# --- parts of the dropless layer ---


def parts(case: Case, arrays: Arrays) -> dict[tuple[str, str], TimedProgram]:
    """Forward and backward of each part of the `rows` layer alone."""
    router, T, g = Mixtral(k=case.k), GROUP, case.T // GROUP

    def route(params: Any, x_TD: jax.Array) -> tuple[jax.Array, Any]:
        def group(x_TD: jax.Array) -> Any:
            place_T = jnp.arange(T, dtype=jnp.int32)
            inputs = RouterInputs(
                x_TD=x_TD,
                valid_T=jnp.ones((T,), bool),
                id_T=place_T,
                position_T=place_T,
                segment_T=jnp.ones((T,), jnp.int32),
                E=case.E,
                train=True,
            )
            assignments, sums = router.route(params, {}, inputs)
            plan = make_plan(assignments, None)
            return plan, sums, plan_traffic(plan, inputs.valid_T)

        plan_g, sums_g, traffic_g = jax.vmap(group)(x_TD.reshape(g, T, case.D))
        return plan_g.assignments.weight_R, (plan_g, sums_g, traffic_g)

    params = arrays.params["router"]
    plan_g = jax.jit(route)(params, arrays.x_TD)[1][0]
    order = jax.jit(sort_rows)(plan_g)
    x_gTD = arrays.x_TD.reshape(g, T, case.D)
    dx_gTD = arrays.dy_TD.reshape(x_gTD.shape)
    x_MD = jax.jit(lambda x_gTD: to_rows(x_gTD, plan_g, order))(x_gTD)

    def combine(weight_gR: jax.Array, y_MD: jax.Array) -> jax.Array:
        assignments = dataclasses.replace(plan_g.assignments, weight_R=weight_gR)
        weighted = dataclasses.replace(plan_g, assignments=assignments)
        return from_rows(y_MD, weighted, order)

    def pulled(function: Callable[..., jax.Array]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            *own, dy = arguments
            return jax.vjp(function, *own)[1](dy)

        return run

    weight_gR = plan_g.assignments.weight_R
    found: dict[tuple[str, str], TimedProgram] = {}
    steps: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "route": (both(route), (params, arrays.x_TD, weight_gR)),
        "sort": (sort_rows, (plan_g,)),
        "permute": (pulled(lambda x: to_rows(x, plan_g, order)), (x_gTD, x_MD)),
        "experts": (
            pulled(lambda w, x: w.rows(x, order.sizes_E)),
            (weights_of(arrays.params), x_MD, x_MD),
        ),
        "combine": (pulled(combine), (weight_gR, x_MD, dx_gTD)),
    }
    for name, (function, arguments) in steps.items():
        found["part", name] = compiled(function, *arguments)
    return found


# --- one case ---


@contextlib.contextmanager
def peer(case: Case, arrays: Arrays, wanted: bool) -> Iterator[Mapping[Any, Callable[[], float]]]:
    """The calls of the PyTorch process, none without one."""
    if not wanted:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "x": arrays.x_TD,
            "dy": arrays.dy_TD,
            "router": arrays.router_DE,
            **arrays.params["experts"],
        }
        as_float = {name: np.asarray(value, np.float32) for name, value in values.items()}
        np.savez(Path(folder) / "arrays.npz", **as_float)
        del as_float
        other = TorchPeer(Path(folder), dataclasses.asdict(case))
        calls = other.calls()  # which waits until it has read the folder
    try:
        yield calls
    finally:
        other.close()


def measure(case: Case, repeats: int, slow: bool, peers: bool) -> dict[str, Any]:
    """All figures of a case."""
    arrays = make_arrays(case)
    ours = programs(case, arrays, slow)
    pieces = parts(case, arrays)
    limit_calls, rates = limits()
    with peer(case, arrays, peers) as others:
        fast = {name: program.call for name, program in ours.items() if name[0] not in SLOW}
        seconds = interleaved({**fast, **others, **limit_calls}, repeats)
        if slow:
            keys = [key for key in ours if key[0] in (*SLOW, "dense")]
            few = interleaved({key: ours[key].call for key in keys}, 2)
            seconds |= {key: times for key, times in few.items() if key[0] in SLOW}
        part_seconds = interleaved({key: p.call for key, p in pieces.items()}, repeats)
    limit = rates({name: float(np.median(seconds.pop(name)[:, 0])) for name in limit_calls})
    bound = max(case.flops / limit["peak_flops"], case.bytes / limit["bandwidth"])
    figures: dict[str, dict[str, float]] = {}
    for (name, passes), times in seconds.items():
        reference = seconds["dense", passes][: len(times)]
        clock, processor = np.median(reference / times, axis=0).tolist()
        found = {"ms": 1e3 * float(np.median(times[:, 0])), "of_dense": clock}
        if (name, passes) in ours:
            program = ours[name, passes]
            found |= {
                "of_dense_processor_time": processor,
                "temporary_mib": program.temporary_bytes / MIB,
                "total_mib": program.total_bytes / MIB,
                "compile_seconds": program.compile_seconds,
            }
        figures[f"{name}/{passes}"] = found
    return {
        **dataclasses.asdict(case),
        **limit,
        "repeats": repeats,
        "gflop": 1e-9 * case.flops,
        "gbyte": 1e-9 * case.bytes,
        "bound_ms": 1e3 * bound,
        "bound_by": "arithmetic" if bound * limit["peak_flops"] <= case.flops else "memory",
        "parts_ms": {
            name: 1e3 * float(np.median(times[:, 0])) for (_, name), times in part_seconds.items()
        },
        "arms": figures,
    }


def show(result: dict[str, Any]) -> None:
    """A table of one case."""
    print("\n" + " ".join(f"{name}={result[name]}" for name in KEYS))
    share = f"{'clock':>8}{'CPU':>6}"
    print(f"{'':14}{'forward':>15}{share}{'+ backward':>15}{share}{'temporary':>15}{'compile':>9}")
    arms = result["arms"]
    for name in dict.fromkeys(key.split("/")[0] for key in arms):
        line = f"{name:14}"
        for passes in ("forward", "both"):
            cell = arms[f"{name}/{passes}"]
            processor = cell.get("of_dense_processor_time")
            line += f"{cell['ms']:12.1f} ms{cell['of_dense']:8.2f}"
            line += f"{processor:6.2f}" if processor is not None else f"{'':6}"
        if "temporary_mib" in cell:
            line += f"{cell['temporary_mib']:11.0f} MiB{cell['compile_seconds']:7.1f} s"
        print(line)
    measured = ", ".join(f"{name} {ms:.1f}" for name, ms in result["parts_ms"].items())
    print(f"parts of rows, forward + backward, ms: {measured}")
    print(
        f"bound by {result['bound_by']}: {result['bound_ms']:.1f} ms "
        f"({result['gflop']:.0f} GFLOP at {1e-9 * result['peak_flops']:.0f} GFLOP/s, "
        f"{result['gbyte']:.2f} GB at {1e-9 * result['bandwidth']:.1f} GB/s)",
        flush=True,
    )


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    keep_freed_memory()
    results = []
    for text in flags.case:
        T, D, F, E, k = map(int, text.split(","))
        case = Case(T, D, F, E, k, flags.dtype, flags.load)
        results.append(measure(case, flags.repeats, flags.slow, flags.peers))
        show(results[-1])
        jax.clear_caches()
        if flags.json:
            add_results(Path(flags.json), results[-1:], KEYS)
    if flags.plot:
        draw(results, Path(flags.plot))
    return 0

"""What experiments.benchmarks.correctness compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.layers import Case, both, layer_arm, make_arrays
from experiments.benchmarks.timing import machine
from moe_jax.cli import Arguments
from moe_jax.dispatch import LAYOUTS
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.ops.grouped_matmul import grouped_matmul
from moe_jax.routing.capacity import expert_capacity

EXPECTED = Path(__file__).with_name("expected.json")
# Beyond rounding there are wrong sums. Float32 products may run in TF32 on a GPU, which is 10 bits.
TOLERANCE = {"float32": 5e-3, "bfloat16": 2e-2}
DRIFT = 1e-4  # of a norm of the exact figures from the one that is carried
# Kernels of TPUs would run under an interpreter elsewhere.
PRODUCTS = ("triton", "blocks", "ragged_dot", "reference")
EXPERTS = ("auto", "blocks", "batched")
CAPACITY = 1.25
GROUP = 512  # tokens of a routing group, as in the layer's benchmark


@dataclass(frozen=True)
class Sizes:
    """R rows of E experts in products and experts; T tokens in a layer, k experts each."""

    R: int = 2048
    D: int = 256
    F: int = 512
    E: int = 8
    T: int = 2 * GROUP
    k: int = 2

    def loads(self) -> dict[str, np.ndarray]:
        """Rows of each expert. "short": fewer than there are rows."""
        R, E = self.R, self.E
        shares = {
            "random": np.random.default_rng(0).multinomial(R, [1 / E] * E),
            "skewed": [0, R // 2, 3, 0, R // 4, 1, R // 16, 0],
            "all to one": [0, 0, R, *[0] * (E - 3)],
            "none": [0] * E,
        }
        return {name: np.asarray(sizes, np.int32) for name, sizes in shares.items()}


FULL, TINY = Sizes(), Sizes(R=256, D=32, F=48, T=GROUP)
Named = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """name: "product/triton/skewed". run: on the device. exact: on the host, in float64."""

    name: str
    run: Callable[[], Named]
    exact: Named


def drawn(dtype: str, sizes: Sizes) -> Named:
    """Matrices, rows and the output's gradient, rounded on the host."""
    rng = np.random.default_rng(1)
    R, D, F, E = sizes.R, sizes.D, sizes.F, sizes.E
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D), "x": (R, D), "dy": (R, D)}
    found = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for name in ("gate", "up", "down"):
        found[name] *= found[name].shape[1] ** -0.5
    found["dh"] = rng.standard_normal((R, F))
    return {name: value.astype(jnp.dtype(dtype)) for name, value in found.items()}


# --- in float64 ---


def exact_product(x: np.ndarray, w: np.ndarray, dy: np.ndarray, load: np.ndarray) -> Named:
    """y_r = x_r w_e(r) and its gradients; zeros past the last group."""
    y, dx, dw = np.zeros((len(x), w.shape[2])), np.zeros_like(x), np.zeros_like(w)
    start = 0
    for e, size in enumerate(load):
        own = slice(start, start + size)
        start += size
        y[own], dx[own], dw[e] = x[own] @ w[e], dy[own] @ w[e].T, x[own].T @ dy[own]
    return {"y": y, "dx": dx, "dw": dw}


def exact_experts(a: Named, load: np.ndarray) -> Named:
    """silu(x w_gate) * (x w_up) w_down and its gradients."""
    gate = exact_product(a["x"], a["gate"], a["dh"], load)["y"]
    up = exact_product(a["x"], a["up"], a["dh"], load)["y"]
    share = 1 / (1 + np.exp(-gate))
    last = exact_product(gate * share * up, a["down"], a["dy"], load)
    d_gate = last["dx"] * up * share * (1 + gate * (1 - share))
    first = exact_product(a["x"], a["gate"], d_gate, load)
    second = exact_product(a["x"], a["up"], last["dx"] * gate * share, load)
    return {
        "y": last["y"],
        "dx": first["dx"] + second["dx"],
        "dw_gate": first["dw"],
        "dw_up": second["dw"],
        "dw_down": last["dw"],
    }


def exact_layer(case: Case, a: Named, capacity_factor: float | None) -> Named:
    """A layer with Mixtral's router: softmax over the k largest logits; earlier tokens first where
    capacity is short."""
    T, E, k = case.T, case.E, case.k
    logits = a["x"] @ a["router"]
    expert_TK = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(logits, expert_TK, axis=1)
    weight_TK = np.exp(best - best[:, :1])
    weight_TK /= weight_TK.sum(1, keepdims=True)
    kept_TK = _kept(expert_TK, E, expert_capacity(GROUP, E, float(k), capacity_factor))

    token_R = np.repeat(np.arange(T), k)[kept_TK.reshape(-1)]
    expert_R, weight_R = expert_TK[kept_TK], weight_TK[kept_TK]
    order = np.argsort(expert_R, kind="stable")
    token_R, expert_R, weight_R = token_R[order], expert_R[order], weight_R[order]
    load = np.bincount(expert_R, minlength=E)
    rows = {name: a[name] for name in ("gate", "up", "down")} | {
        "x": a["x"][token_R],
        "dy": a["dy"][token_R] * weight_R[:, None],
        "dh": np.zeros((len(token_R), case.F)),
    }
    found = exact_experts(rows, load)
    y, dx = np.zeros_like(a["x"]), np.zeros_like(a["x"])
    np.add.at(y, token_R, found["y"] * weight_R[:, None])
    np.add.at(dx, token_R, found["dx"])

    d_weight_TK = np.zeros((T, k))
    place = np.flatnonzero(kept_TK.reshape(-1))[order]
    d_weight_TK.reshape(-1)[place] = np.sum(found["y"] * a["dy"][token_R], axis=1)
    mean = np.sum(d_weight_TK * weight_TK, axis=1, keepdims=True)
    d_logits = np.zeros_like(logits)
    np.put_along_axis(d_logits, expert_TK, weight_TK * (d_weight_TK - mean), axis=1)
    own = {name: found[name] for name in ("dw_gate", "dw_up", "dw_down")}
    d_router = a["x"].T @ d_logits
    return {"y": y, "dx": dx + d_logits @ a["router"].T, "d_router": d_router, **own}


def _kept(expert_TK: np.ndarray, E: int, capacity: int | None) -> np.ndarray:
    """Which choices their experts take, in groups of tokens of their own."""
    chosen = expert_TK.reshape(-1, GROUP * expert_TK.shape[1])[..., None] == np.arange(E)
    before = np.cumsum(chosen, axis=1) - 1
    place = np.sum(before * chosen, axis=2).reshape(expert_TK.shape)
    return place < (np.inf if capacity is None else capacity)


# --- on the device ---


def checks(dtype: str, sizes: Sizes) -> Iterator[Check]:
    """All of one type, the most telling first. Each kernel is compiled once for all loads."""
    host = drawn(dtype, sizes)
    exact = {name: value.astype(np.float64) for name, value in host.items()}
    device = {name: jnp.asarray(value) for name, value in host.items()}
    loads = sizes.loads()
    right = {n: exact_product(exact["x"], exact["up"], exact["dh"], v) for n, v in loads.items()}
    for backend in PRODUCTS:
        product = jax.jit(_product(backend))
        for name, load in loads.items():
            arguments = (device["x"], device["up"], device["dh"], jnp.asarray(load))
            yield Check(f"product/{backend}/{name}", _later(product, *arguments), right[name])
    yield from layers(dtype, sizes)
    right = {name: exact_experts(exact, load) for name, load in loads.items()}
    for backend in EXPERTS:
        experts = jax.jit(_experts(backend))
        for name, load in loads.items():
            run = _later(experts, device, jnp.asarray(load))
            yield Check(f"experts/{backend}/{name}", run, right[name])


def layers(dtype: str, sizes: Sizes) -> Iterator[Check]:
    """Every layout that can do it, with the choices far from ties."""
    case = Case(sizes.T, sizes.D, sizes.F, sizes.E, sizes.k, dtype, "hot_expert")
    arrays = make_arrays(case)
    exact = {"x": arrays.x_TD, "dy": arrays.dy_TD, "router": arrays.router_DE}
    exact |= {name.removeprefix("w_"): w for name, w in arrays.params["experts"].items()}
    exact = {name: np.asarray(value).astype(np.float64) for name, value in exact.items()}
    for factor in (None, CAPACITY):
        right = exact_layer(case, exact, factor)
        for layout in LAYOUTS:
            if factor is None and layout.startswith("slots"):
                continue  # they have as many slots as a capacity gives them
            if layout == "dense" and dtype == "bfloat16" and jax.default_backend() == "cpu":
                continue  # XLA's CPU has no such product into float32
            arm = layer_arm(case, layout=layout, capacity_factor=factor)
            run = _later(jax.jit(_layer(arm)), arrays.params, arrays.x_TD, arrays.dy_TD)
            name = "dropless" if factor is None else f"capacity {factor}"
            yield Check(f"layer/{layout}/{name}", run, right)


def _later(function: Callable[..., Named], *arguments: Any) -> Callable[[], Named]:
    return lambda: function(*arguments)


def _product(backend: str) -> Callable[..., Named]:
    def run(x: jax.Array, w: jax.Array, dy: jax.Array, load: jax.Array) -> Named:
        def product(x: jax.Array, w: jax.Array) -> jax.Array:
            return grouped_matmul(x, w, load, backend=backend)

        y, pull_back = jax.vjp(product, x, w)
        dx, dw = pull_back(dy)
        return {"y": y, "dx": dx, "dw": dw}

    return run


def _experts(backend: str) -> Callable[..., Named]:
    def run(a: Named, load: jax.Array) -> Named:
        def rows(gate: jax.Array, up: jax.Array, down: jax.Array, x: jax.Array) -> jax.Array:
            weights = ExpertWeights(
                w_gate_EDF=gate, w_up_EDF=up, w_down_EFD=down, activation="swiglu", backend=backend
            )
            return weights.rows(x, load)

        y, pull_back = jax.vjp(rows, a["gate"], a["up"], a["down"], a["x"])
        gate, up, down, dx = pull_back(a["dy"])
        return {"y": y, "dx": dx, "dw_gate": gate, "dw_up": up, "dw_down": down}

    return run


def _layer(arm: Callable[..., Any]) -> Callable[..., Named]:
    def run(params: Any, x: jax.Array, dy: jax.Array) -> Named:
        (d_params, dx), _ = both(arm)(params, x, dy)
        experts = {f"d{name}": value for name, value in d_params["experts"].items()}
        y, _ = arm(params, x)
        return {"y": y, "dx": dx, "d_router": d_params["router"]["kernel"], **experts}

    return run


# --- comparing ---


def errors(found: Named, exact: Named) -> dict[str, float]:
    """Of each array; where all is zero, the norm itself."""
    result = {}
    for name, right in exact.items():
        off = float(np.linalg.norm(np.asarray(found[name]).astype(np.float64) - right))
        size = float(np.linalg.norm(right))
        result[name] = off / size if size else off
    return result


def norms(exact: Named) -> dict[str, float]:
    return {name: float(f"{np.linalg.norm(value):.9g}") for name, value in exact.items()}


def drift(exact: Named, expected: dict[str, float] | None) -> float:
    """The largest relative distance of norms from those that are carried; 1 where none is."""
    if expected is None or set(expected) != set(exact):
        return 1.0
    own = norms(exact)
    return max(abs(own[name] - expected[name]) / (expected[name] or 1.0) for name in own)


def every_check(sizes: Sizes) -> Iterator[tuple[str, Check]]:
    for dtype in ("bfloat16", "float32"):
        for check in checks(dtype, sizes):
            yield dtype, replace(check, name=f"{dtype}/{check.name}")


def expected_norms(sizes: Sizes) -> dict[str, dict[str, float]]:
    """Those that are carried, by check without its kernel: {"tiny" or "full": ...}."""
    known = json.loads(EXPECTED.read_text("utf-8")) if EXPECTED.exists() else {}
    return known.get("tiny" if sizes == TINY else "full", {})


def reference_name(check: str) -> str:
    """Of "bfloat16/product/triton/skewed" all but the kernel, which exact figures do not know."""
    dtype, op, _, load = check.split("/")
    return f"{dtype}/{op}/{load}"


def write_expected() -> None:
    """The norms of all exact figures, at both sizes."""
    found = {
        name: {reference_name(check.name): norms(check.exact) for _, check in every_check(sizes)}
        for name, sizes in (("full", FULL), ("tiny", TINY))
    }
    EXPECTED.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    if flags.write_expected:
        write_expected()
        return 0
    sizes = TINY if flags.tiny else FULL
    expected, results, bad = expected_norms(sizes), {}, 0
    for dtype, check in every_check(sizes):
        found = errors(check.run(), check.exact)
        moved = drift(check.exact, expected.get(reference_name(check.name)))
        good = max(found.values()) <= TOLERANCE[dtype] and moved <= DRIFT
        bad += not good
        results[check.name] = found
        measured = "  ".join(f"{name} {value:.1e}" for name, value in found.items())
        print(f"{'' if good else 'BAD '}{check.name:36} {measured}", flush=True)
    if flags.json:
        measured = {"machine": machine(), "tolerance": TOLERANCE, "errors": results}
        Path(flags.json).write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    print(f"{len(results)} checks, {bad} beyond tolerance")
    return 1 if bad else 0

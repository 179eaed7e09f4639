"""The same layer or training step in PyTorch, by Hugging Face, in a process of its own.

The benchmark starts it with a folder of arrays (`arrays.npz`; of layers also "", for arrays drawn
where they are used) and a case in JSON; for every line "ARM PASSES COUNT" on its input it runs that
so many times and prints the seconds of one. So its runs lie between ours.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Eager experts of Hugging Face take E^2 time in the backward pass: each of them adds a gradient of
# the size of all.
MAX_EAGER = 32


class TorchPeer:
    """The other side of the pipe. `calls()` are for `interleaved`: they return seconds.

    The process gets ready while this one goes on; whoever asks for its arms waits for it.
    """

    def __init__(self, folder: Path | None, case: dict[str, Any]):
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.benchmarks.peers",
                str(folder or ""),
                json.dumps(case),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @functools.cached_property
    def arms(self) -> list[str]:
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the PyTorch process ended with code {self._process.wait()}")
        return line

    def run(self, arm: str, passes: str, count: int = 1) -> float:
        assert self.arms and self._process.stdin is not None
        print(json.dumps([arm, passes, count]), file=self._process.stdin, flush=True)
        return float(self._line())

    def calls(self) -> dict[tuple[str, str], Callable[[], float]]:
        return {
            (arm, passes): lambda arm=arm, passes=passes: self.run(arm, passes)
            for arm in self.arms
            for passes in ("forward", "both")
        }

    def end(self) -> None:
        """Without waiting for what it is at."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def available() -> bool:
    """Whether PyTorch and transformers are installed (extra `hf`)."""
    from importlib.util import find_spec

    return bool(find_spec("torch") and find_spec("transformers"))


def main(folder: str, case_json: str) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case = json.loads(case_json)
    on_gpu = torch.cuda.is_available()
    torch.set_default_device("cuda" if on_gpu else "cpu")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    arrays = np.load(Path(folder) / "arrays.npz") if folder else drawn_layer(case)
    make = train_step_arms if case.get("kind") == "train_step" else layer_arms
    runs = make(arrays, case)
    for run in runs.values():
        for passes in ("forward", "both"):
            run(passes)
            wait()
    print(json.dumps(list(runs)), flush=True)
    for line in sys.stdin:
        arm, passes, count = json.loads(line)
        start = time.perf_counter()
        for _ in range(count):
            runs[arm](passes)
        wait()
        print((time.perf_counter() - start) / count, flush=True)


def drawn_layer(case: dict[str, Any]) -> dict[str, Any]:
    """Random arrays of a layer, of the sizes and scales of the benchmark's."""
    import torch

    T, D, F, E = (case[name] for name in ("T", "D", "F", "E"))
    dtype = getattr(torch, case["dtype"])
    shapes = {
        **dict.fromkeys(("x", "dy"), (T, D)),
        "router": (D, E),
        **dict.fromkeys(("w_gate", "w_up"), (E, D, F)),
        "w_down": (E, F, D),
    }
    torch.manual_seed(0)
    return {
        name: torch.randn(shape, dtype=dtype) * (1.0 if name in ("x", "dy") else shape[-2] ** -0.5)
        for name, shape in shapes.items()
    }


def layer_arms(arrays: Any, case: dict[str, Any]) -> dict[str, Callable[[str], None]]:
    """Each arm runs one forward, or forward and backward of parameters and input."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    T, D, F, E, k = (case[name] for name in ("T", "D", "F", "E", "k"))
    dtype = getattr(torch, case["dtype"])
    x, dy, router, gate, up, down = (
        torch.as_tensor(arrays[name]).to(torch.get_default_device(), dtype)
        for name in ("x", "dy", "router", "w_gate", "w_up", "w_down")
    )
    x, dy = x.reshape(1, T, D), dy.reshape(1, T, D)

    config = MixtralConfig(
        hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=k
    )
    config._experts_implementation = "eager"
    sparse = MixtralSparseMoeBlock(config).to(dtype).train()
    state = {
        "gate.weight": router.T,
        "experts.gate_up_proj": torch.cat([gate, up], dim=2).transpose(1, 2),
        "experts.down_proj": down.transpose(1, 2),
    }
    sparse.load_state_dict(state)

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = (torch.nn.Linear(D, k * F, bias=False) for _ in range(2))
            self.down = torch.nn.Linear(k * F, D, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))

    def run(module: Any, passes: str) -> None:
        if passes == "forward":
            with torch.no_grad():
                module(x)
            return
        for value in (x, *module.parameters()):
            value.grad = None
        module(x).backward(dy)

    def run_sparse(implementation: str, passes: str) -> None:
        config._experts_implementation = implementation
        run(sparse, passes)

    x.requires_grad_(True)
    dense = Dense().to(dtype)
    arms = {
        "torch dense": lambda passes: run(dense, passes),
        "hf grouped_mm": lambda passes: run_sparse("grouped_mm", passes),
    }
    if E <= MAX_EAGER:
        arms["hf eager"] = lambda passes: run_sparse("eager", passes)
    return arms


def train_step_arms(arrays: Any, case: dict[str, Any]) -> dict[str, Callable[[str], None]]:
    """One optimizer step ("both"; "forward" does nothing)."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=case["V"],
        hidden_size=case["D"],
        intermediate_size=case["F"],
        num_hidden_layers=case["L"],
        num_attention_heads=case["N"],
        num_key_value_heads=case["N"],
        head_dim=case["H"],
        num_local_experts=case["E"],
        num_experts_per_tok=case["k"],
        output_router_logits=True,
        router_aux_loss_coef=case["balance"],
        use_cache=False,
    )
    model = MixtralForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    ids = torch.from_numpy(arrays["tokens"]).to(torch.get_default_device()).long()
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def run(implementation: str, passes: str) -> None:
        if passes == "forward":
            return
        for part in model.modules():
            if hasattr(part, "config"):
                part.config._experts_implementation = implementation
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=inputs, labels=inputs, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    arms = {"hf grouped_mm": lambda passes: run("grouped_mm", passes)}
    if case["E"] <= MAX_EAGER:
        arms["hf eager"] = lambda passes: run("eager", passes)
    return arms


if __name__ == "__main__":
    main(*sys.argv[1:])

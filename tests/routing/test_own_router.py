"""The page docs/own_router.md: its router is complete and trains through the command."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.kinds import Kinds
from moe_jax.routing import ROUTERS
from moe_jax.routing.types import Router
from tests.commands.conftest import CONFIG
from tests.compiled import compiled
from tests.routing import test_contract as contract

ROOT = Path(__file__).parents[2]
KIND = "my_module:MyRouter"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder on the path with the page's only block of code as my_module.py."""
    page = (ROOT / "docs" / "own_router.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "my_module.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    importlib.invalidate_caches()
    return tmp_path


CONTRACT = (
    contract.test_shapes_dtypes_and_ranges,
    contract.test_deterministic_and_quiet_outside_training,
    contract.test_padding_is_inert,
    contract.test_all_padding,
    contract.test_ties_go_to_the_lower_expert,
    contract.test_one_expert_and_all_experts,
    contract.test_weights_sum_to_one_where_the_paper_says_so,
    contract.test_inadmissible_experts,
    contract.test_one_token,
    contract.test_bfloat16_inputs_are_routed_in_float32,
    contract.test_weight_gradient_against_finite_differences,
    contract.test_plan_serves_in_order_and_counts,
)


def test_the_router_of_the_page(folder, monkeypatch):
    """The contract of all routers, and its own formula in numpy."""
    cls = Kinds(ROUTERS, Router).load(KIND)
    monkeypatch.setitem(ROUTERS, KIND, cls)
    monkeypatch.setattr(cls, "route", compiled(cls.route))
    for test in CONTRACT:
        test(KIND)

    router = cls(temperature=0.25)
    initial = router.params(8, 6)["log_tau"].init(jax.random.key(0), (1,), jnp.float32)
    np.testing.assert_allclose(np.exp(initial), 0.25, rtol=1e-6)
    params, batch = contract.parameters(router), contract.inputs(train=False)
    a, _ = router.route(params, {}, batch)
    kernel, log_tau = (np.asarray(params[name], np.float64) for name in ("kernel", "log_tau"))
    power = np.exp(np.asarray(batch.x_TD, np.float64) @ kernel / np.exp(log_tau))
    prob = power / power.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(a.expert_R, prob.argmax(axis=1))
    np.testing.assert_allclose(a.weight_R, prob.max(axis=1), rtol=1e-5)
    slope = jax.grad(lambda p: jnp.sum(router.route(p, {}, batch)[0].weight_R))(params)
    assert abs(float(slope["log_tau"][0])) > 0.01


@pytest.mark.lab
def test_it_trains_through_the_door(folder, one_device_flags):
    texts = folder / "texts"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i}.txt").write_text("".join(f"x{i} = {j} * {i + j}\n" for j in range(40)))
    (folder / "tiny.py").write_text(
        CONFIG.format(
            quickstart=str(ROOT / "configs" / "quickstart.py"),
            texts=str(texts),
            data_dir=str(folder / "data"),
            data=1,
        )
    )
    flags = {
        "config": folder / "tiny.py",
        "workdir": folder / "run",
        "config.steps": 2,
        "config.logging.every": 1,
        "config.moe.router.kind": KIND,
        "config.moe.router.temperature": 0.5,
    }
    done = subprocess.run(
        [sys.executable, "-m", "moe_jax.train", *(f"--{k}={v}" for k, v in flags.items())],
        env={
            **os.environ,
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "XLA_FLAGS": one_device_flags,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert len(losses) == 2 and np.all(np.isfinite(losses))
    stored = json.loads((folder / "run" / "config.json").read_text())
    router = stored.get("config", stored)["moe"]["router"]
    assert (router["kind"], router["temperature"]) == (KIND, 0.5)

"""What of a config may change when a run goes on: a proof over every key of it.

Changing a key that MAY_CHANGE leaves parameters and training metrics as they are, to the bit
or, where sums are taken in another order, within rounding. Changing any other is a difference that
is named.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from moe_jax.analysis.report.tables import leaves
from moe_jax.config.overrides import apply_overrides, load_config
from moe_jax.config.tree import to_json_dict
from moe_jax.models.by_layer import unstack
from moe_jax.nn.attention import GroupedQuery
from moe_jax.training.experiment import Experiment
from moe_jax.training.identity import MAY_CHANGE, config_changes
from moe_jax.training.origin import load_origin

EXACT, ROUNDED = 0.0, 2e-3  # of Adam's steps after 8 of them, relative to how far they went
SETTINGS = {
    "name": ({"name": "another"}, EXACT),
    "max_bad_steps": ({"max_bad_steps": 9}, EXACT),
    "data.data_dir": ({"data.data_dir": "{folder}/data"}, EXACT),
    "data.auto_prepare": ({"data.auto_prepare": False}, EXACT),
    "data.path": ({"data.path": "{folder}/texts"}, EXACT),
    "data.suffixes": ({"data.suffixes": (".txt", ".md")}, EXACT),
    "data.on_error": ({"data.on_error": "skip"}, EXACT),
    "model.remat": ({"model.remat": "full"}, ROUNDED),
    "model.logits_chunks": ({"model.logits_chunks": 3}, ROUNDED),
    "model.attention": ({"model.attention": "blocks"}, ROUNDED),
    "model.unrolled_layers": ({"model.unrolled_layers": 0}, ROUNDED),
    "moe.layout": ({"moe.layout": "dense"}, ROUNDED),
    "moe.transport": ({"mesh.data": 4, "mesh.expert": 2, "moe.transport": "gather"}, ROUNDED),
    "moe.matmul": ({"moe.matmul": "reference"}, ROUNDED),
    "mesh.data": ({"mesh.data": 4, "mesh.fsdp": 2}, ROUNDED),
    "mesh.fsdp": ({"mesh.data": 2, "mesh.fsdp": 4}, ROUNDED),
    "mesh.expert": ({"mesh.data": 2, "mesh.expert": 4}, ROUNDED),
    "mesh.tensor": ({"mesh.data": 4, "mesh.tensor": 2}, ROUNDED),
    "evaluation.every": ({"evaluation.every": 3}, EXACT),
    "evaluation.batches": ({"evaluation.batches": 1}, EXACT),
    "evaluation.batch_size": ({"evaluation.batch_size": 16}, EXACT),
    "evaluation.split": ({"evaluation.split": "train"}, EXACT),
    "evaluation.capacity_factor": ({"evaluation.capacity_factor": 1.0}, EXACT),
    "checkpoint.every": ({"checkpoint.every": 5}, EXACT),
    "checkpoint.keep_last": ({"checkpoint.keep_last": 1}, EXACT),
    "checkpoint.keep_every": ({"checkpoint.keep_every": 4}, EXACT),
    "checkpoint.read_back": ({"checkpoint.read_back": "values"}, EXACT),
    "checkpoint.verify": ({"checkpoint.verify": False}, EXACT),
    "logging.every": ({"logging.every": 1}, EXACT),
    "logging.load_every": ({"logging.load_every": 1}, EXACT),
    "logging.probe_every": ({"logging.probe_every": 3}, EXACT),
    "logging.probe_rows": ({"logging.probe_rows": 4}, EXACT),
    "logging.tensorboard": ({"logging.tensorboard": False}, EXACT),
    "logging.profile_steps": ({"logging.profile_steps": (6, 7)}, EXACT),
}
ELSEWHERE = {
    "moe.overlap_chunks": "needs several groups a device: tests/training/test_invariance.py",
    "mesh.sequence": "needs groups within a row: tests/training/test_invariance.py",
    "mesh.slow.data": "links between hosts: tests/launch",
    "logging.wandb": "tests/extras/test_wandb.py",
    "mesh.slow.fsdp": "the same",
    "mesh.slow.expert": "the same",
    "mesh.slow.tensor": "the same",
    "mesh.slow.sequence": "the same",
}


@pytest.fixture(scope="module")
def experiment(tiny) -> Experiment:
    return load_config(tiny, (), Experiment)


def is_free(path: str) -> bool:
    return any(path == free or path.startswith(f"{free}.") for free in MAY_CHANGE)


def test_every_free_key_is_tried(experiment):
    free = {path for path in leaves(to_json_dict(experiment)) if is_free(path)}
    assert free == SETTINGS.keys() | ELSEWHERE.keys()


def another(path: str, value: object) -> object:
    """A value of the same type."""
    if path in OTHERS:
        return OTHERS[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    raise AssertionError(f"{path}: which value but {value!r}?")


@dataclass(frozen=True, kw_only=True)
class OtherMixer(GroupedQuery):
    """Of another name."""


OTHERS = {
    "task.kind": "classification", "model.kind": "encoder", "model.pooling": "first",
    "model.mixer.kind": f"{__name__}:OtherMixer", "moe.around.kind": "output_norm",
    "moe.expert.kind": "low_rank", "moe.expert.activation": "gelu",
    "seeds.init": 1, "seeds.data": 1, "seeds.routing": 1,
    "data.kind": "planted", "data.tokenizer.kind": "bpe", "data.field": "other",
    "data.validation": "elsewhere", "model.activation": "gelu", "model.dtype": "bfloat16",
    "model.param_dtype": "bfloat16", "model.depth.weight": "sigmoid",
    "moe.shared_dim": 8, "moe.latent_dim": 8, "moe.router.kind": "switch",
    "moe.router.drop_order": "batch_priority", "moe.capacity_factor": 1.25,
    "moe.capacity_rounding": "floor", "moe.group_size": 16, "moe.losses.over_layers": "sum",
    "optimizer.kind": "adafactor", "optimizer.schedule.kind": "constant",
    "schedules": ["moe.router.jitter = linear(0.1, 0)"],
}  # fmt: skip
for _loss in ("load_balance", "device_balance", "importance", "load", "router_z", "router"):
    OTHERS[f"moe.losses.{_loss}.scope"] = "micro_batch"
    OTHERS[f"moe.losses.{_loss}.count"] = "kept"
    OTHERS[f"moe.losses.{_loss}.normalization"] = "k"
    OTHERS[f"moe.losses.{_loss}.variance"] = "sample"


def test_every_other_key_is_a_difference_that_is_named(experiment):
    saved = to_json_dict(experiment)
    identity_of = {path: v for path, v in leaves(saved).items() if not is_free(path)}
    assert len(identity_of) > 60
    for path, value in identity_of.items():
        changed = json.loads(json.dumps(saved))
        *parents, name = path.split(".")
        node = changed
        for parent in parents:
            node = node[parent]
        node[name] = another(path, value)
        assert any(path in line for line in config_changes(changed, experiment)), path


class Finished:
    """A run of 12 steps, to be taken up from step 4 again."""

    def __init__(self, tiny: str, trained: Path):
        self.tiny, self.workdir = tiny, trained
        self.params = parameters(trained)
        self.start = self.at(4)

    def at(self, step: int) -> dict[str, np.ndarray]:
        import moe_jax

        run = moe_jax.load(self.workdir, step=step)
        return {name: np.asarray(array) for name, array in run.arrays.items()}


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """Of the newest checkpoint, layer by layer, however they are stacked."""
    program, state, _ = load_origin(workdir)
    return unstack(state.params, program.layout)


def metrics(workdir: Path) -> dict[int, dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == "train" and "loss" in line}


@pytest.mark.grid
@pytest.mark.parametrize("key", SETTINGS)
def test_a_free_key_changes_nothing(key, experiment, tiny, trained, cli, tmp_path):
    settings, tolerance = SETTINGS[key]
    finished, workdir = Finished(tiny, trained), tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in (8, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    if key == "data.path":
        shutil.copytree(experiment.data.path, tmp_path / "texts")
    given = {
        path: value.format(folder=tmp_path) if isinstance(value, str) else value
        for path, value in settings.items()
    }
    apply_overrides(experiment, given)
    flags = [f"--config.{path}={value}" for path, value in given.items()]
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={workdir}", *flags)
    assert code == 0, err
    now = parameters(workdir)
    assert now.keys() == finished.params.keys()
    for name, value in finished.params.items():
        if tolerance == EXACT:
            np.testing.assert_array_equal(now[name], value, err_msg=name)
        else:
            went = np.sqrt(np.mean(np.square(value - finished.start[name])))
            per_member = np.sqrt(np.mean(np.square(value - now[name])))
            assert per_member <= tolerance * went, (name, per_member / went)
    before, after = metrics(trained), metrics(workdir)
    for step in before.keys() & after.keys():
        for name in ("loss", "cross_entropy", "grad_norm"):
            rtol = 0 if tolerance == EXACT else 1e-3
            np.testing.assert_allclose(after[step][name], before[step][name], rtol=rtol)

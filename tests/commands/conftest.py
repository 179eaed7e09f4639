"""A run small enough for tests: 2 layers, D=16, 4 experts, a folder of text of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_jax.cli import run_command

CONFIG = """
from pathlib import Path
from moe_jax.config.overrides import read_config_file

def get_config(arg=""):
    config = read_config_file(Path({quickstart!r}))
    config.name = "tiny"
    config.steps = 12
    config.batch_size = 8
    config.data.kind = "folder"
    config.data.path = {texts!r}
    config.data.data_dir = {data_dir!r}
    config.data.sequence_length = 32
    config.model.num_layers = 2
    config.model.model_dim = 16
    config.model.num_heads = 2
    config.model.num_kv_heads = 2
    config.model.head_dim = 8
    config.moe.num_experts = 4
    config.moe.expert_dim = 16
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule.warmup_steps = 2
    config.evaluation.every = 6
    config.evaluation.batches = 2
    config.checkpoint.every = 4
    config.logging.every = 2
    config.logging.load_every = 4
    config.logging.probe_every = 3
    config.logging.probe_rows = 5
    config.mesh.data = {data}
    return config
"""


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """40 short documents: enough for a train and a validation split."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        words = [f"def function_{i}_{j}(x):\n    return x * {i + j}\n\n" for j in range(20)]
        (folder / f"{i:02d}.txt").write_text("".join(words))
    return folder


@pytest.fixture(scope="session")
def tiny(texts, tmp_path_factory) -> str:
    """The path of the tiny config."""
    folder = tmp_path_factory.mktemp("config")
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart.py"
    file = folder / "tiny.py"
    file.write_text(
        CONFIG.format(
            quickstart=str(quickstart),
            texts=str(texts),
            data_dir=str(tmp_path_factory.mktemp("data")),
            data=8,
        )
    )
    return str(file)


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """A finished tiny run; copy it before changing it."""
    from moe_jax import train

    workdir = tmp_path_factory.mktemp("runs") / "trained"
    argv = [f"--config={tiny}", f"--workdir={workdir}"]
    assert run_command(train.main, usage=train.USAGE, flags=train.FLAGS, argv=argv) == 0
    return workdir

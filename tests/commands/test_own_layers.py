"""docs/own_layers.md: its expert, its attention and its layer around experts, from a file each."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import moe_jax
from moe_jax import check as cli
from moe_jax.cli import run_command
from moe_jax.config.errors import UserError
from tests.commands.own_files import train
from tests.commands.runs import lines
from tests.drawn import some

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/own_layers.md").read_text("utf-8")
NAMES = ("my_expert", "my_mixer", "my_around")
KINDS = (
    "--config.moe.expert.kind=my_expert:SquaredSwiGLU",
    "--config.moe.expert.power=3",
    "--config.model.mixer.kind=my_mixer:MeanMixer",
    "--config.moe.around.kind=my_around:SharedProjection",
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder on the path with the page's files."""
    for name in NAMES:
        found = re.search(rf"```python\n(# {name}.py.*?)```", PAGE, re.DOTALL)
        (tmp_path / f"{name}.py").write_text(found[1])
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.lab
def test_all_three_train_in_one_model(folder):
    """And are counted: what they say of themselves is what the run has."""
    texts = folder / "texts"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i}.txt").write_text("".join(f"x{i} = {j} * {i + j}\n" for j in range(40)))
    workdir = train(
        folder, "quickstart.py", *KINDS, "--config.data.kind=folder",
        f"--config.data.path={texts}", f"--config.data.data_dir={folder / 'data'}",
        "--config.data.sequence_length=32", "--config.batch_size=8",
    )  # fmt: skip
    losses = [line["loss"] for line in lines(workdir, "train")]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    run = moe_jax.load(workdir, trust=True)
    block = run.params["layers"]["00"]
    assert set(block["moe"]["experts"]) == {"w_gate", "w_up", "w_down", "scale"}
    assert set(block["attention"]) == {"inward", "outward"}
    assert set(block["moe"]["around"]) == {"w"}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert run.program.experiment.counts.total == parameters
    with pytest.raises(UserError, match="MeanMixer keeps no cache"):
        run.generate("x1 = ", max_tokens=2)


@pytest.mark.lab
@pytest.mark.parametrize(
    "only",
    some(
        ["expert=4 slots_scatter/all_to_all", "fsdp=2 expert=2 tensor=2"],
        ["fsdp=2 expert=2 tensor=2"],
    ),
)
def test_a_mesh_changes_nothing_about_them(folder, capsys, only):
    argv = [f"--config={ROOT / 'configs/quickstart.py'}", *KINDS, "--steps=1", f"--only={only}"]
    code = run_command(cli.main, usage=cli.USAGE, flags=cli.FLAGS, argv=argv)
    message = capsys.readouterr().out
    assert code == 0, message
    assert "equal" in message

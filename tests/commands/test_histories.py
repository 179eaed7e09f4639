"""The next item of a history through the commands: learnt, taken up again, the same on a mesh."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import moe_jax
from tests.commands.runs import lines, results, start

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = """
from pathlib import Path
from moe_jax.config.overrides import read_config_file

def get_config(arg=""):
    config = read_config_file(Path({configs!r}) / "movielens.py")
    config.steps = 24
    config.batch_size = 16
    config.data.kind = "histories"
    config.data.path = str(Path(__file__).with_name("seen.csv"))
    config.data.items = 30
    config.data.sequence_length = 8
    config.model.model_dim = 16
    config.model.head_dim = 8
    config.model.mlp_dim = 16
    config.moe.num_experts = 4
    config.moe.expert_dim = 16
    config.optimizer.learning_rate = 2e-2
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule.warmup_steps = 2
    config.evaluation.every = 12
    config.checkpoint.every = 8
    config.logging.every = 2
    config.logging.probe_every = 6
    config.logging.probe_rows = 5
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    """Somebody who had item n has item n + 1 next, as a rule."""
    folder, random = tmp_path_factory.mktemp("histories"), np.random.default_rng(0)
    found = ["user,item,time"]
    for user in range(60):
        item = random.integers(30)
        for time in range(random.integers(4, 20)):
            found.append(f"u{user},i{item:02d},{time}")
            item = (item + 1) % 30 if random.random() < 0.9 else random.integers(30)
    (folder / "seen.csv").write_text("\n".join(found) + "\n")
    (folder / "tiny.py").write_text(CONFIG.format(configs=str(CONFIGS)))
    return str(folder / "tiny.py")


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "items"
    _, err = (process := start(config, workdir)).communicate(timeout=300)
    assert process.returncode == 0, err
    return workdir


def test_it_learns_who_comes_next(run, cli):
    first, last = lines(run, "eval")
    assert last["ndcg_at_10"] > 0.25 and last["cross_entropy"] < first["cross_entropy"]
    assert {"hit_rate_at_10", "mean_reciprocal_rank"} <= last.keys()
    loaded = moe_jax.load(run)
    assert loaded.evaluate()["ndcg_at_10"] == last["ndcg_at_10"]
    code, _, err = cli("report", f"--workdir={run}", "--routing")
    assert code == 0, err
    page = (run / "report.html").read_text("utf-8")
    assert "NDCG at 10" in page and "i07 · " in page


def test_samples_have_the_names_of_items_and_the_rank_among_what_is_offered(run):
    loaded = moe_jax.load(run)
    found = loaded.samples()
    assert found is not None and len(found.rows) == 8
    for index, (lately, had, rank, offered) in enumerate(found.rows):
        row = loaded.rows[index]
        place, names = int(row["held"]), loaded.rows.names
        assert lately.split("; ") == [names[i] for i in row["tokens"][: place + 1][-4:]]
        assert had == names[row["tokens"][place + 1]]
        best, seen = offered.split("; "), {names[i] for i in np.flatnonzero(row["seen"])}
        assert len(set(best)) == 5 and not seen & set(best)
        if had in best:  # of equal scores the rank is the last
            assert int(rank) >= best.index(had) + 1
        else:
            assert int(rank) > 5
    assert {row[2] for row in found.rows} & {"1", "2", "3"}


@pytest.mark.lab
def test_a_run_that_lost_its_last_checkpoints_goes_on_bit_for_bit(config, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    for step in (16, 24):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    out, err = (process := start(config, workdir)).communicate(timeout=300)
    assert process.returncode == 0 and "resuming at step 8" in out, err
    assert results(workdir) == results(run)


@pytest.mark.lab
def test_on_another_mesh_the_losses_are_the_same(config, run, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.expert=2", "--config.mesh.tensor=2")
    _, err = (process := start(config, tmp_path / "mesh", *mesh)).communicate(timeout=300)
    assert process.returncode == 0, err
    for one, two in zip(lines(run, "eval"), lines(tmp_path / "mesh", "eval"), strict=True):
        np.testing.assert_allclose(two["cross_entropy"], one["cross_entropy"], rtol=1e-3)


def test_data_of_another_form_are_told(cli, config, tmp_path):
    flags = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    for change, message in (
        ("data.kind=planted", "reads held, seen, and the data has tokens, segments, domain"),
        ("model.kind=encoder", "sees later tokens, so it cannot predict the next one"),
        ("data.items=3", "data.items: must be at least the 30 of"),
    ):
        code, _, err = cli("train", *flags, f"--config.{change}")
        assert code == 2 and message in err and "Traceback" not in err, (change, err)

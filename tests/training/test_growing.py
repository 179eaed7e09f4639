"""More experts, or any at all, than the run has that a new one starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_jax.models.layout import layout_of
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.training.origin import load_origin
from moe_jax.training.warm_start import GROW, NOISE, Like, growth_warnings, warm_start
from tests.commands.conftest import texts, tiny, trained  # noqa: F401 - fixtures
from tests.drawn import some
from tests.layers import of_all_layers


def like(every: int, layers: int = 4, first: int = 0, experts: int = 4) -> Like:
    return Like(layout_of(layers, MoEConfig(every=every, first=first)), experts)


def tree(kind: Like, sparse: dict, dense: dict, rng: np.random.Generator) -> dict:
    """Arrays of these shapes in each layer, stacked as `kind` says."""
    layers = {
        stack.name: {
            part: {n: np.float32(rng.normal(size=(stack.count, *s))) for n, s in shapes.items()}
            for part, shapes in (sparse if stack.moe else dense).items()
        }
        for stack in kind.layout.stacks
    }
    return {"layers": layers}


def test_layers_find_each_other_in_other_stacks():
    """Layers 1 and 3 are sparse in the old run, all of them in the new one."""
    rng = np.random.default_rng(0)
    kinds = like(every=2, first=1), like(every=1)
    sparse = {"moe.experts": {"w_up": (4, 3, 5)}, "norm": {"scale": (3,)}}
    dense = {"mlp": {"w_up": (3, 5)}, "norm": {"scale": (3,)}}
    old, new = (tree(kind, sparse, dense, rng) for kind in kinds)
    found, report = warm_start(new, old, old_like=kinds[0], new_like=kinds[1])
    up, norm = (found["layers"]["00"][part] for part in ("moe.experts", "norm"))
    before = old["layers"]
    for place, layer in enumerate((0, 2)):
        mlp = before["00"]["mlp"]["w_up"][place]
        np.testing.assert_array_equal(up["w_up"][layer], [mlp] * 4)
        np.testing.assert_array_equal(norm["scale"][layer], before["00"]["norm"]["scale"][place])
        np.testing.assert_array_equal(
            up["w_up"][layer + 1], before["01"]["moe.experts"]["w_up"][place]
        )
    assert len(report.used) == 6 and len(report.adapted) == 2
    assert not report.new and not report.unused
    assert "copies of layers.*.mlp.w_up (layers 0, 2)" in str(report)


def test_an_mlp_of_another_size_is_not_copied():
    rng = np.random.default_rng(0)
    kinds = like(every=0), like(every=1)
    old = tree(kinds[0], {}, {"mlp": {"w_up": (3, 5)}}, rng)
    new = tree(kinds[1], {"moe.experts": {"w_up": (4, 3, 2)}}, {}, rng)
    found, report = warm_start(new, old, old_like=kinds[0], new_like=kinds[1])
    assert (
        found["layers"]["00"]["moe.experts"]["w_up"] is new["layers"]["00"]["moe.experts"]["w_up"]
    )
    assert len(report.new) == 4 and "(3, 5), now (4, 3, 2)" in report.unused[0]


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("grow", GROW)
def test_columns_of_copies(grow, others):
    """others: outputs of the router behind the experts' that are no experts (MoE++)."""
    rng = np.random.default_rng(0)
    kinds = like(every=1, layers=2), like(every=1, layers=2, experts=10)
    old, new = (
        tree(kind, {"moe.router": {"kernel": (32, n + others), "bias": (n + others,)}}, {}, rng)
        for kind, n in zip(kinds, (4, 10), strict=True)
    )
    options = dict(old_like=kinds[0], new_like=kinds[1], grow=grow, seed=3)
    found, _ = warm_start(new, old, **options)
    (before, fresh, after) = (t["layers"]["00"]["moe.router"] for t in (old, new, found))
    source = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, *range(4, 4 + others)]
    np.testing.assert_array_equal(after["bias"], before["bias"][:, source])
    copied = before["kernel"][..., source]
    kept = [0, 1, 2, 3, *range(10, 10 + others)]
    np.testing.assert_array_equal(after["kernel"][..., kept], copied[..., kept])
    columns, expected = after["kernel"][..., 4:10], copied[..., 4:10]
    if grow == "copy":
        np.testing.assert_array_equal(columns, expected)
    elif grow == "new":
        np.testing.assert_array_equal(columns, fresh["kernel"][..., 4:10])
    else:
        rms = np.sqrt(np.mean(np.square(expected), axis=1))
        ratio = np.sqrt(np.mean(np.square(columns - expected), axis=1)) / rms
        np.testing.assert_allclose(np.mean(ratio), NOISE, rtol=0.1)
        again, _ = warm_start(new, old, **options)
        np.testing.assert_array_equal(
            again["layers"]["00"]["moe.router"]["kernel"], after["kernel"]
        )
        assert len(np.unique(columns)) == columns.size  # of two layers, and two copies of one


def test_the_warnings():
    assert not list(growth_warnings((4, 4), (2, 2), "copy"))
    assert not list(growth_warnings((4, 8), (2, 2), "noise"))
    (message,) = growth_warnings((4, 16), (2, 2), "noise")
    assert (
        "k = 2 is smaller than the 4 copies" in message and "k = 8 is what the old run" in message
    )
    assert len(list(growth_warnings((4, 16), (2, 8), "copy"))) == 1


def grown(cli, tiny, trained, workdir: Path, grow: str, steps: int) -> np.ndarray:  # noqa: F811
    """w_up (layers, 8, ...) of 8 experts that began as two copies of the 4 of `trained`."""
    code, _, err = cli(
        "train", f"--config={tiny}", f"--workdir={workdir}", f"--warm_start={trained}",
        f"--grow={grow}", "--config.moe.num_experts=8", f"--config.steps={steps}",
        "--config.evaluation.every=0",
    )  # fmt: skip
    assert code == 0, err
    _, state, _ = load_origin(workdir)
    return of_all_layers(state.params["layers"])["moe"]["experts"]["w_up"]


@pytest.mark.parametrize("grow", some(GROW, ["noise"]))
def test_twins_part(grow, cli, tiny, trained, tmp_path):  # noqa: F811
    """Within 20 steps, by a share of how far they went that no rounding makes. Copied columns keep
    them together, which is why they are not the default."""
    _, before, _ = load_origin(trained)
    start = of_all_layers(before.params["layers"])["moe"]["experts"]["w_up"]
    w_LEDF = grown(cli, tiny, trained, tmp_path / grow, grow, steps=20)
    went = np.sqrt(np.mean(np.square(w_LEDF[:, :4] - start)))
    twins = np.sqrt(np.mean(np.square(w_LEDF[:, :4] - w_LEDF[:, 4:]), axis=(0, 2, 3)))
    per_member = float(np.min(twins) / went)
    assert per_member < 1e-3 if grow == "copy" else per_member > 0.05

"""The vision transformer's two ends; its layers are those of every model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.config.checks import check
from moe_jax.models.counts import count
from moe_jax.models.network import Network
from moe_jax.models.patches import patches, sincos
from moe_jax.models.types import IO, PixelClass, RowClass
from moe_jax.models.vit import VitConfig
from moe_jax.nn.context import Context, ImageBatch
from moe_jax.nn.head import PixelHead
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import Mixtral, SoftMoE
from tests.drawn import some

H, W, C, P, CLASSES = 8, 12, 3, 4, 5
IMAGE = IO(image=(H, W, C), gives=RowClass(CLASSES))
SMALL = VitConfig(
    num_layers=2, model_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24,
    activation="gelu", patch_size=P,
)  # fmt: skip
MOE = MoEConfig(num_experts=4, expert_dim=12, router=Mixtral(k=2), every=2, first=1)


def built(config=SMALL, moe=MOE, seed=0):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: config.build(moe, IMAGE, mesh, rngs=rngs), mesh)
    params = network.init(jax.random.key(seed))
    return network, params, network.module(params).router_state()


def batch(rows=3, valid=None, seed=0):
    image = jax.random.normal(jax.random.key(seed), (rows, H, W, C))
    valid = jnp.ones(rows, bool) if valid is None else jnp.asarray(valid)
    return ImageBatch(image_BHWC=image, valid_B=valid, row_B=jnp.arange(rows, dtype=jnp.int32))


def logits(network, params, state, images):
    run = jax.jit(lambda params: network.apply(params, images, Context(), state))
    return np.asarray(run(params).predictions.logits_BC)


def test_patches_are_in_reading_order():
    image = np.arange(2 * H * W * C, dtype=np.float32).reshape(2, H, W, C)
    found = np.asarray(patches(jnp.asarray(image), P))
    assert found.shape == (2, 6, P * P * C)
    for b in range(2):
        for place, (y, x) in enumerate((y, x) for y in range(2) for x in range(3)):
            block = image[b, y * P : (y + 1) * P, x * P : (x + 1) * P]
            np.testing.assert_array_equal(found[b, place], block.reshape(-1))


def test_sincos_is_the_formula():
    table = sincos(2, 3, 8).astype(np.float64)
    for place, (y, x) in enumerate((y, x) for y in range(2) for x in range(3)):
        w = [1.0, 1e-4]
        wanted = [f(p * v) for p in (x, y) for f in (np.sin, np.cos) for v in w]
        np.testing.assert_allclose(table[place], wanted, atol=1e-7)


ENDS = [(p, q) for p in ("learned", "sincos", "none") for q in ("mean", "first")]


@pytest.mark.grid
@pytest.mark.parametrize(("positions", "pooling"), some(ENDS, [("sincos", "first")], several=True))
def test_places_matter_where_they_are_told(positions, pooling):
    """Without positions the mean of the tokens does not know where a patch was."""
    config = dataclasses.replace(SMALL, positions=positions, pooling=pooling)
    network, params, state = built(config)
    images = batch()
    turned = dataclasses.replace(images, image_BHWC=images.image_BHWC[:, ::-1, ::-1])
    swapped = jnp.roll(images.image_BHWC, P, axis=1)  # whole patches trade places
    moved = dataclasses.replace(images, image_BHWC=swapped)
    here, there = (logits(network, params, state, x) for x in (images, moved))
    assert np.allclose(here, there, atol=1e-5) == (positions == "none")
    assert not np.allclose(here, logits(network, params, state, turned), atol=1e-5)
    assert network.apply(params, images, Context(), state).report.sums.valid.shape[0] == 1


def test_all_tokens_see_all_others():
    """A change of the last patch reaches the class token, which stands first."""
    network, params, state = built(dataclasses.replace(SMALL, pooling="first"))
    images = batch()
    other = images.image_BHWC.at[:, -P:, -P:].add(1.0)
    changed = logits(network, params, state, dataclasses.replace(images, image_BHWC=other))
    assert not np.allclose(logits(network, params, state, images), changed, atol=1e-4)


@pytest.mark.grid
def test_images_that_fill_up_a_batch_are_not_routed():
    network, params, state = built()
    images = batch(4, valid=[True, True, False, True])
    output = network.apply(params, images, Context(capture=True), state)
    assert int(output.report.sums.valid.sum()) == 3 * 6
    alone = batch(4)
    kept = [0, 1, 3]
    np.testing.assert_allclose(
        logits(network, params, state, images)[kept],
        logits(network, params, state, alone)[kept],
        rtol=1e-5,
        atol=1e-6,
    )
    assert np.all(np.asarray(output.report.routes.expert_BSK)[:, 2] == 4)


@pytest.mark.parametrize("moe", [MOE, dataclasses.replace(MOE, every=0)], ids=["sparse", "dense"])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_counts_are_those_of_the_parameters(moe, pooling):
    config = dataclasses.replace(SMALL, pooling=pooling)
    _, params, _ = built(config, moe)
    counts = count(config, moe, IMAGE)
    assert counts.total == sum(leaf.size for leaf in jax.tree.leaves(params))
    S, D = config.row_length(IMAGE), config.model_dim
    attention = 4 * D * D
    mlp = 2 * D * 24
    ffn = 2 * D * 12 * 2 + D * 4 if moe.every else mlp
    per_row = 6 * P * P * C * D + D * CLASSES + S * (2 * attention + mlp + ffn)
    assert counts.matmul_flops == pytest.approx(6 * per_row / S)


def test_soft_moe_works_on_it():
    """As in Puigcerver et al. (2308.00951): slots are mixtures of an image's patches."""
    moe = dataclasses.replace(MOE, router=SoftMoE(), layout="slots_einsum")
    network, params, state = built(moe=moe)
    assert np.all(np.isfinite(logits(network, params, state, batch())))


def test_what_does_not_fit_is_told():
    assert [name for name, _ in SMALL.fits(IO(length=8))] == ["kind", "kind"]
    assert [name for name, _ in SMALL.fits(IO(image=(9, 8, 1), gives=RowClass(2)))] == [
        "patch_size"
    ]
    wrong = dataclasses.replace(SMALL, positions="sincos", model_dim=18, pooling="last")
    assert {p.path for p in check(wrong)} == {"model_dim", "pooling"}
    assert [p.path for p in check(dataclasses.replace(SMALL, attention="splash"))] == ["attention"]


def test_a_class_for_each_pixel():
    """Linear in each patch's token, then bilinear between the middles of patches; the class token
    is none of them."""
    io = IO(image=(H, W, C), gives=PixelClass(CLASSES))
    (rows, columns), D = SMALL.grid(io), SMALL.model_dim
    head = PixelHead(D, CLASSES, init_scale=1.0, rngs=nnx.Rngs(0))
    head.bias[...] = jnp.arange(CLASSES, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(3), (2, rows * columns + 1, D))
    found = np.asarray(head(x, (rows, columns), (H, W)))
    kernel, bias = (np.asarray(w[...], np.float64) for w in (head.kernel, head.bias))
    wanted = (np.asarray(x, np.float64)[:, 1:] @ kernel + bias).reshape(2, rows, columns, CLASSES)
    for out, size, axis in ((H, rows, 1), (W, columns, 2)):
        at = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = np.expand_dims(at - low, [n for n in range(4) if n != axis])
        wanted = (1 - share) * wanted.take(low, axis) + share * wanted.take(high, axis)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_counts_of_a_model_of_pixels(pooling):
    """What the ends say of themselves is what there is; the head is multiplied for each patch."""
    config = dataclasses.replace(SMALL, pooling=pooling)
    io = IO(image=(H, W, C), gives=PixelClass(CLASSES))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: config.build(MOE, io, mesh, rngs=rngs), mesh)
    size = sum(leaf.size for leaf in jax.tree.leaves(network.abstract))
    assert count(config, MOE, io).total == size
    patches_, S = (H // P) * (W // P), config.row_length(io)
    per_row = patches_ * (P * P * C + CLASSES) * SMALL.model_dim
    assert config.ends(io).multiplied == pytest.approx(per_row / S)
    params = network.init(jax.random.key(0))
    images = batch()
    output = network.apply(params, images, Context(), network.module(params).router_state())
    assert output.predictions.logits_BHWC.shape == (3, H, W, CLASSES)
    assert list(config.fits(io)) == []
    assert [name for name, _ in config.fits(IO(image=(H, W, C)))] == ["kind"]

"""The detector's two ends and its two parts; its layers are those of every model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.config.checks import check
from moe_jax.models.counts import count
from moe_jax.models.detector import PRIOR, DetectorConfig, waves
from moe_jax.models.network import Network
from moe_jax.models.types import IO, ObjectBoxes, RowClass
from moe_jax.nn.context import Context, ImageBatch
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.stem import ConvolutionalStem, stem_cost, widths
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import Mixtral, TaskLevel

H, W, P, CLASSES, S = 8, 12, 4, 5, 6
IMAGE = IO(image=(H, W, 3), gives=ObjectBoxes(CLASSES, 4))
SMALL = DetectorConfig(
    num_layers=5, encoder_layers=2, model_dim=16, num_heads=2, num_kv_heads=2, head_dim=8,
    mlp_dim=24, activation="gelu", patch_size=P,
)  # fmt: skip
MOE = MoEConfig(num_experts=4, expert_dim=12, router=Mixtral(k=2), every=2, first=1)


def built(config=SMALL, moe=MOE, seed=0):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    network = Network(lambda rngs: config.build(moe, IMAGE, mesh, rngs=rngs), mesh)
    params = network.init(jax.random.key(seed))
    return network, params, network.module(params).router_state()


def batch(rows=4, valid=4):
    image = np.random.default_rng(0).normal(size=(rows, H, W, 3)).astype(np.float32)
    return ImageBatch(
        image_BHWC=jnp.asarray(image),
        valid_B=jnp.arange(rows, dtype=jnp.int32) < valid,
        row_B=jnp.arange(rows, dtype=jnp.int32),
    )


def test_a_new_model_says_the_anchors_and_that_nothing_is_there():
    network, params, state = built()
    output = jax.jit(network.apply)(params, batch(), Context(), state)
    logits, box = output.predictions.logits_BLQC, np.asarray(output.predictions.box_BLQ4)
    assert logits.shape == (4, 1 + 3, S, CLASSES) and box.shape == (4, 1 + 3, S, 4)
    x, y = np.meshgrid([1 / 6, 3 / 6, 5 / 6], [1 / 4, 3 / 4])  # the middles of 2 rows of 3 patches
    wanted = np.stack([x.ravel(), y.ravel(), np.full(S, 0.3), np.full(S, 0.3)], axis=1)
    np.testing.assert_allclose(box, np.broadcast_to(wanted, box.shape), atol=1e-5)
    assert 0.1 * PRIOR < float(jnp.mean(jax.nn.sigmoid(logits))) < 10 * PRIOR
    names = [part.name for part in network.module(params).layout.parts]
    assert names == ["encoder", "decoder"]
    assert network.module(params).layout.moe_layers == (1, 3)  # counted in each by itself
    assert output.report.sums.wanted_E.shape[:2] == (2, 4)


def test_each_layer_refines_the_boxes_of_the_one_before():
    """In the logits of the shares; the first of the encoder's proposals, from the anchors."""
    network, params, state = built()
    random = jax.random.normal(jax.random.key(1), (16, 4)) * 0.1
    params["objects"]["change"] = random
    moved = jax.jit(network.apply)(params, batch(), Context(), state).predictions.box_BLQ4
    place = np.log(moved / (1 - moved))
    steps = np.diff(place, axis=1)
    assert (np.abs(steps) > 1e-4).any(axis=(0, 2, 3)).all()
    params["objects"]["change"] = 2 * random
    twice = jax.jit(network.apply)(params, batch(), Context(), state).predictions.box_BLQ4
    twice = np.log(twice / (1 - twice))
    np.testing.assert_allclose(twice[:, 1:] - twice[:, :1], 2 * np.cumsum(steps, 1), atol=1e-4)


def test_boxes_of_the_encoder_are_told_to_the_decoder_and_learn_by_their_own_loss():
    network, params, state = built()
    params["proposals"]["change"] = jax.random.normal(jax.random.key(2), (16, 4)) * 0.1

    def last(change, told):
        new = {**params, "proposals": {**params["proposals"], "change": change}, "told": told}
        return network.apply(new, batch(), Context(), state).predictions.logits_BLQC[:, -1]

    change, told = params["proposals"]["change"], params["told"]
    assert not np.allclose(last(change, told), last(2 * change, told), atol=1e-5)
    np.testing.assert_array_equal(last(change, 0 * told), last(2 * change, 0 * told))
    grads = jax.jit(jax.grad(lambda c: jnp.sum(last(c, told))))(change)
    assert not np.asarray(grads).any()


def test_the_decoder_sees_the_whole_image_and_no_other():
    network, params, state = built()

    def last(image):
        given = dataclasses.replace(batch(), image_BHWC=image)
        return network.apply(params, given, Context(), state).predictions.logits_BLQC[:, -1]

    image = batch().image_BHWC
    before, after = (jax.jit(last)(x) for x in (image, image.at[1, 0, 0].add(3.0)))
    changed = np.abs(np.asarray(before - after)).max(axis=-1)
    assert (changed[1] > 0).all() and not changed[[0, 2, 3]].any()


def test_images_that_fill_up_a_batch_are_not_routed():
    network, params, state = built()
    sums = jax.jit(network.apply)(params, batch(valid=3), Context(), state).report.sums
    wanted = np.asarray(sums.wanted_E).sum(axis=-1)
    np.testing.assert_array_equal(wanted, [[2 * S] * 3 + [0]] * 2)


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("stem", ["patch", "convolutions"])
def test_counts_are_those_of_the_parameters(every, stem):
    config = dataclasses.replace(SMALL, stem=stem, positions="learned", patch_size=4)
    moe = dataclasses.replace(MOE, every=every, first=min(every, 1))
    network, _, _ = built(config, moe)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(network.abstract))
    assert count(config, moe, IMAGE).total == sizes


def test_the_stem_is_convolutions_by_loops():
    stem = ConvolutionalStem(4, 3, 8, rngs=nnx.Rngs(params=0))
    image = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype(np.float32)
    x = image[0].astype(np.float64)
    for kernel, norm in zip(stem.kernels, stem.norms, strict=True):
        w = np.asarray(kernel[...], np.float64)
        rows, columns = x.shape[0] // 2, x.shape[1] // 2
        padded = np.pad(x, ((0, 1), (0, 1), (0, 0)))  # SAME of stride 2 on even sizes
        found = np.zeros((rows, columns, w.shape[-1]))
        for i, j in np.ndindex(rows, columns):
            found[i, j] = np.einsum("yxi,yxio->o", padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3], w)
        found /= np.sqrt(np.mean(found**2, axis=-1, keepdims=True) + norm.epsilon)
        x = np.asarray(jax.nn.gelu(jnp.asarray(found, jnp.float32)), np.float64)
    wanted = x.reshape(1, -1, 8) @ np.asarray(stem.out[...], np.float64)
    np.testing.assert_allclose(stem(jnp.asarray(image)), wanted, atol=1e-4)
    assert widths(4, 3, 8) == [(3, 4), (4, 8)]
    sizes = 27 * 4 + 4 + 36 * 8 + 8 + 64
    assert stem_cost(4, 3, 8) == (sizes, 27 * 4 * 4 + 36 * 8 + 64)


def test_a_box_is_told_by_waves():
    box = jnp.asarray([[[0.2, 0.4, 0.1, 0.3]]], jnp.float32)
    found = np.asarray(waves(box, 16))[0, 0].reshape(4, 4)
    for number, of_number in zip(np.asarray(box)[0, 0].astype(np.float64), found, strict=True):
        angle = 2 * np.pi * number / np.array([0.01, 10.0])
        np.testing.assert_allclose(of_number, [*np.sin(angle), *np.cos(angle)], atol=1e-4)


def test_what_does_not_fit_is_told():
    assert not list(check(SMALL)) and not list(SMALL.fits(IMAGE))
    wrong = dataclasses.replace(SMALL, anchor=1.0, encoder_layers=5, patch_size=3, model_dim=18)
    problems = {p.path for p in check(wrong)}
    assert problems == {"anchor", "encoder_layers", "patch_size", "model_dim"}
    many = IO(image=(H, W, 3), gives=ObjectBoxes(CLASSES, 7))
    assert next(iter(SMALL.fits(many))) == (
        "patch_size",
        "makes 6 patches, each of which predicts an object, and up to 7 are matched "
        "(data.max_objects x task.copies)",
    )
    other = IO(image=(H, W, 3), gives=RowClass(3))
    assert "gives the objects of an image" in next(iter(SMALL.fits(other)))[1]
    assert {name for name, _ in SMALL.fits(IO(length=8))} == {"kind"}


def test_both_parts_route_by_the_task_that_an_image_is_told():
    """All patches and queries of an image have its task's experts, in each part's own table."""
    moe = dataclasses.replace(MOE, router=TaskLevel(tasks=2, k=1, renormalize=False))
    network, params, state = built(moe=moe)
    own = jnp.where(jnp.arange(4)[None] == jnp.array([[1], [3]]), 5.0, 0.0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.broadcast_to(own, leaf.shape) if "tasks" in str(path[-1]) else leaf,
        params,
    )
    images = dataclasses.replace(batch(), task_B=jnp.array([0, 1, 1, 0], jnp.int32))
    context = Context(capture=True)
    routes = jax.jit(network.apply)(params, images, context, state).report.routes
    expert_LBSK = np.asarray(routes.expert_BSK)
    assert expert_LBSK.shape == (2, 4, S, 1)
    for layer in expert_LBSK:
        assert [set(row.ravel().tolist()) for row in layer] == [{1}, {3}, {3}, {1}]
    untold = jax.jit(network.apply)(params, batch(), context, state).report.routes
    assert set(np.asarray(untold.expert_BSK).ravel().tolist()) == {1}

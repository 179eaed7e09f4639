"""What parameters say of themselves to an optimizer: every router's, on whole programs of two
layers, whose arrays have one axis more than what was declared."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.nn.param import Form
from moe_jax.routing import ROUTERS, Mixtral
from moe_jax.routing.types import ParamSpec
from moe_jax.training.build import build
from moe_jax.training.optimizer import Adafactor, AdamW, ConstantRate, Lion, Muon
from moe_jax.training.optimizer_table import optimizer_table
from tests.training.forms import C, D, E, L, N, P, flat, program

# By name: (rows, columns) of one matrix, (1, length) of a vector, and whether it decays.
LINEAR = {"kernel": (D, E, True), "bias": (1, E, False)}
OF_ROUTER = {
    "cosine": {
        "kernel": (D, P, True),
        "directions": (E, P, False),
        "temperature": (1, 1, False),
        "bias": (1, E, False),
    },
    "noisy_top_k": {**LINEAR, "noise_kernel": (D, E, True)},
    "v_moe": LINEAR,
    "soft_moe": {"phi": (D, E * C, True), "scale": (1, 1, False)},
    "moe_plus_plus": {
        "kernel": (D, E + 2 + N, True),
        "bias": (1, E + 2 + N, False),
        "mix": (D, 2, True),
        "constant": (1, D, False),
    },
    "hash": {},
    "random": {},
    "uniform": {},
    "round_robin": {},
    "task_level": {"tasks": (1, E, False)},
}
OF_MODEL = {
    "embedding": (264, D, True),
    "head": (D, 264, True),
    "final_norm/scale": (1, D, False),
    "layers/00/attention_norm/scale": (1, D, False),
    "layers/00/mlp_norm/scale": (1, D, False),
    "layers/00/attention/wq": (D, 2 * 4, True),
    "layers/00/attention/wk": (D, 4, True),
    "layers/00/attention/wv": (D, 4, True),
    "layers/00/attention/wo": (2 * 4, D, True),
    "layers/00/attention/query_norm/scale": (1, 4, False),
    "layers/00/attention/key_norm/scale": (1, 4, False),
    "layers/00/moe/experts/w_gate": (8, 12, True),
    "layers/00/moe/experts/w_up": (8, 12, True),
    "layers/00/moe/experts/w_down": (12, 8, True),
    "layers/00/moe/latent/down": (D, 8, True),
    "layers/00/moe/latent/up": (8, D, True),
    "layers/00/moe/shared/w_gate": (D, 12, True),
    "layers/00/moe/shared/w_up": (D, 12, True),
    "layers/00/moe/shared/w_down": (12, D, True),
}


def expected(router):
    own = OF_ROUTER.get(router, LINEAR)
    return OF_MODEL | {f"layers/00/moe/router/{name}": form for name, form in own.items()}


def drawn(shapes, seed):
    """Numbers of very different size by layer: a mean over layers would show."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        size = np.exp(2 * random.normal(size=(leaf.shape[0],) + (1,) * (leaf.ndim - 1)))
        return jnp.asarray(size * random.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("router", ROUTERS)
def test_forms_of_every_parameter(router):
    """Rows, columns and decay, by hand; and nothing but what stands in the table."""
    network = program(router).network
    forms, shapes = flat(network.forms), flat(network.abstract)
    found = {
        path: (*form.sizes(shapes[path].shape), form.decays, form.is_matrix)
        for path, form in forms.items()
    }
    message = expected(router).items()
    assert found == {path: (*form, form[0] > 1) for path, form in message}


@pytest.mark.parametrize("router", ROUTERS)
def test_what_decays_by_weight_decay_alone(router):
    """Of a gradient of zeros nothing moves but what decays: no temperature, no direction, no
    constant, no scale and no bias."""
    decay = 0.5
    one = program(router, AdamW(learning_rate=0.1, weight_decay=decay, schedule=ConstantRate()))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), one.network.abstract)
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = one.step.optimizer
    updates = flat(jax.jit(optimizer.update)(zeros, optimizer.init(params), params)[0])
    for path, (_, _, decays) in expected(router).items():
        np.testing.assert_allclose(updates[path], -0.1 * decay * decays, rtol=1e-6, err_msg=path)
    assert updates.keys() == expected(router).keys()


def adafactor(grads, params, rows, columns, least):
    """Shazeer, Stern (1804.04235), algorithms 4 and 5, of one matrix (rows, columns), in float64.

    Returns the updates of all gradients with the parameter as it stands, before the learning rate.
    """
    R, S, V, found = np.zeros(rows), np.zeros(columns), np.zeros((rows, columns)), []
    for t, grad in enumerate(grads, start=1):
        square, b = np.square(grad) + 1e-30, 1 - t**-0.8
        if min(rows, columns) >= least:
            R = b * R + (1 - b) * square.sum(axis=1)
            S = b * S + (1 - b) * square.sum(axis=0)
            V = np.outer(R, S) / R.sum()
        else:
            V = b * V + (1 - b) * square
        U = grad / np.sqrt(V)
        U /= max(1, np.sqrt(np.mean(U**2)))
        found.append(U * max(1e-3, np.sqrt(np.mean(params**2))))
    return found


@pytest.mark.parametrize("router", ["cosine", "moe_plus_plus", "noisy_top_k", "soft_moe"])
def test_adafactor_is_numpys_of_each_matrix_in_float64(router):
    """Layers, experts and constants are batch axes; heads with head_dim, and experts with slots,
    are one axis of a matrix. Matrices of 3 and more rows and columns are factored."""
    least = 3
    config = Adafactor(
        learning_rate=1.0, schedule=ConstantRate(), clip_norm=0.0, min_dim_size_to_factor=least
    )
    one = program(router, config)
    params = drawn(one.network.abstract, 0)
    grads = [drawn(one.network.abstract, seed) for seed in (1, 2, 3)]
    optimizer = one.step.optimizer
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
    for grad in grads:
        updates, state = update(grad, state, params)
        found.append(flat(updates))
    for path, (rows, columns, _) in expected(router).items():
        as_matrices = [
            np.asarray(flat(tree)[path], np.float64).reshape(-1, rows, columns)
            for tree in (params, *grads)
        ]
        for number, (param, *of_steps) in enumerate(zip(*as_matrices, strict=True)):
            for step, right in enumerate(adafactor(of_steps, param, rows, columns, least)):
                mine = np.asarray(found[step][path]).reshape(-1, rows, columns)[number]
                np.testing.assert_allclose(mine, -right, rtol=2e-4, atol=1e-6, err_msg=path)


def test_adafactor_keeps_two_vectors_of_soft_moes_phi():
    """phi (D, E, C) is one matrix from D to E * C: 2 (512 + 512) numbers for 2 * 512 * 512."""
    width = 512
    plain = program("soft_moe", Adafactor(), model_dim=width)
    moe = plain.experiment.moe
    wide = dataclasses.replace(
        plain.experiment,
        moe=dataclasses.replace(
            moe, router=dataclasses.replace(moe.router, slots_per_expert=width // E)
        ),
    )
    state = build(wide, ByteTokenizer(), devices=jax.devices()[:1]).abstract_state
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    phi = [leaf for path, leaf in leaves if "'phi'" in jax.tree_util.keystr(path)]
    assert state.params["layers"]["00"]["moe"]["router"]["phi"].size == L * width * width
    assert sum(leaf.size for leaf in phi if leaf.ndim) == L * (width + width)


def test_muon_takes_the_matrices_of_the_layers():
    """Not embedding, head, routers, norms; a third axis of a matrix is no stack."""
    one = program("cosine", Muon())
    leaves = jax.tree_util.tree_leaves_with_path(one.abstract_state.opt_state)
    second = {
        "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
        for path, leaf in leaves
        if any(getattr(k, "name", "") == "nu" for k in path)
    }
    second = {path.removeprefix("adam/") for path in second}
    muon = {
        path
        for path, (rows, _, _) in expected("cosine").items()
        if rows > 1 and path.startswith("layers/") and "/router/" not in path
    }
    assert second == expected("cosine").keys() - muon


@pytest.mark.parametrize(("kind", "moments"), [(AdamW, 2), (Lion, 1)])
def test_moments_are_by_parameter(kind, moments):
    """Their tree is that of the parameters, whatever these declare: checkpoints of runs that were
    begun before they declared anything are read as they are."""
    one = program("cosine", kind())
    shapes = [leaf.shape for leaf in jax.tree.leaves(one.network.abstract)]
    found = [leaf.shape for leaf in jax.tree.leaves(one.abstract_state.opt_state) if leaf.ndim]
    assert found == moments * shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bilinear(Mixtral):
    """A router of a user, with parameters of names and ranks that nobody has."""

    def params(self, D, E):
        ones = jax.nn.initializers.ones
        flat = ParamSpec(
            shape=(E, 2, D, 3),
            init=ones,
            axes=(None,) * 4,
            matrix=((2,), (1, 3)),
            decays=False,
        )
        gain = ParamSpec(shape=(), init=ones, axes=(), matrix=None, decays=True)
        return {**super().params(D, E), "wq": flat, "bias": gain}


@pytest.mark.grid
def test_a_users_router_says_what_its_parameters_are():
    """Four axes with the rows in the middle; a scalar without an axis, named like a bias, that
    decays."""
    config = Adafactor(
        learning_rate=1.0,
        schedule=ConstantRate(),
        weight_decay=0.5,
        min_dim_size_to_factor=6,
        clip_norm=0.0,
    )
    base = program(optimizer=config).experiment
    moe = dataclasses.replace(base.moe, router=Bilinear())
    one = build(dataclasses.replace(base, moe=moe), ByteTokenizer(), devices=jax.devices()[:1])
    lines = {line.path: line for line in optimizer_table(config, one.network)}
    wq, gain = (lines[f"layers/00/moe/router/{name}"] for name in ("wq", "bias"))
    assert (wq.part, wq.decay, wq.description) == (f"{D} x 6", 0.0, f"factored, {D} + 6 a matrix")
    assert (gain.part, gain.decay, gain.shape) == ("scalar", 0.5, (L,))

    params, grad = (drawn(one.network.abstract, seed) for seed in (0, 1))
    optimizer = one.step.optimizer
    updates = flat(optimizer.update(grad, optimizer.init(params), params)[0])
    pairs = [
        [np.asarray(flat(tree)[wq.path], np.float64) for tree in (params, grad, updates)],
        [np.asarray(flat(tree)[gain.path], np.float64) for tree in (params, grad, updates)],
    ]
    for layer in range(L):
        for expert in range(E):
            param, g, mine = (x[layer, expert].swapaxes(0, 1).reshape(D, 6) for x in pairs[0])
            (right,) = adafactor([g], param, D, 6, least=6)
            np.testing.assert_allclose(mine, -right, rtol=2e-4, atol=1e-6)
        param, g, mine = (x[layer].reshape(1, 1) for x in pairs[1])
        (right,) = adafactor([g], param, 1, 1, least=6)
        np.testing.assert_allclose(mine, -right - 0.5 * param, rtol=2e-4)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (((0,), (3,)), "do not have"),
        (((0,), ()), "None is a vector"),
        (((0,), (-3,)), "names an axis twice"),
    ],
)
def test_axes_that_are_none_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        Form.of(3, matrix, True)


def test_the_door_prints_the_table(cli):
    code, out, err = cli(
        "plan",
        "--config=configs/quickstart.py",
        "--parameters",
        "--config.moe.router.kind=cosine",
        "--config.optimizer.groups.router.learning_rate_multiplier=0.25",
        "--config.optimizer.groups.experts.frozen=True",
        "--config.mesh.expert=4",  # of devices that need not be here
    )
    assert code == 0, err
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()}
    layers, D, E = 4, 128, 8
    router = "layers/00/moe/router/"
    assert lines[router + "temperature"] == f"{layers} x 1 router scalar - 0.25 Adam"
    assert lines[router + "directions"].endswith("router 8 x 16 - 0.25 Adam")
    assert lines["embedding"].endswith(f"rest 264 x {D} 0.1 1 Adam")
    assert lines["layers/00/moe/experts/w_up"].startswith(f"{layers} x {E} x {D} x ")
    assert lines["layers/00/moe/experts/w_up"].endswith(" 0 0 frozen")
    code, _, err = cli("plan", "--config=configs/quickstart.py")
    assert code == 2 and "--topology is required" in err

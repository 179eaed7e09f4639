"""Memory grows with tokens x experts per token, not with tokens x experts."""

from __future__ import annotations

import jax
import pytest

from moe_jax.config.overrides import load_config
from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.planning.compiled import lower_step
from moe_jax.training.build import Program, build
from moe_jax.training.experiment import Experiment

SETTINGS = (
    "batch_size=4",
    "data.sequence_length=1024",
    "model.num_layers=1",
    "model.model_dim=256",
    "moe.router.k=4",
    "mesh.data=1",
)


def program_with(*settings: str) -> Program:
    pairs = tuple(text.split("=", 1) for text in (*SETTINGS, *settings))
    experiment = load_config("configs/quickstart.py", pairs, Experiment)
    return build(experiment, IdTokenizer(264), jax.devices()[:1])


def temporaries(E: int, *settings: str) -> int:
    """Bytes of the training step's temporary arrays, with E experts of 4096 / E columns."""
    own = (f"moe.num_experts={E}", f"moe.expert_dim={4096 // E}")
    program = program_with(*settings, *own)
    return lower_step(program).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.grid
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("moe.capacity_factor=1.25", "moe.router.drop_order=batch_priority"),
        ("moe.router.kind=deepseek_v3",),
        ("moe.router.kind=remoe", "moe.router.k_max=8"),
    ],
    ids=" ".join,
)
def test_of_four_times_as_many_experts(settings: tuple[str, ...]):
    assert temporaries(256, *settings) < 1.2 * temporaries(64, *settings)


@pytest.mark.grid
def test_histograms_are_summed_in_their_layer():
    """Of 64 groups, 6 layers, 64 experts and 1,024 marks: by group they would be 100 MB."""
    own = ("model.num_layers=6", "model.model_dim=64", "moe.group_size=16")
    own += ("data.sequence_length=256", "model.unrolled_layers=1")
    plain = temporaries(64, *own, "moe.router.kind=deepseek_v3")
    assert temporaries(64, *own, "moe.router.kind=quantile_balancing") < 1.3 * plain


def test_evaluation_and_probe_hold_no_more_rows_than_training():
    """Evaluation batches of 32 rows beside micro-batches of 4; 2 rows are probed."""
    own = ("model.model_dim=64", "moe.num_experts=8", "logging.probe_rows=2")

    def of(name: str, rows: int, *settings: str) -> int:
        program = program_with(*own, *settings)
        model = program.abstract_state.params, program.abstract_state.router_state
        S = program.experiment.data.sequence_length + 1
        raw = {
            part: jax.ShapeDtypeStruct((rows, *rest), "int32", sharding=program.batch_sharding)
            for part, rest in (("tokens", (S,)), ("segments", (S,)), ("row", ()))
        }
        lowered = getattr(program, name).lower(*model, raw, program.scalars(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = (
        ("batch_size=4",),
        ("batch_size=16", "accumulation=4", "evaluation.batch_size=32"),
    )
    assert of("eval_step", 32, *large) < 1.2 * of("eval_step", 4, *small)
    program = program_with(*own, *large)
    assert (program.eval_batch_size, program.probe_batch_size) == (32, 2)

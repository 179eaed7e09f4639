"""Published utilisation of Mixtral 8x7B, against which the one efficiency is fitted and tested.

python -m moe_jax.planning.published prints the table of docs/plan.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.data.datasets import StdlibText
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.planning.hardware import topology_of
from moe_jax.planning.roofline import EFFICIENCY, Roofline
from moe_jax.planning.search import candidate
from moe_jax.training.experiment import Experiment
from moe_jax.training.writers import LoggingConfig

# MaxText's README: model FLOP/s utilisation of Mixtral 8x7B by number of chips.
MIXTRAL_8X7B = {"v5p:4x4x8": 0.5489, "v5p:4x8x8": 0.5256, "v6e:16x16": 0.3523}
FITTED_ON = "v5p:4x4x8"
# The published tables do not tell the batch and the layout; these are ours.
ROWS_PER_DEVICE = 8


@dataclass(frozen=True, kw_only=True)
class PublishedMFU:
    """One published figure beside what the roofline expects."""

    topology: str
    published: float
    roofline: Roofline

    @property
    def expected(self) -> float:
        return self.roofline.expected_mfu


def checks() -> list[PublishedMFU]:
    """The fit, then the tests."""
    return [
        PublishedMFU(topology=name, published=mfu, roofline=_roofline(name))
        for name, mfu in MIXTRAL_8X7B.items()
    ]


def _roofline(name: str) -> Roofline:
    """All devices along fsdp, everything computed twice."""
    topology = topology_of(name)
    experiment = Experiment(
        batch_size=ROWS_PER_DEVICE * topology.devices,
        data=StdlibText(sequence_length=4096),  # type: ignore[arg-type]
        model=DecoderConfig(
            vocab_size=32000,
            num_layers=32,
            model_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            dtype="bfloat16",
            remat="full",
        ),
        moe=MoEConfig(num_experts=8, expert_dim=14336),
        mesh=MeshConfig(data=1, fsdp=topology.devices),
        logging=LoggingConfig(probe_every=0),
    )
    return candidate(experiment, topology).roofline


def table() -> str:
    lines = [
        "| topology | published MFU | bound | binds | expected MFU | off by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for check in checks():
        line = check.roofline
        off = check.expected / check.published - 1
        role = " (fit)" if check.topology == FITTED_ON else ""
        lines.append(
            f"| {check.topology}{role} | {check.published:.2%} | {line.bound:.1%} | {line.binds} "
            f"| {check.expected:.1%} | {off:+.0%} |"
        )
    return "\n".join([*lines, "", f"efficiency {EFFICIENCY}"])


if __name__ == "__main__":
    print(table())

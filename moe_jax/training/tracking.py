"""Weights & Biases: a workdir is one run there, however often it is stopped and goes on."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json
from moe_jax.config.paths import is_remote

ID = "wandb_id"


class Tracker:
    """The run of a workdir at Weights & Biases.

    Its id stands in the workdir, so that a run that goes on goes on there; its name is the
    folder's, its config the run's own. What else there is to say (project, entity, group, mode)
    wandb takes from its environment variables; a sweep sets WANDB_RUN_GROUP.
    UserError where wandb is not installed or does not start, such as without a key.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Json]):
        if is_remote(workdir):
            raise UserError("config.logging.wandb needs a local --workdir")
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                'config.logging.wandb needs the extra "wandb": pip install -e ".[wandb]"'
            ) from error
        self._histogram = wandb.Histogram
        id_file = workdir / ID
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                dir=str(workdir),
                name=workdir.absolute().name,
                id=id_file.read_text().strip(),
                resume="allow",
            )
        except (wandb.Error, ValueError) as error:
            raise UserError(
                f"config.logging.wandb: {error}\n  `wandb login` once, or WANDB_MODE=offline to "
                "keep the run in the workdir and `wandb sync` it later"
            ) from error
        self._run.config.update(dict(config), allow_val_change=True)  # --allow_changes

    def write(self, step: int, metrics: Mapping[str, Json]) -> None:
        """Numbers as they are, lists as histograms of their finite values."""
        sent: dict[str, object] = {}
        for name, value in metrics.items():
            if np.ndim(value) == 0:
                sent[name] = float(value)
                continue
            array = np.asarray(value, np.float64)
            if (finite := array[np.isfinite(array)]).size:
                sent[name] = self._histogram(finite.tolist(), num_bins=30)
        self._run.log(sent, step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run there, as failed or as well done."""
        self._run.finish(exit_code=int(failed))

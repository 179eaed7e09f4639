"""What a run is made of, and what of it may change when it goes on or is looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping

from moe_jax.config.diff import difference
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.config.tree import from_json_dict, to_json_dict
from moe_jax.data.types import Rows
from moe_jax.training.experiment import Experiment

# Parts of a config that do not change what is computed: they may differ when a run goes on.
MAY_CHANGE = (
    "name",
    "max_bad_steps",
    "mesh",
    "logging",
    "checkpoint",
    "evaluation",
    # Where data lies; its content is held to the fingerprint.
    "data.data_dir",
    "data.auto_prepare",
    "data.tfds_dir",
    "data.path",
    "data.suffixes",
    "data.on_error",
    "model.remat",
    "model.logits_chunks",
    "model.attention",
    "model.unrolled_layers",
    "moe.layout",
    "moe.transport",
    "moe.overlap_chunks",
    "moe.matmul",
)


def with_new_fields(config: Mapping[str, Json]) -> Mapping[str, Json]:
    """A saved config with the defaults of fields that are younger than it; as it is where this
    version cannot read it."""
    try:
        return to_json_dict(from_json_dict(config, Experiment))
    except UserError:
        return config


def identity_of(config: Mapping[str, Json]) -> JsonObject:
    """A config.json without what MAY_CHANGE."""
    copy: JsonObject = json.loads(json.dumps(config))
    for path in MAY_CHANGE:
        *parents, name = path.split(".")
        node: Json = copy
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):  # a damaged file may hold anything
            node.pop(name, None)
    return copy


def config_changes(saved: Mapping[str, Json], experiment: Experiment) -> list[str]:
    """What a config has otherwise than the saved one, but for what MAY_CHANGE; a line each."""
    return difference(identity_of(with_new_fields(saved)), identity_of(to_json_dict(experiment)))


def fingerprints(**rows: Rows) -> JsonObject:
    """What must not change of opened splits, by their names."""
    return {split: dict(opened.fingerprint) for split, opened in rows.items()}


def data_changes(saved: Mapping[str, Json], now: Mapping[str, Json]) -> list[str]:
    """What the splits that are in both have otherwise; a line each."""
    # Runs of before knew the training split alone.
    known = {"train": saved} if "kind" in saved else saved
    both = [split for split in known if split in now]
    return difference(
        {"data": {split: known[split] for split in both}},
        {"data": {split: now[split] for split in both}},
    )

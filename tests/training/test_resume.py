"""A run of an older version goes on: fields younger than its config have their defaults."""

from __future__ import annotations

import copy

from moe_jax.config.diff import difference
from moe_jax.config.tree import to_json_dict
from moe_jax.training.experiment import Experiment
from moe_jax.training.identity import identity_of, with_new_fields


def lines(saved, now):
    return difference(identity_of(with_new_fields(saved)), identity_of(now))


def test_a_field_that_did_not_exist_is_no_difference():
    now = to_json_dict(Experiment())
    saved = copy.deepcopy(now)
    del saved["moe"]["ensemble"], saved["moe"]["losses"]["device_balance"]
    assert lines(saved, now) == []
    now["moe"]["ensemble"] = 2
    assert len(lines(saved, now)) == 1
    saved["moe"]["num_experts"] = 4
    assert len(lines(saved, now)) == 2


def test_a_config_that_this_version_cannot_read_is_compared_as_it_is():
    now = to_json_dict(Experiment())
    saved = copy.deepcopy(now)
    saved["moe"]["a_field_of_the_past"] = 1
    assert "a_field_of_the_past" in "".join(lines(saved, now))

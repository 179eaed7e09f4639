"""The arms of experiments/routers: every router, each a valid config; and the table in docs."""

from __future__ import annotations

import pytest

from experiments.routers import table
from experiments.routers.arms import ARMS
from experiments.routers.trial import experiment_of
from moe_jax.routing import ROUTERS
from moe_jax.training.rules import cross_check

# Of rows of several tasks (languages, say), and the text of these runs has none.
OF_TASKS = {kind for kind, router in ROUTERS.items() if router.reads_tasks}


def test_every_router_is_an_arm():
    arms = {overrides["moe.router.kind"] for overrides in ARMS.values()}
    assert arms == set(ROUTERS) - OF_TASKS and {"task_level"} == OF_TASKS


@pytest.mark.parametrize("name", list(ARMS))
def test_arms_are_configs_that_hold(name):
    assert cross_check(experiment_of(ARMS[name], 0, 200), 1) == []


def test_the_table_in_docs_is_that_of_the_results():
    text = table.DOCS.read_text("utf-8")
    shown = text.split(table.BEGIN)[1].split(table.END)[0]
    assert shown == table.table(table.read_results())

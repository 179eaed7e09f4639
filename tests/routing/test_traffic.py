"""What a plan's counts say of groups without a token."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from moe_jax.routing import Mixtral, SoftMoE
from moe_jax.routing.balance import routing_metrics
from moe_jax.routing.plan import add_sums, make_plan, plan_traffic
from moe_jax.routing.types import SoftPlan
from tests.routing.any_router import inputs, parameters

T, E = 24, 6


@pytest.mark.parametrize("router", [Mixtral(k=2), SoftMoE(slots_per_expert=2)])
def test_slots_of_a_group_of_padding_are_not_offered(router):
    """Utilisation is that of the groups with tokens: one of padding beside them changes nothing."""

    def of_group(padding):
        batch = inputs(train=False, padding=padding)
        plan, sums = router.route(parameters(router), router.state(E), batch)
        if not isinstance(plan, SoftPlan):
            plan = make_plan(plan, 5)
        return sums, plan_traffic(plan, batch.valid_T)

    sums, traffic = of_group(0)
    empty_sums, empty = of_group(T)
    assert int(traffic.slots) == E * (2 if router.soft else 5)
    assert int(empty.slots) == 0 and not jnp.any(empty.accepted_E)
    assert int(of_group(T - 1)[1].slots) == int(traffic.slots)
    alone = routing_metrics(sums, traffic)["capacity_utilization"]
    both = routing_metrics(add_sums(sums, empty_sums), add_sums(traffic, empty))
    assert float(both["capacity_utilization"]) == float(alone) > 0.5

"""How a layout's buffer reaches the devices that hold its experts, and comes back.

A new transport is a new file with a function of the type `Transport` and one row here.
docs/transports.md helps to choose.
"""

from moe_jax.dispatch.transport.all_to_all import all_to_all
from moe_jax.dispatch.transport.gather import gather
from moe_jax.dispatch.transport.local import local
from moe_jax.dispatch.transport.ragged import ragged
from moe_jax.dispatch.transport.types import Transport

TRANSPORTS: dict[str, Transport] = {
    "local": local,
    "all_to_all": all_to_all,
    "gather": gather,
    "ragged": ragged,
}

"""How a layout's buffer reaches the devices that hold its experts, and comes back.

A transport is a module with two functions of the same signatures as `local`'s: `slots` and
`rows`. A new transport is a new file and one row here.
"""

from moe_jax.dispatch.transport import all_to_all, local

TRANSPORTS = {"local": local, "all_to_all": all_to_all}

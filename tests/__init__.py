"""The tests; folders mirror moe_jax/."""

"""The device mesh, the table from logical array axes to mesh axes, and hosts."""

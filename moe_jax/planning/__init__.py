"""What a run will take on hardware that is not here: memory, FLOPs, bytes on the wire, time."""

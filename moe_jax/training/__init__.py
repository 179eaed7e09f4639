"""The training run: experiment (the whole config), state, step, loop, optimizer, checkpoints."""

"""The only training loop, with its optimizers, checkpoints, precision and runtime."""

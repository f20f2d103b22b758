"""The training loop of every method, its checkpoints and stored features."""

"""The surface stream and the training-free baselines."""

"""Training: the one loop, its checkpoints, and the runner that works through many runs."""

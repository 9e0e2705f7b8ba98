"""Training: the loop, its captured step, optimizers, checkpoints, and what a person is told."""

"""Checkpoints of long runs: what the model has answered, kept until the graph is done."""

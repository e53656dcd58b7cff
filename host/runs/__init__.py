"""Sampling runs of a patched model, whose evaluations go through it in passes."""

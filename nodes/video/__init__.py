"""Nodes that read and write videos a few frames at a time."""

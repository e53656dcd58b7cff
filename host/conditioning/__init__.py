"""Prompts and ControlNets, cut down to the frames of one pass."""

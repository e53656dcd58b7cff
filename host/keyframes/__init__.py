"""Edits of keyframes that were edited elsewhere."""

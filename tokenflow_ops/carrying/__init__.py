"""Edited pictures carried to the frames of a clip along the source's motion."""

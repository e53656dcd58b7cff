"""Edits on the host: what they are made of, and their sampling runs."""

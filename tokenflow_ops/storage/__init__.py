"""Inversions as files, and what a host can count of them."""

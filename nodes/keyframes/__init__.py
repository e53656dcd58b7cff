"""Keyframes that are edited elsewhere: which they are, and what becomes of them."""

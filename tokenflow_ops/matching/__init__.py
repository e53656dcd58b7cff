"""Which tokens of the source belong together (paper, equations 3 and 4)."""

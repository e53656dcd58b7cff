"""Formulas of other systems, for comparison: FateZero, Rerender-A-Video, the method's public code."""

"""Formulas of other systems, for comparison.

FateZero, Rerender-A-Video, and the method's public code.
"""

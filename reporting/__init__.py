"""Figures as pictures: plots, tables, grids of clips. Knows nothing of ComfyUI."""

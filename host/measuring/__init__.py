"""How much an inversion keeps, and how good an edited clip is, by ComfyUI's own models and folders."""

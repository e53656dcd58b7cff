"""How much an inversion keeps, and how good an edit is, by ComfyUI's models and folders."""

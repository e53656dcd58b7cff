"""Several ComfyUIs that share one clip."""

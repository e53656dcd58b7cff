"""Files in ComfyUI's own folders: inversions, the embedded clip and model, what was measured."""

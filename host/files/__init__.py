"""Files in ComfyUI's own folders: stored inversions, the embedded clip and model, what was
measured.
"""

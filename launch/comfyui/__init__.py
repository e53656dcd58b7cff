"""A headless ComfyUI: started, asked over its API, or brought into this process."""

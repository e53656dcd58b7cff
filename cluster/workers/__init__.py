"""Workers: each a headless ComfyUI that takes one job after the other."""

"""Sets up a ComfyUI beside the pack, starts it headless, queues workflows over its API and runs the
checks.

`run.py` works with the standard library alone: `commands`, `environment`. It then starts `python -m
launch` with the Python that runs ComfyUI: `demo`, `checks`, and below them `server`, `client`,
`workflow`.
"""

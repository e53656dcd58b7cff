"""Sets up a ComfyUI beside the pack, starts it headless, runs workflows and the checks.

Workflows are queued over ComfyUI's API. `run.py` works with the standard library alone: `commands`,
`environment`. It then starts `python -m launch` with the Python that runs ComfyUI: `demo`,
`checks`, and below them `server`, `client`, `workflow`.
"""

"""`python -m launch demo|test|bench`: the part of `run.py` that needs ComfyUI's packages."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

from . import checks, demo
from .comfyui.inprocess import import_comfyui, import_pack
from .commands import benchmarks, parser
from .wanted import Wanted


def main() -> int:
    """Runs the command inside the environment that COMFYUI_PATH and this Python are."""
    # So that the server is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options, rest = parser().parse_known_args()
    if options.command == "test":
        return checks.run(rest)
    if options.command == "bench":
        return run_benchmark(options.name, rest)
    comfyui = Path(os.environ["COMFYUI_PATH"])
    return demo.run(comfyui, Wanted.read(options, comfyui), keep=options.keep)


def run_benchmark(name: str, arguments: list[str]) -> int:
    """Runs a benchmark with ComfyUI and the pack in this process.

    Args:
        name: Of the benchmark, one of `benchmarks()`.
        arguments: The benchmark's own command line.

    Returns:
        The exit code, 0.
    """
    sys.argv = [name, *arguments]
    import_comfyui(Path(os.environ["COMFYUI_PATH"]))
    import_pack()
    runpy.run_module(benchmarks()[name], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m launch demo|test`: the part of `run.py` that needs ComfyUI's packages."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from . import checks, demo
from .commands import parser


def main() -> int:
    """Runs the command inside the environment that COMFYUI_PATH and this Python are."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped on the way out
    options, rest = parser().parse_known_args()
    if options.command == "test":
        return checks.run(rest)
    return demo.run(Path(os.environ["COMFYUI_PATH"]), options.workflow, keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())

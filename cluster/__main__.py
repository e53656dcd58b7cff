"""`python -m cluster batch`: the part of `run.py` that needs Ray."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from launch.commands import parser

from .command import run

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are stopped on the way out
    sys.exit(run(parser().parse_args(), Path(os.environ["COMFYUI_PATH"])))

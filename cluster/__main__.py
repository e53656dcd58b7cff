"""`python -m cluster batch`: the part of `run.py` that needs Ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch.commands import parser

from .command import run

if __name__ == "__main__":
    sys.exit(run(parser().parse_args(), Path(os.environ["COMFYUI_PATH"])))

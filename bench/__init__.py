"""Benchmarks: the figures of docs/, each by one command.

They import the modules of demo/ by name, as those import each other.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

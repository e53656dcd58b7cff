"""The project's commands: `python3 run.py demo`, `test`, `bench` and `batch`.

Needs nothing but Python's standard library.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"run.py needs Python 3.11 or newer; this is {sys.version.split()[0]}.")

from launch.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

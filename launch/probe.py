"""Tells what a Python lacks.

Run by `launch.needs` with the Python in question, whatever its version and packages.

Reads {"hosts": names of distributions, "lines": requirements} and writes the same with what is
missing of them, and "old": the version of a Python that is older than 3.11.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Distributions of which one will do: they are the same module.
MODULES = {"opencv-python-headless": "cv2", "faiss-cpu": "faiss", "faiss-gpu": "faiss"}


def is_missing(name: str) -> bool:
    """Tells whether neither that distribution is there nor another one of its module."""
    try:
        version(name)
    except PackageNotFoundError:
        return not (name in MODULES and find_spec(MODULES[name]))
    return False


def is_wanting(line: str) -> bool:
    """Tells whether a requirement holds for this system and is not met."""
    from packaging.requirements import Requirement

    wanted = Requirement(line)
    if wanted.marker and not wanted.marker.evaluate():
        return False
    if is_missing(wanted.name):
        return True
    try:
        return not wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False


def main() -> None:
    asked = json.load(sys.stdin)
    hosts = [name for name in asked["hosts"] if is_missing(name)]
    lines = [] if hosts else [line for line in asked["lines"] if is_wanting(line)]
    old = "" if sys.version_info >= (3, 11) else sys.version.split()[0]
    json.dump({"hosts": hosts, "lines": lines, "old": old}, sys.stdout)


if __name__ == "__main__":
    sys.path[:1] = []  # this folder
    main()

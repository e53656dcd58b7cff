"""`run.py test`: linter, formatter, type checker, outside judges and tests.

All of them run, and the first failure gives the exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys

from .environment import HOST, ROOT

# Inside ComfyUI the pack is a package, and its modules import each other relatively. The type
# checker sees it in the same way: as the package tokenflow_pack, by a link, whatever its folder.
PACK = "tokenflow_pack"
TYPED = ("tokenflow_ops", "reporting", "host", "modes", "nodes", "launch", "cluster", "demo")


def run(pytest_arguments: list[str]) -> int:
    """Runs the checks in the environment of this Python.

    Returns the first exit code that is not zero.
    """
    link = HOST / "typing" / PACK
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.resolve() != ROOT:
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT, target_is_directory=True)
    # Every process of pytest keeps a ComfyUI in memory, and threads of several processes on one
    # core wait for each other. One more than there are cores: each waits for servers and workers.
    processes = min(4, (os.cpu_count() or 1) + 1)
    environment = os.environ | ({} if pytest_arguments else {"OMP_NUM_THREADS": "1"})
    packages = [
        word
        for name in TYPED
        if (ROOT / name / "__init__.py").exists()
        for word in ("-p", f"{PACK}.{name}")
    ]
    # In the order of tests/conftest.py, files with the longest tests first.
    shared = ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]
    commands = [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["mypy", *packages],
        ["pydoclint.main", "-q", *TYPED],
        ["launch.judges"],
        ["pytest", *(pytest_arguments or shared)],
    ]
    codes = []
    for command in commands:
        print(f"== {' '.join(command)}", flush=True)
        codes.append(
            subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment).returncode
        )
    return next((code for code in codes if code), 0)

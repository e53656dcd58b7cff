"""The floors of the house: imports go downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# What each floor may not import: ComfyUI's modules by name, the floors above by relative import.
FORBIDDEN = {
    "tokenflow_ops": {"comfy", "comfy_api", "folder_paths", "nodes", "host", "ray"},
    "host": {"..nodes", "ray"},
    "nodes": {"ray"},
    "launch": {"comfy", "comfy_api", "folder_paths", "ray", "cluster"},
    "cluster": {"comfy", "comfy_api", "folder_paths"},
}


def imports(path: Path) -> set[str]:
    """First names of the modules a file imports, `..name` for the neighbours of its package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {"." * (node.level if node.level > 1 else 0) + name.split(".")[0] for name in names}
    return found


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_floor_imports_what_is_above_it(floor: str) -> None:
    # The launcher's one file whose business is to bring ComfyUI into the process, and what a worker's ComfyUI loads as custom nodes.
    inside = {ROOT / "launch" / "inprocess.py", *(ROOT / "cluster" / "host_nodes").glob("*.py")}
    files = [path for path in (ROOT / floor).rglob("*.py") if path not in inside]
    assert files
    for path in files:
        assert not imports(path) & FORBIDDEN[floor], path


def test_the_method_imports_without_comfyui() -> None:
    probe = "import importlib, pkgutil, sys, tokenflow_ops as t; [importlib.import_module(m.name) for m in "
    probe += "pkgutil.walk_packages(t.__path__, 'tokenflow_ops.')]; assert not any(m.split('.')[0] == 'comfy' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)

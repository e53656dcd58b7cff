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


# What no ComfyUI starts without. All else comes by `tokenflow_ops.libraries`, which says what is missing where it is needed.
HOSTS = {"PIL", "numpy", "safetensors", "torch"}
MODULES = {"comfy", "comfy_api", "comfy_extras", "comfyui_version", "folder_paths", "latent_preview", "nodes"}


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is imported for type checkers alone."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def imports(path: Path, tree: ast.AST | None = None) -> set[str]:
    """First names of the modules a file imports, `..name` for the neighbours of its package."""
    found: set[str] = set()
    for node in ast.walk(tree or ast.parse(path.read_text())):
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


@pytest.mark.parametrize("floor", ["tokenflow_ops", "host", "nodes"])
def test_libraries_that_a_host_may_lack_are_imported_in_one_place(floor: str) -> None:
    for path in (ROOT / floor).rglob("*.py"):
        found = imports(path, WithoutTypes().visit(ast.parse(path.read_text())))
        neighbours = {file.stem for file in path.parent.iterdir()}
        assert {name for name in found if name.isidentifier()} <= sys.stdlib_module_names | HOSTS | MODULES | neighbours, path


def test_the_method_imports_without_comfyui() -> None:
    probe = "import importlib, pkgutil, sys, tokenflow_ops as t; [importlib.import_module(m.name) for m in "
    probe += "pkgutil.walk_packages(t.__path__, 'tokenflow_ops.')]; assert not any(m.split('.')[0] == 'comfy' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)

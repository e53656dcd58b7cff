"""The floors of the house: imports go downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# Every floor of the pack imports only from those below it.
FLOORS = ["tokenflow_ops", "reporting", "host", "modes", "nodes"]
# What else a floor may not import: ComfyUI's modules, Ray, and what is built on it.
COMFYUI = {"comfy", "comfy_api", "folder_paths"}
FORBIDDEN = {
    "tokenflow_ops": {*COMFYUI, "ray"},
    "reporting": {*COMFYUI, "ray"},
    "host": {"ray"},
    "modes": {"ray"},
    "nodes": {"ray"},
    "launch": {*COMFYUI, "ray", "cluster"},
    "cluster": COMFYUI,
}
MOST = 12  # modules side by side in a room


# What no ComfyUI starts without. All else comes by `tokenflow_ops.libraries`, which says what is
# missing where it is needed.
HOSTS = {"PIL", "av", "numpy", "safetensors", "torch"}
MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "folder_paths",
    "latent_preview",
    "nodes",
}


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is imported for type checkers alone."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def imports(path: Path, tree: ast.AST | None = None) -> set[str]:
    """The rooms and libraries a file imports from: top folders of the project as /name, libraries
    by their first name.
    """
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            above = package[: len(package) - node.level + 1]
            found |= {f"/{[*above, *name.split('.')][0]}" for name in names}
    return found


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_floor_imports_what_is_above_it(floor: str) -> None:
    # The launcher's one file whose business is to bring ComfyUI into the process, and what a
    # worker's ComfyUI loads as custom nodes.
    inside = {
        ROOT / "launch" / "comfyui" / "inprocess.py",
        *(ROOT / "cluster" / "host_nodes").glob("*.py"),
    }
    files = [path for path in (ROOT / floor).rglob("*.py") if path not in inside]
    above = {f"/{name}" for name in FLOORS[FLOORS.index(floor) + 1 :]} if floor in FLOORS else set()
    assert files
    for path in files:
        assert not imports(path) & (FORBIDDEN[floor] | above), path


def test_a_room_can_be_looked_over() -> None:
    for top in (*FORBIDDEN, "bench", "demo", "tests"):
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= MOST, (folder, sorted(modules))


@pytest.mark.parametrize("floor", FLOORS)
def test_libraries_that_a_host_may_lack_are_imported_in_one_place(floor: str) -> None:
    for path in (ROOT / floor).rglob("*.py"):
        found = imports(path, WithoutTypes().visit(ast.parse(path.read_text())))
        assert {
            name for name in found if not name.startswith("/")
        } <= sys.stdlib_module_names | HOSTS | MODULES, path


def test_the_method_imports_without_comfyui() -> None:
    probe = (
        "import importlib, pkgutil, sys, tokenflow_ops as t; [importlib.import_module(m.name) "
        "for m in pkgutil.walk_packages(t.__path__, 'tokenflow_ops.')]; "
        "assert not any(m.split('.')[0] == 'comfy' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)

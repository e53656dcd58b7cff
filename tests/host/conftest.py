"""Puts the real ComfyUI into this process and imports the pack as ComfyUI does, under the name tokenflow_pack.

`import nodes` in these tests is ComfyUI's file; the pack's modules are `tokenflow_pack.nodes.x` and so on.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")


def import_comfyui() -> None:
    """Makes ComfyUI's modules importable, before anything else of the same name, on the CPU where there is nothing better."""
    sys.path.insert(0, str(COMFYUI))
    argv, sys.argv = sys.argv, sys.argv[:1]
    from comfy.cli_args import args

    sys.argv = argv
    args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())


def import_pack() -> None:
    """Imports the pack from its folder, whatever the folder is called."""
    spec = importlib.util.spec_from_file_location("tokenflow_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tokenflow_pack"] = module
    spec.loader.exec_module(module)


import_comfyui()
import_pack()


@pytest.fixture(scope="session", autouse=True)
def _folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sends what nodes write in this process to folders of their own."""
    import folder_paths

    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output")))
    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))

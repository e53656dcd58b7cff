"""Puts the real ComfyUI into this process and imports the pack as ComfyUI does,
under the name tokenflow_pack.

`import nodes` in these tests is ComfyUI's file;
the pack's modules are `tokenflow_pack.nodes.x` and so on.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.comfyui.inprocess import ROOT, import_comfyui, import_pack

import_comfyui(Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI"))
import_pack()


@pytest.fixture(scope="session", autouse=True)
def _folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sends what the pack writes in this process to folders of their own."""
    import folder_paths

    folder_paths.set_input_directory(str(tmp_path_factory.mktemp("input")))
    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output")))
    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))

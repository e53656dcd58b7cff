"""Puts the real ComfyUI into this process and imports the pack as ComfyUI does,
under the name tokenflow_pack.

`import nodes` in these tests is ComfyUI's file;
the pack's modules are `tokenflow_pack.nodes.x` and so on.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.comfyui.inprocess import ROOT, import_comfyui, import_pack

from .once import once_a_module, once_a_session

import_comfyui(Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI"))
import_pack()


@pytest.fixture(scope="session", autouse=True)
def _folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sends what the pack writes in this process to folders of their own."""
    import folder_paths

    folder_paths.set_input_directory(str(tmp_path_factory.mktemp("input")))
    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output")))
    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))


@pytest.fixture(scope="session", autouse=True)
def _shared() -> Iterator[None]:
    """Drops what tests of several modules share: models, inversions, matches."""
    yield
    once_a_session.clear()


@pytest.fixture(scope="module", autouse=True)
def _shared_in_module() -> Iterator[None]:
    """Drops what the tests of one module share, and unloads all models.

    An error that a test keeps takes its clones of a model with it when the collector finds them.
    That leaves empty places in the host's list of loaded models, over which its ControlNets with
    an autoencoder stumble.
    """
    from comfy import model_management

    yield
    once_a_module.clear()
    model_management.unload_all_models()
    gc.collect()
    model_management.current_loaded_models.clear()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Computes on one core: sums in another order are other bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def inference_mode() -> Iterator[None]:
    """Runs tests as the host runs nodes."""
    import torch

    with torch.inference_mode():
        yield

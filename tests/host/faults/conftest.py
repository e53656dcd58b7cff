"""A host of its own for every file of tests, which knows how good runs end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from launch.comfyui.inprocess import ROOT

if TYPE_CHECKING:
    from torch import Tensor

    from .tools.harness import Bench


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The latents of the plain run in a process that has never seen the pack."""
    file = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    subprocess.run(
        [sys.executable, "-m", "tests.host.faults.tools.plain", str(file)],
        cwd=ROOT,
        check=True,
        timeout=300,
        capture_output=True,
    )
    return load_file(file)["latents"]


@pytest.fixture(scope="module")
def bench(reference: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A host with the pack's nodes and those that begin and end a prompt.

    It has folders of its own.
    """
    import folder_paths
    from tokenflow_pack.nodes import TokenFlowExtension

    import nodes

    from .tools.graph import Keep, Ready
    from .tools.harness import Bench

    ours = {
        node.GET_SCHEMA().node_id: node
        for node in asyncio.run(TokenFlowExtension().get_node_list())
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, node in {**ours, "Ready": Ready, "Keep": Keep}.items():
            patched.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
        for name in ("output", "temp", "user"):
            patched.setattr(folder_paths, f"{name}_directory", str(tmp_path_factory.mktemp(name)))
        patched.setattr(Ready, "model", None)
        yield Bench(Path(folder_paths.get_output_directory()), reference)
    Keep.kept.clear()
    gc.unfreeze()

"""What all tests share: where ComfyUI is, and one running server for those that ask for it.

Nothing here imports ComfyUI: tests/ops runs without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real ComfyUI server with the pack linked in: `launch.server.Server`."""
    from launch.environment import link_pack
    from launch.server import Server

    link_pack(COMFYUI)
    folder = tmp_path_factory.mktemp("server")
    more = folder / "more.yaml"
    more.write_text(f"tests:\n    custom_nodes: {ROOT / 'tests' / 'server_nodes'}\n")
    options = ("--extra-model-paths-config", str(more))
    with Server(COMFYUI, folder, folder / "output", folder / "server.log", options=options) as running:
        yield running


@pytest.fixture(scope="session")
def queue(server: Any) -> Callable[..., Any]:
    """Runs an API prompt on the server: `queue(prompt) -> launch.client.Result`; raises `launch.client.PromptError`."""
    from launch.client import run_prompt

    return lambda prompt, *rest: run_prompt(server.address, prompt, *rest)

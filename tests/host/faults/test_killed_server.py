"""A server that is killed while it saves: after its restart files are whole or absent,
and what it has left goes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launch.comfyui.client import run_prompt
from launch.comfyui.server import Server
from launch.environment import link_pack
from tests.conftest import COMFYUI

from .tools.served import edited, saving

# Of the server's custom nodes: where the mark is, the next file that is made sure to be on the disk
# never gets there.
STALL = """
import os, pathlib, time
MARK, FSYNC = pathlib.Path({mark!r}), os.fsync
def stall(descriptor):
    if MARK.exists():
        MARK.unlink()
        time.sleep(600)
    FSYNC(descriptor)
os.fsync = stall
NODE_CLASS_MAPPINGS = {{}}
"""


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server whose folders outlive it."""
    more = folder / "more.yaml"
    more.write_text(f"tests:\n    custom_nodes: {folder / 'nodes'}\n")
    with Server(
        COMFYUI,
        folder,
        folder / "output",
        folder / "log",
        options=("--extra-model-paths-config", str(more)),
    ) as server:
        yield server


def ours(folder: Path, pattern: str = "*") -> set[str]:
    """The pack's files and folders below."""
    return {
        path.name
        for path in folder.rglob(pattern)
        if "tokenflow-" in path.name or path.name.endswith(".inversion.safetensors")
    }


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_killed_while_it_saves_leaves_nothing_that_stays(tmp_path: Path) -> None:
    link_pack(COMFYUI)
    mark, output = tmp_path / "mark", tmp_path / "output"
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "stall.py").write_text(STALL.format(mark=str(mark)))
    with running(tmp_path) as server:
        wanted = edited(server)
        mark.touch()

        def save() -> None:
            with suppress(Exception):  # the connection ends with the server
                run_prompt(server.address, saving())

        queued = threading.Thread(target=save)
        queued.start()
        wait_for(lambda: not mark.exists())
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        queued.join(60)
    assert not list(output.rglob("*.inversion.safetensors"))
    (left,) = ours(output)
    assert any(name.startswith("tokenflow-features-") for name in ours(tmp_path / "temp"))
    (tmp_path / "temp" / "tokenflow-0.path").touch()  # as of a path to noise that is kept in a file
    for path in (output / left, *(output / left).iterdir()):
        os.utime(path, (0, 0))  # long ago
    with running(tmp_path) as server:
        assert not ours(tmp_path / "temp")
        assert edited(server).equal(wanted)
        run_prompt(server.address, saving())
    assert ours(output) == {"kept_00001_.inversion.safetensors"}

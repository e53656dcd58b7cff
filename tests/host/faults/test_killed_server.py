"""A server that is killed while it saves: after its restart files are whole or absent,
and what it has left goes.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launch.comfyui.client import PromptError, run_prompt
from launch.comfyui.server import Server
from launch.environment import link_pack
from tests.conftest import COMFYUI

from .tools.served import Prompt, applied, edited, saving

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

# The second run of the model never gets the answer to its second evaluation to the disk.
STALL_LATE = """
import os, pathlib, time
MARK, REPLACE = pathlib.Path({mark!r}), os.replace
def stall(part, path):
    path = pathlib.Path(path)
    if MARK.exists() and path.name == "00001.safetensors" and len(os.listdir(path.parents[1])) == 2:
        MARK.unlink()
        time.sleep(600)
    REPLACE(part, path)
os.replace = stall
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


def killed(server: Server, prompt: Prompt, mark: Path) -> None:
    """Queues a prompt, and kills the server when it has come to the mark."""
    mark.touch()

    def queue() -> None:
        with suppress(Exception):  # the connection ends with the server
            run_prompt(server.address, prompt)

    queued = threading.Thread(target=queue)
    queued.start()
    wait_for(lambda: not mark.exists())
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    queued.join(60)


def test_a_server_killed_while_it_saves_leaves_nothing_that_stays(tmp_path: Path) -> None:
    link_pack(COMFYUI)
    mark, output = tmp_path / "mark", tmp_path / "output"
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "stall.py").write_text(STALL.format(mark=str(mark)))
    with running(tmp_path) as server:
        wanted = edited(server)
        killed(server, saving(), mark)
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


def test_a_run_of_a_killed_server_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Its checkpoints stay until the whole graph has come to its end. The edit is sampled by the
    host, which knows of no checkpoints.
    """
    link_pack(COMFYUI)
    mark, kept = tmp_path / "mark", tmp_path / "output" / "tokenflow_checkpoints"
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "stall.py").write_text(STALL_LATE.format(mark=str(mark)))
    prompt = applied()
    for node in ("invert", "apply"):
        prompt[node]["inputs"]["checkpoints"] = True
    with running(tmp_path) as server:
        wanted = edited(server)
        killed(server, prompt, mark)
    assert sorted(len(list(run.glob("*.safetensors"))) for run in kept.iterdir()) == [1, 2]
    failing = {**prompt, "keep": copy.deepcopy(prompt["keep"])}
    failing["keep"]["inputs"]["filename_prefix"] = "../outside"
    with running(tmp_path) as server:
        with pytest.raises(PromptError, match="keep"):
            run_prompt(server.address, failing)
        log = (tmp_path / "log").read_text()
        assert "DDIM Invert Video goes on: 2 of 2 evaluations are known" in log
        assert "Apply TokenFlow goes on: 1 of 2 evaluations are known" in log
        assert len(list(kept.iterdir())) == 2
        (file,) = run_prompt(server.address, prompt).files()
        assert load_file(server.output / file)["latent_tensor"].equal(wanted)
        wait_for(lambda: not kept.exists())

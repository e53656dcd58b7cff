"""A server that is killed while it saves: after its restart files are whole or absent, and what it has left goes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from launch.client import run_prompt
from launch.environment import link_pack
from launch.server import Server
from tests.conftest import COMFYUI

# Of the server's custom nodes: where the mark is, the next file that is made sure to be on the disk never gets there.
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
    with Server(COMFYUI, folder, folder / "output", folder / "log", options=("--extra-model-paths-config", str(more))) as server:
        yield server


def prompt(save: bool) -> dict[str, Any]:
    """An edit of two grey frames on the embedded model, with features on the disk. save: the inversion instead of the edit."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    model, vae, prompted = ["demo", 0], ["demo", 2], {name: [name, 0] for name in ("positive", "negative")}
    ours = {
        "demo": node("TokenFlowLoadDemoModel"),
        "positive": node("CLIPTextEncode", clip=["demo", 1], text="a red ball on grass"),
        "negative": node("CLIPTextEncode", clip=["demo", 1], text=""),
        "frames": node("EmptyImage", width=64, height=64, batch_size=2, color=0x808080),
        "encoded": node("VAEEncode", pixels=["frames", 0], vae=vae),
        "invert": node("TokenFlowInvertVideo", model=model, latents=["encoded", 0], positive=["positive", 0], cfg=1.0, steps=2),
        "extract": node("TokenFlowExtractFeatures", model=model, inversion=["invert", 0], storage="disk"),
        "build": node("TokenFlowBuildCorrespondences", features=["extract", 0], keyframe_interval=2, backend="torch"),
        "edit": node("TokenFlowSampler", model=model, correspondences=["build", 0], cfg=4.0, **prompted),
        "keep": node("SaveLatent", samples=["edit", 0], filename_prefix="edited"),
    }
    ours["invert"]["inputs"] |= {"scheduler": "normal", "refinement": "none", "iterations": 0, "depth": 1.0}
    ours["extract"]["inputs"] |= {"layers": "all", "steps": "every", "every": 1, "noise_level": 0.1}
    ours["build"]["inputs"] |= {"keyframes": "fixed", "seed": 0, "search_window": 0}
    ours["edit"]["inputs"] |= {"sampler_name": "euler", "seed": 0, "start": 1.0, "consistency": "tokenflow", "attended_keyframes": 0}
    saved = {"save": node("TokenFlowSaveInversion", inversion=["invert", 0], filename_prefix="kept")}
    return {**ours, **saved} if save else ours


def edited(folder: Path, server: Server) -> Any:
    """The edit's latents."""
    (file,) = [name for name in run_prompt(server.address, prompt(save=False)).files() if name.startswith("edited")]
    return load_file(folder / "output" / file)["latent_tensor"]


def ours(folder: Path, pattern: str = "*") -> set[str]:
    """The pack's files and folders below."""
    return {path.name for path in folder.rglob(pattern) if "tokenflow-" in path.name or path.name.endswith(".inversion.safetensors")}


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
        wanted = edited(tmp_path, server)
        mark.touch()

        def save() -> None:
            with suppress(Exception):  # the connection ends with the server
                run_prompt(server.address, prompt(save=True))

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
        assert edited(tmp_path, server).equal(wanted)
        run_prompt(server.address, prompt(save=True))
    assert ours(output) == {"kept_00001_.inversion.safetensors"}

"""`run.py demo` on a clip, prompts and a checkpoint of one's own."""

from __future__ import annotations

import json
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from launch import commands, cutting, demo
from launch.checkpoint import EMBEDDED, FLUX, OTHER, SD1, SD2, SD3, SDXL, read_checkpoint
from launch.comfyui.workflow import to_prompt
from launch.cutting import put_clip
from launch.wanted import Wanted, WantedError

from ..cluster.made import write_clip
from ..conftest import COMFYUI, ROOT

PROMPTS = ["--prompt", "a gold ball", "--source-prompt", "a grey wall"]
WHOLE = ("cond_stage_model.x", "first_stage_model.x")


def write_header(path: Path, tensors: dict[str, tuple[int, ...]], missing: int = 0) -> Path:
    """A safetensors file of tensors of a byte each, without its last bytes."""
    entries = {
        name: {"dtype": "U8", "shape": shape, "data_offsets": [i, i + 1]}
        for i, (name, shape) in enumerate(tensors.items())
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(len(tensors) - missing))
    return path


def sd1(path: Path, **options: int) -> Path:
    """What the header of an SD 1.x says."""
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    return write_header(path, {key: (320, 768), **dict.fromkeys(WHOLE, (1,))}, **options)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "My clip.MP4", 80, frames=6)


def asked(*words: object) -> Wanted:
    options = commands.parser().parse_args(["demo", *map(str, words)])
    return Wanted.read(options, COMFYUI)


def test_what_cannot_be_done_is_said_before_anything_is_installed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(words: Any) -> Any:
        raise AssertionError("it installs")

    monkeypatch.setattr(commands, "prepare", prepare)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    parts = write_header(tmp_path / "parts.safetensors", {"double_blocks.0.x": (1,)})
    lfs = tmp_path / "lfs.safetensors"
    lfs.write_text("version https://git-lfs.github.com/spec/v1\n")
    other = write_header(tmp_path / "other.safetensors", {"codec.basis": (1,)})
    for words, said in {
        ("--clip", tmp_path / "none.mp4", *PROMPTS): "none.mp4 is not there",
        ("--clip", tmp_path, *PROMPTS): "is a folder, not a video",
        ("--clip", text, *PROMPTS): "text.mp4 is not a video",
        ("--clip", ROOT / "README.md", *PROMPTS): "README.md is not a video",
        ("--clip", clip): "--prompt is missing",
        ("--clip", clip, "--prompt", "gold"): "--source-prompt is missing: say what the clip shows",
        ("--prompt", "  "): "--prompt is missing",
        ("--checkpoint", "none.safetensors"): "models/checkpoints",
        ("--checkpoint", "../../main.py"): "there is no checkpoint ../../main.py",
        ("--checkpoint", tmp_path): "is a folder",
        ("--checkpoint", clip): "ends in none of .safetensors",
        ("--checkpoint", lfs): "is a Git LFS pointer",
        ("--checkpoint", parts): "no text encoder and no autoencoder in",
        ("--checkpoint", other): "leave the option out",
        ("--checkpoint", sd1(tmp_path / "cut.safetensors", missing=1)): "is cut short",
        ("--workflow", tmp_path / "none.json"): "there is no file",
    }.items():
        assert commands.main(["demo", *map(str, words)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --")
        assert said in line


def test_a_checkpoint_takes_the_template_of_its_family(tmp_path: Path) -> None:
    unet = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    families: dict[str, tuple[str, tuple[int, ...]]] = {
        SD1: (unet, (320, 768)),
        SD2: (unet, (320, 1024)),
        SDXL: (unet, (640, 2048)),
        SD3: ("model.diffusion_model.joint_blocks.0.x", (1,)),
        FLUX: ("double_blocks.0.img_attn.qkv.weight", (1,)),
        OTHER: ("blocks.0.x", (1,)),
    }
    for family, (name, shape) in families.items():
        path = write_header(tmp_path / "a.safetensors", {name: shape, **dict.fromkeys(WHOLE, (1,))})
        assert read_checkpoint(path).family == family
        assert not read_checkpoint(path).lacks
    assert asked("--checkpoint", path).workflow.name == "sd15_pnp.json"
    assert read_checkpoint(ROOT / "demo" / "model.safetensors").family == EMBEDDED
    assert asked("--checkpoint", ROOT / "demo" / "model.safetensors").workflow == asked().workflow


@pytest.mark.parametrize("template", ["quickstart", "sd15_pnp", "sdxl", "sd35", "flux"])
def test_templates_have_a_place_for_all_that_is_asked_for(
    template: str, clip: Path, tmp_path: Path, server: Any
) -> None:
    path = ROOT / "workflows" / f"{template}.json"
    checkpoint = sd1(tmp_path / "mine.safetensors")
    words = ["--workflow", path, "--clip", clip, *PROMPTS, "--frames", 3]
    wanted = asked(*words, "--checkpoint", checkpoint)
    assert asked(*wanted.words()) == wanted
    saved, info = json.loads(path.read_text()), server.get("/object_info")
    assert wanted.length(saved) > 3
    prompt = wanted.filled(to_prompt(saved, info), info)
    values = [value for entry in prompt.values() for value in entry["inputs"].values()]
    assert values.count("a gold ball") == values.count("a grey wall") == 1
    assert values.count("own_clip.mp4") == 1
    assert all(value[0] in prompt for value in values if isinstance(value, list))
    (loader,) = (
        node for node, entry in prompt.items() if entry["class_type"] == "CheckpointLoaderSimple"
    )
    assert prompt[loader]["inputs"] == {"ckpt_name": "mine.safetensors"}
    for entry in prompt.values():
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] == loader:
                assert {"model": 0, "clip": 1, "vae": 2}[name] == value[1]
    cut = [entry["inputs"]["length"] for entry in prompt.values() if "length" in entry["inputs"]]
    assert cut == [3]


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_a_large_clip_is_cut_behind_what_is_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, put = write_clip(tmp_path / "long.mp4", 10, frames=24), tmp_path / "put.mp4"
    assert put_clip(clip, put, 2) == 24
    assert put.read_bytes() == clip.read_bytes()
    monkeypatch.setattr(cutting, "MOST", 10 * 12 * 32 * 32)
    assert put_clip(clip, put, 2) == 24
    found = frames(put)
    assert 2 <= len(found) < 20
    for before, after in islice(zip(frames(clip), found, strict=False), 2):
        assert np.array_equal(before, after)
    put_clip(clip, put, 0)
    assert put.read_bytes() == clip.read_bytes()
    clip.write_bytes(clip.read_bytes()[:100])
    with pytest.raises(WantedError, match="cannot be decoded"):
        put_clip(clip, put, 2)


def short(workflow: Path, target: Path) -> Path:
    """The workflow with a small picture and two steps."""
    saved = json.loads(workflow.read_text())
    for node in saved["nodes"]:
        values = {"ImageScale": ["lanczos", 64, 64, "center"]}.get(node["type"])
        if node["type"] == "TokenFlowInvertVideo":
            values = [1.0, 2, *node["widgets_values"][2:]]
        node["widgets_values"] = values or node.get("widgets_values")
    target.write_text(json.dumps(saved))
    return target


def test_a_clip_is_edited_with_a_checkpoint_wherever_both_lie(
    clip: Path,
    tmp_path: Path,
    tiny_sd1: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("ROOT", "HOST", "OUTPUT"):
        monkeypatch.setattr(demo, name, tmp_path / ("" if name == "ROOT" else name.lower()))
    workflow = short(ROOT / "workflows" / "quickstart.json", tmp_path / "short.json")
    words = ["--clip", clip, *PROMPTS, "--frames", 2, "--checkpoint", tiny_sd1]
    code = demo.run(COMFYUI, asked("--workflow", workflow, *words))
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "editing the first 2 of 6 frames of My clip.MP4" in said.out
    (video,) = (tmp_path / "output" / "tokenflow").glob("edit_*.mp4")
    assert len(frames(video)) == 2
    with av.open(str(video)) as opened:
        prompt = json.loads(opened.metadata["prompt"])
        assert "workflow" not in opened.metadata
    inputs = [entry["inputs"] for entry in prompt.values()]
    assert {"file": "own_clip.mp4"} in inputs
    assert {"ckpt_name": "sd1.safetensors"} in inputs

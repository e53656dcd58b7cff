"""The workflows that the pack offers, as a user runs them on a real server,
on few small frames in few steps.

Where a workflow asks for Stable Diffusion 1.5, the embedded model takes its place, which has that
layout; where it asks for SDXL a tiny model of SDXL's; where for a transformer the embedded one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tomllib
import torch
from comfy.cldm.cldm import ControlNet
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.looking.clips import EDITS, called
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from launch.comfyui.subgraphs import BYPASSED
from launch.comfyui.workflow import Prompt, to_prompt

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "workflows").glob("*.json"))
FRAMES = 3
TRANSFORMERS = ["flux", "sd35", "transformer"]
SIZES = {"flux": 768, "sd35": 1024, "sdxl": 1024}
# Loaders of one part of a model, and which output of Load Demo Model that part is.
PARTS = {"UNETLoader": 0, "CLIPLoader": 1, "DualCLIPLoader": 1, "VAELoader": 2}
SMALL: dict[str, dict[str, Any]] = {
    "ImageFromBatch": {"length": FRAMES},
    "TokenFlowInvertVideo": {"steps": 3},
    "TokenFlowBuildCorrespondences": {"keyframe_interval": 2, "backend": "torch"},
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "KSampler": {"steps": 2},
}


class Run:
    """A workflow that is run, changed and run again; what did not change the server keeps."""

    def __init__(
        self,
        server: Any,
        queue: Callable[..., Any],
        name: str,
        bypassed: tuple[str, ...] = (),
        muted: bool = True,
    ) -> None:
        self.server, self.queue = server, queue
        workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
        for node in workflow["nodes"]:
            if node["type"] in bypassed:
                node["mode"] = BYPASSED
            elif not muted:
                node["mode"] = 0
        self.prompt: Prompt = to_prompt(workflow, server.get("/object_info"))
        for entry in list(self.prompt.values()):
            entry["inputs"].update(SMALL.get(entry["class_type"], {}))
            if entry["class_type"] == "CheckpointLoaderSimple":
                self.replace_checkpoint(entry)
        self.replace_parts()
        for node in [*self.nodes("TokenFlowSampler"), *self.nodes("VAEEncode")]:
            inputs = {"samples": [node, 0], "filename_prefix": "latents/test"}
            self.prompt[f"latents of {node}"] = {
                "class_type": "SaveLatent",
                "inputs": inputs,
                "_meta": {"title": "Save Latent"},
            }

    def replace_checkpoint(self, loader: Any) -> None:
        """By a model that can be had, of the same layout, on smaller pictures."""
        self.make_smaller()
        name = loader["inputs"]["ckpt_name"]
        if "xl_" not in name:
            kind = {"model": "transformer"} if name.startswith("sd3") else {}
            loader.update({"class_type": "TokenFlowLoadDemoModel", "inputs": kind})
            return
        self.prompt["words"] = {
            "class_type": "TokenFlowLoadDemoModel",
            "inputs": {},
            "_meta": {"title": "Words"},
        }
        loader.update(
            {"class_type": "TinyCheckpoint", "inputs": {"layout": "SDXL", "clip": ["words", 1]}}
        )

    def replace_parts(self) -> None:
        """Model, text encoder and autoencoder in files of their own: by the embedded ones."""
        parts = {node: PARTS[kind] for kind in PARTS for node in self.nodes(kind)}
        if not parts:
            return
        self.make_smaller()
        for entry in self.prompt.values():
            for name, value in entry["inputs"].items():
                if isinstance(value, list) and value[0] in parts:
                    entry["inputs"][name] = ["model", parts[value[0]]]
        for node in parts:
            del self.prompt[node]
        self.prompt["model"] = {
            "class_type": "TokenFlowLoadDemoModel",
            "inputs": {"model": "transformer"},
            "_meta": {"title": "Model"},
        }

    def make_smaller(self) -> None:
        for node in self.nodes("ImageScale"):
            self.prompt[node]["inputs"].update({"width": 64, "height": 64})

    def __call__(self, **changes: dict[str, Any]) -> Run:
        """Runs it with other inputs of a type's nodes: `run(TokenFlowSampler={"start": 0.5})`."""
        for kind, inputs in changes.items():
            for node in self.nodes(kind):
                self.prompt[node]["inputs"].update(inputs)
        self.result = self.queue(self.prompt)
        return self

    def nodes(self, kind: str) -> list[str]:
        return [node for node, entry in self.prompt.items() if entry["class_type"] == kind]

    def latents(self, kind: str = "TokenFlowSampler") -> Tensor:
        """What the only node of a type gave, (N, C, h, w)."""
        (node,) = self.nodes(kind)
        return self.latents_of(node)

    def latents_of(self, node: str) -> Tensor:
        """What a node gave, (N, C, h, w)."""
        (saved,) = self.result.outputs[f"latents of {node}"]["latents"]
        found = load_file(self.server.output / saved["subfolder"] / saved["filename"])[
            "latent_tensor"
        ]
        assert len(found) == FRAMES
        assert torch.isfinite(found).all()
        return found

    def pictures(self, kind: str) -> Tensor:
        """What the only node of a type showed, (N, 3, H, W) in [0, 1]."""
        (node,) = self.nodes(kind)
        return shown(self.server, self.result.outputs[node])

    def check_videos(self) -> None:
        """Every Save Video node has saved all frames."""
        videos = [
            self.server.output / name for name in self.result.files() if name.endswith(".mp4")
        ]
        assert len(videos) == len(self.nodes("SaveVideo")) > 0
        for video in videos:
            with av.open(str(video)) as opened:
                assert sum(1 for _ in opened.decode(video=0)) == FRAMES


def shown(server: Any, output: Any) -> Tensor:
    """What a node showed, (N, 3, H, W) in [0, 1]."""
    files = [server.work / "temp" / one["filename"] for one in output["images"]]
    return torch.stack([pil_to_tensor(Image.open(file).convert("RGB")) / 255 for file in files])


@pytest.fixture
def workflow(server: Any, queue: Callable[..., Any]) -> Callable[..., Run]:
    """`workflow(name, bypassed types)`: a workflow made small. muted=False: what is muted runs."""
    return lambda name, *bypassed, muted=True: Run(server, queue, name, bypassed, muted)


@pytest.fixture
def own_clip(server: Any) -> str:
    """The name of a clip of five frames of 134 x 70 pixels, 12 a second, with sound."""
    file = server.input / "own.mp4"
    noise = np.random.default_rng(0)
    with av.open(str(file), "w") as container:
        video, sound = (
            container.add_stream("libx264", 12),
            container.add_stream("aac", 44100, layout="mono"),
        )
        video.width, video.height, video.pix_fmt = 134, 70, "yuv420p"
        for _ in range(5):
            container.mux(
                video.encode(
                    av.VideoFrame.from_ndarray(
                        noise.integers(0, 256, (70, 134, 3), np.uint8), format="rgb24"
                    )
                )
            )
        frame = av.AudioFrame.from_ndarray(
            noise.normal(0, 0.1, (1, 44100 * 5 // 12)).astype(np.float32),
            format="fltp",
            layout="mono",
        )
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return file.name


@pytest.mark.parametrize(
    ("bypassed", "size", "told"),
    [((), (128, 128), 0), (("ImageScale",), (132, 68), 1)],
    ids=["scaled", "as large as it is"],
)
def test_a_clip_of_ones_own_is_edited_and_compared_at_its_speed_with_its_sound(
    server: Any,
    workflow: Callable[..., Run],
    own_clip: str,
    bypassed: tuple[str, ...],
    size: tuple[int, int],
    told: int,
) -> None:
    run = workflow("public_code", *bypassed)(LoadVideo={"file": own_clip})
    run.check_videos()
    edits = set()
    for name in run.result.files():
        if name.endswith(".mp4"):
            with av.open(str(server.output / name)) as written:
                (video,), (sound,) = written.streams.video, written.streams.audio
                assert video.average_rate == 12
                assert float(sound.duration * sound.time_base) == pytest.approx(
                    FRAMES / 12, abs=0.05
                )
                edits.add((video.width, video.height))
    assert size in edits
    words = "\n".join(text for texts in run.result.texts().values() for text in texts)
    # Beside the figures.
    assert (
        words.count("source: the middle 132 x 68 of 134 x 70 pixels, as VAE Encode crops") == told
    )


def blueprint(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A blueprint, which searches by torch, and the node that stands for it."""
    saved = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text())
    (standing,) = saved["nodes"]
    (matching,) = (
        node
        for node in saved["definitions"]["subgraphs"][0]["nodes"]
        if node["type"] == "TokenFlowBuildCorrespondences"
    )
    matching["widgets_values"][3] = "torch"
    return saved, standing


@pytest.mark.parametrize("masked", [False, True])
def test_the_blueprint_edits_a_clip(server: Any, queue: Callable[..., Any], masked: bool) -> None:
    """Between a loader and a saver, as users put it, and with a mask."""
    saved, standing = blueprint("Edit a video (TokenFlow)")
    values = ["a wood star on grass", "an ice star on grass", 0.5, 5.0, 4, FRAMES, 64, 64]
    standing |= {"id": 5, "widgets_values": values}
    for slot, link in zip(standing["inputs"], (1, 2, 3, 4), strict=False):
        slot["link"] = link
    saved["nodes"] += [
        {"id": 6, "type": "LoadVideo", "widgets_values": ["tokenflow_star.mp4"]},
        {"id": 7, "type": "TokenFlowLoadDemoModel"},
        {
            "id": 8,
            "type": "SaveVideo",
            "widgets_values": ["blueprint", "auto", "auto"],
            "inputs": [{"name": "video", "type": "VIDEO", "link": 5}],
        },
    ]
    saved["links"] = [
        [1, 6, 0, 5, 0, "VIDEO"],
        *([2 + i, 7, i, 5, 1 + i, kind] for i, kind in enumerate(("MODEL", "CLIP", "VAE"))),
        [5, 5, 0, 8, 0, "VIDEO"],
    ]
    if masked:
        (slot,) = (i for i, one in enumerate(standing["inputs"]) if one["type"] == "MASK")
        standing["inputs"][slot]["link"] = 6
        saved["nodes"].append({"id": 9, "type": "SolidMask", "widgets_values": [0.0, 64, 64]})
        saved["links"].append([6, 9, 0, 5, slot, "MASK"])
    prompt = to_prompt(saved, server.get("/object_info"))
    (sampler,) = (one for one in prompt.values() if one["class_type"] == "TokenFlowSampler")
    assert ("mask" in sampler["inputs"]) == masked
    result = queue(prompt)
    (video,) = (server.output / name for name in result.files())
    with av.open(str(video)) as written:
        edited = [frame.to_ndarray(format="rgb24") for frame in written.decode(video=0)]
    with av.open(str(server.input / "tokenflow_star.mp4")) as source:
        first = next(source.decode(video=0)).reformat(64, 64).to_ndarray(format="rgb24")
    assert len(edited) == FRAMES
    assert edited[0].shape == first.shape
    # A mask of nothing leaves the wood as it is.
    changed = float(abs(edited[0][24:40, 24:40].astype(float) - first[24:40, 24:40]).mean())
    assert (changed < 8) == masked  # 13 and 4 of 255


def test_the_blueprint_carries_keyframes(server: Any, queue: Callable[..., Any]) -> None:
    saved, standing = blueprint("Edit from keyframes (TokenFlow)")
    values = ["1", "a wood star on grass", "an ice star on grass", 0.5, 5.0, 3, 0.0]
    standing |= {"id": 5, "widgets_values": values}
    for slot, link in zip(standing["inputs"], (4, 6, 7, 8, 9), strict=False):
        slot["link"] = link

    def node(id: int, kind: str, values: list[Any], **links: int) -> dict[str, Any]:
        slots = [{"name": name, "type": "*", "link": link} for name, link in links.items()]
        return {"id": id, "type": kind, "widgets_values": values, "inputs": slots}

    saved["nodes"] += [
        node(6, "LoadVideo", ["tokenflow_star.mp4"]),
        node(7, "GetVideoComponents", [], video=1),
        node(8, "ImageFromBatch", [0, FRAMES], image=2),
        node(9, "ImageScale", ["lanczos", 64, 64, "center"], image=3),
        node(10, "ImageFromBatch", [1, 1], image=10),
        node(11, "ImageInvert", [], image=5),
        {"id": 12, "type": "TokenFlowLoadDemoModel"},
        node(13, "PreviewImage", [], images=11),
        node(14, "PreviewImage", [], images=12),
        node(15, "MaskPreview", [], mask=13),
    ]
    saved["links"] = [
        [1, 6, 0, 7, 0, "VIDEO"],
        [2, 7, 0, 8, 0, "IMAGE"],
        [3, 8, 0, 9, 0, "IMAGE"],
        [4, 9, 0, 5, 0, "IMAGE"],
        [5, 10, 0, 11, 0, "IMAGE"],
        [6, 11, 0, 5, 1, "IMAGE"],
        *([7 + i, 12, i, 5, 2 + i, kind] for i, kind in enumerate(("MODEL", "CLIP", "VAE"))),
        [10, 9, 0, 10, 0, "IMAGE"],
        [11, 9, 0, 13, 0, "IMAGE"],
        [12, 5, 0, 14, 0, "IMAGE"],
        [13, 5, 1, 15, 0, "MASK"],
    ]
    outputs = queue(to_prompt(saved, server.get("/object_info"))).outputs
    source, clip, hidden = (shown(server, outputs[node]) for node in ("13", "14", "15"))
    assert len(source) == len(clip) == len(hidden) == FRAMES
    seen = (hidden[:, :1] == 0).expand_as(clip)
    assert seen.float().mean() > 0.9
    assert (clip - (1 - source))[seen].abs().mean() < 0.03
    assert (clip[1] - (1 - source[1])).abs().max() < 1 / 128


def opened(file: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """A saved workflow, and its nodes by number."""
    saved: dict[str, Any] = json.loads(file.read_text())
    return saved, {node["id"]: node for node in saved["nodes"]}


def test_every_video_that_has_all_frames_has_the_clips_speed_and_sound() -> None:
    for file in FILES:
        saved, nodes = opened(file)
        links = {link: (nodes[origin]["type"], slot) for link, origin, slot, *_ in saved["links"]}
        (components,) = (node for node in nodes.values() if node["type"] == "GetVideoComponents")
        audio, fps = (
            next(i for i, out in enumerate(components["outputs"]) if out["name"] == name)
            for name in ("audio", "fps")
        )
        for node in nodes.values():
            if node["type"] == "CreateVideo":
                given = {slot["name"]: links.get(slot["link"]) for slot in node["inputs"]}
                assert given["fps"] == ("GetVideoComponents", fps)
                shows_some = file.stem == "reconstruction_check"  # spread over the clip
                assert given["audio"] == (None if shows_some else ("GetVideoComponents", audio))


def test_every_clip_is_cut_to_its_first_frames_and_scaled() -> None:
    for file in FILES:
        saved, nodes = opened(file)
        fed = {
            (nodes[origin]["type"], nodes[target]["type"])
            for _, origin, _, target, _, kind in saved["links"]
            if kind == "IMAGE"
        }
        assert {target for origin, target in fed if origin == "GetVideoComponents"} == {
            "ImageFromBatch"
        }
        assert {target for origin, target in fed if origin == "ImageFromBatch"} == {"ImageScale"}
        ours = any(node["type"] == "TokenFlowLoadDemoModel" for node in nodes.values())
        (scale,) = (
            node["widgets_values"] for node in nodes.values() if node["type"] == "ImageScale"
        )
        assert scale == [
            "lanczos",
            *[128 if ours else SIZES.get(file.stem, 512)] * 2,
            "center",
        ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_offered_with_its_picture_and_fits_the_nodes(server: Any, file: Path) -> None:
    assert any(file.stem in names for names in server.get("/workflow_templates").values())
    with Image.open(file.with_suffix(".jpg")) as picture:
        picture.load()
        assert picture.format == "JPEG"

    saved, known = json.loads(file.read_text()), server.get("/object_info")
    assert to_prompt(saved, known)
    for node in saved["nodes"]:
        given = {slot["name"] for slot in node["inputs"]}
        groups = known[node["type"]]["input"].values() if node["type"] in known else [{}]
        assert given <= {name for group in groups if isinstance(group, dict) for name in group}, (
            node["type"]
        )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_prompts_and_names_are_those_of_the_clips(server: Any, file: Path) -> None:
    """Prompts say what the embedded clip shows; a clip has one name, on whatever node; decibels are
    told in pictures.
    """
    prompt = to_prompt(json.loads(file.read_text()), server.get("/object_info"))
    names: dict[Any, str] = {}
    for entry in prompt.values():
        inputs = entry["inputs"]
        if entry["class_type"] == "TokenFlowInvertVideo":
            assert text_of(prompt, inputs["positive"]) == "a wood star on grass"
            assert inputs["vae"] == prompt[inputs["latents"][0]]["inputs"]["vae"]
        if entry["class_type"] in ("TokenFlowMetrics", "TokenFlowCompareClips"):
            given = (
                inputs["names"]
                if isinstance(inputs["names"], str)
                else prompt[inputs["names"][0]]["inputs"]["value"]
            )
            for name, clip in called(
                "", {socket: inputs[socket] for socket in EDITS if socket in inputs}, given
            ).items():
                assert name not in EDITS.values()
                assert names.setdefault(tuple(clip), name) == name
        if entry["class_type"] == "TokenFlowSampler":
            assert re.fullmatch("an? [a-z]+ star on [a-z]+", text_of(prompt, inputs["positive"]))


def text_of(prompt: Prompt, link: Any) -> str:
    """What a link to a prompt says, through ControlNets and guidance."""
    inputs = prompt[link[0]]["inputs"]
    if "text" in inputs:
        return str(inputs["text"])
    return text_of(prompt, inputs["positive"] if "positive" in inputs else inputs["conditioning"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_flow_models_are_inverted_and_guided_as_suits_them(server: Any, name: str) -> None:
    saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    prompt = to_prompt(saved, server.get("/object_info"))

    def only(kind: str) -> Any:
        (entry,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == kind)
        return entry

    source, edit = only("TokenFlowInvertVideo"), only("TokenFlowSampler")
    assert (source["steps"], source["scheduler"], source["cfg"]) == (28, "simple", 1)
    guidance = [prompt[one["positive"][0]]["inputs"].get("guidance") for one in (source, edit)]
    if name == "flux":
        assert (guidance, edit["cfg"]) == ([1, 3.5], 1)
        assert prompt[edit["negative"][0]]["class_type"] == "ConditioningZeroOut"
    else:
        assert guidance == [None, None]
        assert 3 <= edit["cfg"] <= 4.5
    if name == "transformer":
        assert only("TokenFlowLoadDemoModel") == {"model": "transformer"}


def test_every_loader_names_the_files_to_get_and_where_they_belong() -> None:
    folders = {
        "CheckpointLoaderSimple": "checkpoints",
        "ControlNetLoader": "controlnet",
        "UNETLoader": "diffusion_models",
        "CLIPLoader": "text_encoders",
        "DualCLIPLoader": "text_encoders",
        "VAELoader": "vae",
    }
    for file in FILES:
        for node in opened(file)[1].values():
            if node["type"] in folders:
                models = node["properties"]["models"]
                assert {model["directory"] for model in models} == {folders[node["type"]]}
                names = [model["name"] for model in models]
                assert node["widgets_values"][: len(names)] == names
                assert [name for name in node["widgets_values"] if "." in name] == names
                assert all(model["url"].endswith(f"/{model['name']}") for model in models)


def test_every_node_says_which_pack_and_version_it_is_of() -> None:
    """So that the page offers the pack where a node is missing."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for file in FILES:
        for node in opened(file)[1].values():
            if node["type"] != "MarkdownNote":
                ours = node["type"].startswith("TokenFlow")
                assert node["properties"]["cnr_id"] == ("tokenflow" if ours else "comfy-core")
                assert not ours or node["properties"]["ver"] == version


def test_sdedit_comes_closer_to_the_source_with_a_lower_start(workflow: Callable[..., Run]) -> None:
    run = workflow("sdedit")()
    run.check_videos()
    source, whole = run.latents("VAEEncode"), run.latents()
    half = run(TokenFlowSampler={"start": 0.5}).latents()
    assert 0 < (half - source).norm() < (whole - source).norm()
    fresh = run(TokenFlowSampler={"noise": "fresh, one for all frames"}).latents()
    assert (fresh - source).norm() > 2 * (half - source).norm()


def check_local(run: Run) -> float:
    """Outside the mask, one latent pixel away from it, the latents are the source's; inside they
    are others. Returns the mask's share.
    """
    masks = run.pictures("MaskPreview")[:, :1]
    assert not torch.equal(masks[0], masks[-1])
    source, edited = run.latents("VAEEncode"), run.latents()
    cell = masks.shape[-1] // source.shape[-1]
    highest = torch.nn.functional.max_pool2d(masks, cell)
    outside = torch.nn.functional.max_pool2d(highest, 3, stride=1, padding=1)[:, 0] == 0
    inside = -torch.nn.functional.max_pool2d(-masks, cell)[:, 0] == 1
    change = (edited - source).abs().amax(1)
    assert outside.any()
    assert change[outside].max() < 1e-4
    assert change[inside].mean() > 0.1
    return float(masks.mean())


def test_a_local_edit_leaves_everything_else_as_in_the_source(workflow: Callable[..., Run]) -> None:
    star = workflow("local_edit")()
    star.check_videos()
    assert 0.15 < check_local(star) < 0.4
    (side_by_side,) = (name for name in star.result.files() if "side-by-side" in name)
    with av.open(str(star.server.output / side_by_side)) as written:
        for frame in written.decode(video=0):
            source, edit = np.split(frame.to_ndarray(format="rgb24").astype(float), 2, 1)
            # The grass at the border, up to the video's own losses.
            assert abs(source[:8] - edit[:8]).mean() < 6


def saved_frames(run: Run, title: str) -> Tensor:
    """The frames of the video that a node of this title saved, (N, 3, H, W) in [0, 1]."""
    (node,) = (n for n, entry in run.prompt.items() if entry["_meta"]["title"] == title)
    (saved,) = run.result.outputs[node]["images"]
    with av.open(str(run.server.output / saved["subfolder"] / saved["filename"])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).movedim(-1, 1) / 255


def test_one_painted_frame_becomes_the_whole_clip(workflow: Callable[..., Run]) -> None:
    run = workflow("keyframes")()
    run.check_videos()
    (painted,) = run.pictures("PreviewImage")
    clip = saved_frames(run, "Save the edit")
    blue = (painted[2] > painted[1] + 0.05).float()
    assert 0.1 < blue.mean() < 0.3
    # The paint in every frame, and the ground as it was.
    for frame in clip:
        on_star = ((frame[2] > frame[1]).float() * blue).sum() / blue.sum()
        assert on_star > 0.8
        assert (frame - painted)[:, :8].abs().mean() < 0.06
    assert (clip[FRAMES // 2] - painted).abs().mean() < 0.04
    assert run.pictures("MaskPreview").mean() < 0.05


def test_keyframes_come_from_an_editor_that_takes_instructions(
    workflow: Callable[..., Run],
) -> None:
    """The embedded transformer stands in for it: what it makes of the frame is no matter here."""
    run = workflow("keyframes", muted=False)
    (carried,), (edited,) = (
        run.nodes("TokenFlowCarryKeyframes"),
        [run.prompt[node]["inputs"]["images"][0] for node in run.nodes("PreviewImage")],
    )
    (editor,) = (n for n, e in run.prompt.items() if e["_meta"]["title"] == "To Carry Keyframes")
    run.prompt[carried]["inputs"]["keyframes"] = [editor, 0]
    for entry in run.prompt.values():
        if entry["inputs"].get("images") == [edited, 0]:
            entry["inputs"]["images"] = [editor, 0]
    run()
    run.check_videos()
    (painted,) = run.pictures("PreviewImage")
    painted = torch.nn.functional.interpolate(painted[None], 64, mode="bicubic", antialias=True)[0]
    middle = saved_frames(run, "Save the edit")[FRAMES // 2]
    assert torch.corrcoef(torch.stack([middle.flatten(), painted.flatten()]))[0, 1] > 0.9


def test_the_public_codes_choices_are_measured_beside_the_packs_own(
    workflow: Callable[..., Run],
) -> None:
    run = workflow("public_code")()
    run.check_videos()
    (metrics,) = run.nodes("TokenFlowMetrics")
    errors = re.findall(r"warp error +([\d.]+)e-3", run.result.texts()[metrics][0])
    assert len(set(errors)) == 4  # source, autoencoder, and the two edits


def test_all_modes_are_compared_under_their_names(workflow: Callable[..., Run]) -> None:
    run = workflow("comparison")(TokenFlowInvertVideo={"steps": 2})
    run.check_videos()
    (names,), (metrics,), (grid,) = (
        run.nodes(kind)
        for kind in ("PrimitiveStringMultiline", "TokenFlowMetrics", "TokenFlowCompareClips")
    )
    called = run.prompt[names]["inputs"]["value"].split("\n")
    modes = {}
    for socket, name in zip(EDITS, called, strict=False):
        decoder, _ = run.prompt[metrics]["inputs"][socket]
        assert run.prompt[grid]["inputs"][socket] == [decoder, 0]
        sampler = run.prompt[decoder]["inputs"]["samples"][0]
        assert run.prompt[sampler]["_meta"]["title"] == name
        modes[sampler] = run.prompt[sampler]["inputs"]["consistency"]
    assert set(modes.values()) == set(MODES)
    assert not run.nodes("TokenFlowTuneAVideo")  # muted: it takes an hour
    edits = [run.latents_of(sampler) for sampler in modes]
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in combinations(edits, 2))
    lines = run.result.texts()[metrics][0].splitlines()
    assert all(
        line.startswith(name)
        for line, name in zip(lines, ["source", "reconstruction", *called], strict=True)
    )
    # Table and plot.
    assert len([name for name in run.result.files() if name.endswith(".png")]) == 2


def test_a_bad_inversion_is_seen_before_anything_is_edited(workflow: Callable[..., Run]) -> None:
    run = workflow("reconstruction_check")
    lost = {}
    for refinement in ("none", "extrapolated"):
        run(TokenFlowInvertVideo={"refinement": refinement, "steps": 5})
        (check,) = run.nodes("TokenFlowCheckReconstruction")
        lines = run.result.texts()[check][0].splitlines()
        assert lines[0].startswith("3 of 3 frames")
        lost[refinement] = float(re.findall(r"lost by the inversion +([-\d.]+) dB", lines[-1])[0])
        (shown,) = run.nodes("PreviewAny")
        assert run.result.texts()[shown] == ["\n".join(lines)]
    assert -0.5 < lost["extrapolated"] < 8  # of five steps
    assert lost["none"] > 12
    run.check_videos()
    assert run.pictures("TokenFlowPreviewFeatures").shape == (FRAMES, 3, 128, 128)
    overview = run.pictures("TokenFlowPreviewCorrespondences")
    assert (len(overview), overview.shape[3]) == (FRAMES, 4 * 128)
    source, rebuilt, *_ = overview[:, :, :128].chunk(4, 3)
    assert 0 < (source - rebuilt).square().mean() < 0.02


@pytest.mark.parametrize("name", ["sd15_pnp", "sdxl", *TRANSFORMERS])
def test_plug_and_play_holds_the_layout_and_a_lora_is_left_out(
    workflow: Callable[..., Run], name: str
) -> None:
    run = workflow(name)()
    run.check_videos()
    assert not run.nodes("LoraLoaderModelOnly")
    injected = run.latents()
    for node in run.nodes("TokenFlowSampler"):
        assert run.prompt[node]["inputs"].pop("injection")
    assert not torch.allclose(run().latents(), injected, atol=1e-2)


@pytest.fixture
def controlnet(server: Any) -> Iterator[str]:
    """The name under which the server finds a ControlNet of the embedded model's layout,
    with random weights.
    """
    layout = {
        name: value
        for name, value in load_demo_model()[0].model.model_config.unet_config.items()
        if name != "out_channels"
    }
    weights = ControlNet(**layout, hint_channels=3, device="meta").state_dict()
    generator = torch.Generator().manual_seed(0)

    def random(shape: torch.Size) -> Tensor:
        weight = torch.randn(shape, generator=generator)
        return (weight / weight[0].numel() ** 0.5 if weight.ndim > 1 else weight).half()

    file = server.comfyui / "models" / "controlnet" / "tokenflow-test.safetensors"
    save_file({name: random(weight.shape) for name, weight in weights.items()}, file)
    yield file.name
    file.unlink()


def test_stable_diffusion_with_a_controlnet_follows_the_hints(
    workflow: Callable[..., Run], controlnet: str
) -> None:
    run = workflow("sd15_controlnet")(ControlNetLoader={"control_net_name": controlnet})
    run.check_videos()
    edges, followed = run.pictures("PreviewImage"), run.latents()
    assert 0 < edges.mean() < 0.5
    blank = run(Canny={"low_threshold": 0.98, "high_threshold": 0.99})
    assert blank.pictures("PreviewImage").max() == 0
    assert not torch.allclose(blank.latents(), followed, atol=1e-2)


def test_a_long_clip_is_edited_with_its_sound_and_its_inversion_kept(
    server: Any, workflow: Callable[..., Run]
) -> None:
    run = workflow("long_video")()
    run.check_videos()
    (saved,) = (server.output / "inversions").glob("TokenFlow*.safetensors")
    assert len(load_file(saved)["latents"][0]) == FRAMES
    ((maker, sound),) = (run.prompt[node]["inputs"]["audio"] for node in run.nodes("CreateVideo"))
    assert (
        run.prompt[maker]["class_type"],
        server.get("/object_info")["GetVideoComponents"]["output"][sound],
    ) == (
        "GetVideoComponents",
        "AUDIO",
    )


def test_two_prompts_share_all_that_is_done_once_per_clip(workflow: Callable[..., Run]) -> None:
    run = workflow("two_prompts")()
    run.check_videos()
    first, second = run.nodes("TokenFlowSampler")
    assert not torch.allclose(run.latents_of(first), run.latents_of(second), atol=1e-2)
    prompt, _ = run.prompt[second]["inputs"]["positive"]
    run.prompt[prompt]["inputs"]["text"] = "an ice star on grass"
    again = run()
    ran = {node for node in run.prompt if node not in again.result.cached}
    assert second in ran
    assert first not in ran
    assert not {run.prompt[node]["class_type"] for node in ran} & {
        "TokenFlowInvertVideo",
        "TokenFlowExtractFeatures",
        "TokenFlowBuildCorrespondences",
    }

"""The workflows that the pack offers, as a user runs them on a real server,
on few small frames in few steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import av
import numpy as np
import pytest
import torch
from comfy.cldm.cldm import ControlNet
from safetensors.torch import load_file, save_file
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.looking.clips import EDITS
from torch import Tensor

from .workflows import FRAMES, TRANSFORMERS, Run

SCALED = {"width": 64, "height": 64}


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
    [((), (64, 64), 0), (("ImageScale",), (132, 68), 1)],
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
    run = workflow("public_code", *bypassed)(LoadVideo={"file": own_clip}, ImageScale=SCALED)
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
    run = workflow("public_code")(ImageScale=SCALED)
    run.check_videos()
    (metrics,) = run.nodes("TokenFlowMetrics")
    errors = re.findall(r"warp error +([\d.]+)e-3", run.result.texts()[metrics][0])
    assert len(set(errors)) == 4  # source, autoencoder, and the two edits


def test_all_modes_are_compared_under_their_names(workflow: Callable[..., Run]) -> None:
    run = workflow("comparison")(TokenFlowInvertVideo={"steps": 2}, ImageScale=SCALED)
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
    run = workflow("two_prompts")(ImageScale=SCALED)
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

"""tokenflow_ops.scripting: the nodes' numbers from a diffusers pipeline, left as it was."""

from __future__ import annotations

import gc
import re
import runpy
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import diffusers
import pytest
import torch
from PIL import Image
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.presets import PRESETS
from tokenflow_pack.tokenflow_ops import build_correspondences, propagation
from tokenflow_pack.tokenflow_ops.editing import step as method
from tokenflow_pack.tokenflow_ops.scripting import (
    PLUG_AND_PLAY,
    PROPAGATIONS,
    edit_video,
    encode_frames,
    extract_features,
    invert_frames,
    sample_edit,
    sampling,
)
from tokenflow_pack.tokenflow_ops.scripting.denoiser import Denoiser
from torch import Tensor

from launch.environment import ROOT

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    SOURCE,
    call,
    edit,
    injection,
    invert,
    pictures,
    relative_error,
    tiny_model,
)
from ..once import once_a_module
from ..tiny_models import LAYOUTS, SD15, moving_clip, tiny_unet
from ..tiny_pipelines import tiny_pipeline

STEPS = 3
GUIDANCE = 4.0
DEEP, ATTENTION = PROPAGATIONS
SCALE = SD15.family.latent_format().scale_factor


@once_a_module
def tiny_pipe(layout: str = "SD 1.5") -> Any:
    return tiny_pipeline(LAYOUTS[layout])


@once_a_module
def matched_by_graph(layout: str, frames: int, size: tuple[int, int]) -> tuple[Any, Any]:
    """A model of the host and the correspondences of a clip."""
    model, clip = tiny_unet(LAYOUTS[layout]), moving_clip(frames, *size, layout=LAYOUTS[layout])
    inversion = invert(model, clip, steps=STEPS, check_reconstruction=False)[0]
    features = call(ExtractFeatures.execute, model, inversion)[0]
    return model, call(
        BuildCorrespondences.execute,
        features,
        keyframe_interval=2,
        backend="torch",
        intervals="even",
    )[0]


@once_a_module
def matched_by_script(
    layout: str, frames: int, size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """The same of a pipeline, whose latents are those that the host hands to its model."""
    pipe = tiny_pipe(layout) if dtype == torch.float32 else tiny_pipeline(LAYOUTS[layout]).to(dtype)
    latents = moving_clip(frames, *size, layout=LAYOUTS[layout])["samples"] * SCALE
    inversion = invert_frames(pipe, latents, SOURCE[0][0], STEPS)
    return pipe, build_correspondences(
        extract_features(pipe, inversion), interval=2, backend="torch"
    )


def by_graph(clip: tuple[Any, ...], injected: bool, **inputs: Any) -> Tensor:
    model, matches = matched_by_graph(*clip)
    return SCALE * edit(
        model,
        correspondences=matches,
        injection=injection() if injected else None,
        cfg=GUIDANCE,
        **inputs,
    )


def by_script(clip: tuple[Any, ...], injected: bool, **inputs: Any) -> Tensor:
    pipe, matches = matched_by_script(*clip)
    return sample_edit(
        pipe,
        matches,
        POSITIVE[0][0],
        NEGATIVE[0][0],
        GUIDANCE,
        PLUG_AND_PLAY if injected else None,
        **inputs,
    )


def test_matches_do_not_hold_the_pipeline() -> None:
    pipe = tiny_pipeline(LAYOUTS["SD 1.5"])
    held = weakref.ref(pipe)
    latents = moving_clip(2, 8, 8)["samples"]
    matches = build_correspondences(
        extract_features(pipe, invert_frames(pipe, latents, SOURCE[0][0], 2)), backend="torch"
    )
    del pipe
    gc.collect()
    assert held() is None
    assert matches.features.inversion.frames == 2


# Layout, frames and size of the latents, whether Plug-and-Play is on, and what is not by default.
CASES: dict[str, tuple[tuple[Any, ...], bool, dict[str, Any]]] = {
    "by default": (("SD 1.5", 4, (8, 8)), True, {}),
    "attention": (
        ("SD 1.5", 4, (9, 15)),
        True,
        {"propagation": ATTENTION, "carry_until": 0.0, "frames_per_pass": 1},
    ),
    "without injection": (("SD 1.5", 3, (8, 16)), False, {"carry_until": 0.0}),
    "windows": (("SD 1.5", 10, (8, 8)), True, {"attended_keyframes": 4, "carry_until": 0.0}),
    "windows of attention": (
        ("SD 1.5", 10, (8, 8)),
        True,
        {"attended_keyframes": 4, "propagation": ATTENTION},
    ),
    "v prediction": (("SD 2.x v", 2, (8, 8)), True, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_latents_as_the_graph(case: str) -> None:
    clip, injected, inputs = CASES[case]
    assert (
        relative_error(by_script(clip, injected, **inputs), by_graph(clip, injected, **inputs))
        < 1e-4
    )


def test_keyframes_that_see_each_other_merged_are_the_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, injected, inputs = ("SD 1.5", 6, (9, 15)), True, {"attended_keyframes": 2}
    whole = by_script(clip, injected, **inputs)
    monkeypatch.setattr(method, "MERGED_FROM", 40)
    found = by_script(clip, injected, **inputs)
    assert relative_error(found, by_graph(clip, injected, **inputs)) < 1e-4
    assert relative_error(found, whole) > 1e-3


def test_what_keyframes_have_left_is_taken_as_in_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if three steps lay as close as forty do."""
    clip, injected, inputs = ("SD 1.5", 6, (8, 8)), True, {"attended_keyframes": 2}
    anew = by_script(clip, injected, **inputs)
    close = replace(propagation.REPEATS, apart=1.0)
    monkeypatch.setattr(sampling, "REPEATS", close)
    monkeypatch.setitem(PRESETS, "balanced", replace(PRESETS["balanced"], repeats=close))
    found = by_script(clip, injected, **inputs)
    assert relative_error(found, by_graph(clip, injected, **inputs)) < 1e-4
    assert relative_error(found, anew) > 1e-3


def test_half_precision_is_close() -> None:
    clip = CASES["by default"][0]
    assert (
        1e-5 < relative_error(by_script((*clip, torch.float16), True), by_script(clip, True)) < 0.1
    )


@pytest.mark.parametrize("steps", [1, 3, 20, 50])
def test_noise_levels_and_training_steps_are_the_hosts_to_the_bit(steps: int) -> None:
    model, denoiser = tiny_model(), Denoiser.of(tiny_pipe())
    sigmas = comfy.samplers.KSampler(
        model, steps=steps, device="cpu", sampler="euler", scheduler="normal"
    ).sigmas
    assert torch.equal(denoiser.sigmas(steps), sigmas)
    assert torch.equal(denoiser.log_sigmas, model.get_model_object("model_sampling").log_sigmas)


def plain(pipe: Any) -> Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe("a star", num_inference_steps=1, latents=latents, output_type="latent").images


@pytest.mark.parametrize(
    ("error", "propagation"), [(None, DEEP), (KeyboardInterrupt, DEEP), (RuntimeError, ATTENTION)]
)
def test_the_pipeline_is_left_as_it_was(
    error: type[BaseException] | None, propagation: str
) -> None:
    pipe, processors = tiny_pipe(), dict(tiny_pipe().unet.attn_processors)
    arguments = (pipe, pictures(2)[:, :64, :64], "wood", "gold", "", 2)
    before = plain(pipe)
    calls = 0

    def fails_late(module: Any, inputs: Any) -> None:
        nonlocal calls
        calls += 1
        if error is not None and calls == 10:
            raise error

    watching = pipe.unet.conv_out.register_forward_pre_hook(fails_late)
    try:
        if error is None:
            assert edit_video(
                *arguments, keyframe_interval=2, carry_until=0.0, propagation=propagation
            ).shape == (2, 64, 64, 3)
        else:
            with pytest.raises(error):
                edit_video(
                    *arguments, keyframe_interval=2, carry_until=0.0, propagation=propagation
                )
    finally:
        watching.remove()
    assert calls >= 10
    assert torch.equal(plain(pipe), before)
    assert pipe.unet.attn_processors == processors
    assert not any("forward" in vars(module) for module in pipe.unet.modules())


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip = [Image.fromarray((frame * 255).byte().numpy()) for frame in pictures(2)[:, :64, :64]]
    clip[0].save("clip.gif", save_all=True, append_images=clip[1:])
    # Half of the blocks: hundreds of calls.
    pipe = tiny_pipeline(replace(SD15, encoder=(1, 1, 1, 0), decoder=(0,) * 2 + (1,) * 6))
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline, "from_pretrained", lambda *args, **kwargs: pipe
    )
    Path("example.py").write_text(
        "\n".join(
            re.findall(
                r"```python\n(.*?)```", (ROOT / "docs" / "scripting.md").read_text(), re.DOTALL
            )
        )
    )
    found = runpy.run_path("example.py")
    assert found["edited"].shape == (2, 64, 64, 3)
    assert found["edited"].std() > 0.01
    assert sorted(Path().glob("*.gif")) == [
        Path(f"{name}.gif") for name in ("clip", "gold", "marble")
    ]


def changed(config: Any, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(config=type(config)({**config, **fields}))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "SDXL"),
        ("unet", {"in_channels": 9}, "inpainting"),
        ("scheduler", {"beta_schedule": "linear"}, "scaled_linear"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "scaled_linear"),
        ("scheduler", {"prediction_type": "sample"}, "v_prediction"),
    ],
)
def test_other_models_are_refused(part: str, fields: dict[str, Any], message: str) -> None:
    given = {name: getattr(tiny_pipe(), name) for name in ("unet", "scheduler")}
    with pytest.raises(ValueError, match=message):
        Denoiser.of(SimpleNamespace(**given | {part: changed(given[part].config, **fields)}))


def test_frames_that_do_not_fit_are_refused() -> None:
    for shape in ((2, 60, 64, 3), (2, 64, 64, 4), (0, 64, 64, 3), (64, 64, 3)):
        with pytest.raises(ValueError, match="multiples of 8"):
            encode_frames(tiny_pipe(), torch.zeros(shape))

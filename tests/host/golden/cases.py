"""The edits whose latents are kept: small ones of every mode, preset and layout,
each as the nodes make it.

A case is a name and a function without arguments that gives latents (N, C, h, w). Cases are added,
never changed: what they gave once is what every later version must give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.controlnet
import comfy.samplers
import torch
from comfy.cldm.cldm import ControlNet as ControlModel
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.presets import PRESETS
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.nodes.sampling.sampler import Sampler
from torch import Tensor

import nodes

from ..helpers import call, invert, pictures
from ..once import once_a_module
from ..tiny_models import (
    LAYOUT,
    LAYOUTS,
    moving_clip,
    random_conditioning,
    random_module,
    tiny_unet,
)

SIZE, FRAMES, LONG, STEPS, INTERVAL, CFG = (8, 16), 5, 13, 3, 2, 2.0
SD15, OTHERS = "SD 1.5", ("SD 2.x v", "SDXL", "KOALA 700M")
Latents = Callable[[], Tensor]


@once_a_module
def model(layout: str) -> Any:
    """Calm: with branches this weak,
    another processor's rounding errors stay below 1e-5 of the latents.
    """
    patcher = tiny_unet(LAYOUTS[layout], 2)
    for name, weight in patcher.model.diffusion_model.named_parameters():
        if name.endswith(("out_layers.3.weight", "ff.net.2.weight")):
            weight.data *= 0.35
    return patcher


@once_a_module
def prompts(layout: str) -> list[Any]:
    """Source, positive and negative."""
    return [random_conditioning(seed, pooled=LAYOUTS[layout].takes_vector) for seed in (1, 2, 3)]


@once_a_module
def inverted(layout: str, frames: int, refinement: str) -> tuple[Any, ...]:
    clip = moving_clip(frames, *SIZE, layout=LAYOUTS[layout])
    return invert(
        model(layout),
        clip,
        positive=prompts(layout)[0],
        steps=STEPS,
        refinement=refinement,
        check_reconstruction=False,
    )


@once_a_module
def matched(
    layout: str,
    frames: int,
    refinement: str = "none",
    every: bool = False,
    blend: str = "nearest",
    fixed: bool = False,
) -> Any:
    """every: every layer at every step on its own features, as in the paper."""
    how = (
        {"layers": "all", "steps": "every", "storage": "memory"}
        if every
        else {"noise_level": 0.4, "storage": "memory"}
    )
    features = call(
        ExtractFeatures.execute, model(layout), inverted(layout, frames, refinement)[0], **how
    )[0]
    keyframes = "fixed" if fixed else "random at every step"
    chosen = {
        "keyframe_interval": INTERVAL,
        "intervals": "even",
        "keyframes": keyframes,
        "backend": "torch",
        "blend": blend,
        "seed": 1,
    }
    return call(BuildCorrespondences.execute, features, **chosen)[0]


def edited(
    layout: str = SD15,
    frames: int = FRAMES,
    inject: bool = True,
    both: Any = None,
    how: dict[str, Any] | None = None,
    **inputs: Any,
) -> Tensor:
    """TokenFlow Sampler's latents. both: positive and negative, if not the layout's.
    how: of the correspondences.
    """
    injection = call(PlugAndPlay.execute)[0] if inject else None
    correspondences = matched(layout, frames, **(how or {}))
    if inputs.get("consistency") == "rerender":
        inputs["frames"] = pictures(frames)
    positive, negative = both or prompts(layout)[1:]
    chosen = {"cfg": CFG, "injection": injection, **inputs}
    return call(Sampler.execute, model(layout), positive, negative, correspondences, **chosen)[0][
        "samples"
    ]


def controlled() -> Tensor:
    """A ControlNet with a hint per frame."""
    layout = {
        name: value
        for name, value in LAYOUT.items()
        if name not in ("out_channels", "transformer_depth_output")
    }
    unet = random_module(ControlModel(**layout, hint_channels=3, dtype=torch.float32), 0)
    control = comfy.controlnet.ControlNet(unet, load_device=torch.device("cpu"))
    hints = torch.rand(FRAMES, 64, 128, 3, generator=torch.Generator().manual_seed(5))
    return edited(
        both=nodes.ControlNetApplyAdvanced().apply_controlnet(
            *prompts(SD15)[1:], control, hints, 0.5, 0.0, 1.0
        )
    )


def half_masked() -> Tensor:
    """Edited on the left, with a soft edge."""
    mask = torch.linspace(1.5, -0.5, 8 * SIZE[1]).clamp(0, 1).expand(8 * SIZE[0], -1)
    return edited(mask=mask[None], mask_from=0.0)


def patched(cut: int | None = None, sampler: str = "euler", **inputs: Any) -> Tensor:
    """Apply TokenFlow under the host's SamplerCustom, whole or cut in two."""
    _, noisy, sigmas = inverted(SD15, FRAMES, "none")
    edit = call(Apply.execute, model(SD15), matched(SD15, FRAMES), **inputs)[0]
    latents = noisy
    for part in [sigmas] if cut is None else [sigmas[: cut + 1], sigmas[cut:]]:
        chosen = comfy.samplers.sampler_object(sampler)
        latents = call(
            SamplerCustom.execute, edit, False, 0, CFG, *prompts(SD15)[1:], chosen, part, latents
        )[0]
    return latents["samples"]


EVERY: dict[str, Any] = {"every": True}
CASES: dict[str, Latents] = {
    **{f"{mode}": partial(edited, consistency=mode) for mode in MODES},
    **{f"{mode}, no injection": partial(edited, inject=False, consistency=mode) for mode in MODES},
    **{f"preset {name}": partial(edited, preset=name) for name in PRESETS},
    **{
        f"{mode}, every layer and step": partial(edited, how=EVERY, consistency=mode)
        for mode in ("tokenflow", "tokenflow, public code")
    },
    "faithful, every layer and step": partial(edited, how=EVERY, preset="faithful"),
    "faithful, sigmoid": partial(
        edited, how=EVERY | {"blend": "nearest, sigmoid"}, preset="faithful"
    ),
    "public code's chunks": partial(
        edited, how={"blend": "own and previous chunk, sigmoid"}, preset="faithful"
    ),
    "fixed keyframes": partial(edited, how={"fixed": True}),
    "extrapolated inversion": partial(edited, how={"refinement": "extrapolated"}, start=0.6),
    "carried for half": partial(edited, carry_until=0.5),
    "windows of 2": partial(edited, frames=LONG, attended_keyframes=2),
    "windows of 4": partial(edited, frames=LONG, attended_keyframes=4),
    "windows of 4, faithful": partial(edited, frames=LONG, attended_keyframes=4, preset="faithful"),
    "joint attention to 2": partial(
        edited, frames=LONG, attended_keyframes=2, consistency="joint attention"
    ),
    "passes of 2": partial(edited, frames_per_pass=2),
    "SDEdit": partial(edited, inject=False, start=0.6, noise="fresh", seed=3),
    "half of the way": partial(edited, start=0.6),
    "heun": partial(edited, sampler_name="heun"),
    "uni_pc": partial(edited, sampler_name="uni_pc"),
    "mask": half_masked,
    "ControlNet": controlled,
    "cut in two": partial(patched, cut=2),
    "cut in two, joint attention": partial(patched, cut=3, consistency="joint attention"),
    **{layout: partial(edited, layout) for layout in OTHERS},
    **{
        f"{layout}, faithful": partial(edited, layout, preset="faithful", how=EVERY)
        for layout in OTHERS
    },
}

"""Whether an edit fits on a card, by arithmetic.

    python3 run.py bench fit [--card 8] [--frames 400] [--steps 50]

Nothing is run: weights are counted on tensors without memory, passes are what ComfyUI reserves for
them (its own estimate, with attention that keeps no matrix), and what keyframes leave are the
tensors that the pack keeps. First table: the card. Second: main memory and disk for a clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import comfy.ops
from comfy import model_management, supported_models
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from tokenflow_pack.host.families.transformer import OUTER_FIRST, OUTER_LAST
from tokenflow_pack.host.memory import MOST_FRAMES
from tokenflow_pack.nodes.inversion import EXTRAPOLATED
from tokenflow_pack.tokenflow_ops import JOINT_KEYFRAMES

from bench.costs.cost import count, made_unet
from bench.tools.costs.steps import asked
from bench.tools.markdown import figure, table
from bench.tools.models import LAYOUTS, sd3_layout

GIB, MIB = 2**30, 2**20
HALF, FULL = 2, 4
# ComfyUI reserves so many MiB for a latent pixel, its type's bytes and a model's factor.
MIB_PER_PIXEL = 0.01
# What it wants free before it batches: half as much again.
SPARE = 1.5
FLUX: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10_000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
if "txt_ids_dims" in {known.name for known in fields(FluxParams)}:
    FLUX["txt_ids_dims"] = []  # newer hosts ask for it


@dataclass(frozen=True)
class Case:
    """A model at a size. side: of the latents. prompts: lists of conditionings in a step.

    weights: bytes. factor: the host's for this model. channels: of the latents. kept: numbers that
    a keyframe leaves, of the prompt alone. narrow: the same where propagation is the other choice;
    with a UNet frames then have guidance of their own. flow: whether it is a flow model.
    """

    name: str
    side: int
    prompts: int
    weights: float
    factor: float
    channels: int
    kept: float
    narrow: float = 0.0
    flow: bool = False

    def activations(self, frames: int) -> float:
        """Bytes that the host reserves for frames of one prompt."""
        return frames * self.side**2 * HALF * MIB_PER_PIXEL * self.factor * MIB

    def window(self, keyframes: int, kept: float) -> float:
        """Bytes beside the weights while so many keyframes are edited jointly."""
        return self.activations(keyframes) + keyframes * kept * HALF

    @property
    def frame(self) -> float:
        """Bytes of one more frame in a pass, both prompts."""
        return SPARE * self.activations(2)

    def latents(self, frames: int) -> float:
        """Bytes of a clip's latents."""
        return frames * self.channels * self.side**2 * FULL


def unet(name: str, size: int) -> Case:
    """SD 1.5 or SDXL, whose frames take deep features."""
    model, side = made_unet(name), size // 8
    parts = count(model, side)
    full = max(rows for rows, _ in parts.tokens.values())
    # What comes up from below has twice the channels of full resolution.
    deep = 2.0 * model.model_channels * side**2
    attention = float(sum(rows * width for rows, width in parts.tokens.values()))
    shallow = sum(r * c for r, c in parts.tokens.values() if r == full == side**2)
    weights = sum(one.numel() for one in model.parameters())
    family = LAYOUTS[name][0]
    factor, half = family.memory_usage_factor, HALF * weights
    return Case(f"{name}, {size}", side, 2, half, factor, 4, deep + shallow, 2 * attention)


def transformer(name: str, size: int, model: Any, factor: float, bytes_each: int) -> Case:
    """Of one width, whose frames take attention's output; 1 byte: float8."""
    side, flux = size // 8, isinstance(model, Flux)
    blocks = FLUX["depth"] + FLUX["depth_single_blocks"] if flux else len(model.joint_blocks)
    width = FLUX["hidden_size"] if flux else 64 * blocks
    outer = OUTER_FIRST + -(-blocks // round(1 / OUTER_LAST))
    tokens = (side // 2) ** 2 * width
    weights = bytes_each * sum(one.numel() for one in model.parameters())
    kept, narrow = tokens * blocks, tokens * (outer + 1)
    return Case(f"{name}, {size}", side, 2 - flux, weights, factor, 16, kept, narrow, flow=True)


def cases() -> Iterator[Case]:
    """The models, each at the sizes that it is used at."""
    yield from (unet("sd15", 512), unet("sd15", 768), unet("sdxl", 1024))
    no_memory = {"device": "meta", "operations": comfy.ops.disable_weight_init}
    for name, depth, each in (("SD 3 medium", 24, HALF), ("SD 3.5 large, float8", 38, 1)):
        model = OpenAISignatureMMDITWrapper(**sd3_layout(depth), **no_memory)
        factor = supported_models.SD3.memory_usage_factor
        yield transformer(name, 1024, model, factor, each)
    flux = Flux(**FLUX, **no_memory)
    for size in (512, 1024):
        yield transformer("Flux, float8", size, flux, supported_models.Flux.memory_usage_factor, 1)


def keyframes(case: Case, free: float, kept: float) -> int:
    """How many can be edited jointly in so many bytes beside the weights."""
    fitting = [n for n in range(1, JOINT_KEYFRAMES + 1) if case.window(n, kept) <= free]
    return max(fitting, default=0)


def row(case: Case, card: float) -> list[str]:
    """A line of the first table."""
    usable = card * GIB - model_management.extra_reserved_memory()
    free = usable - case.weights
    away = free < max(case.frame, case.window(1, case.kept))
    if away:  # --reserve-vram keeps weights out of that half
        free = usable / 2
    passes = max(1, min(int(free / case.frame), MOST_FRAMES))
    cells = [case.weights / GIB, case.frame / MIB, case.kept * HALF / MIB]
    other = case.narrow * HALF / MIB
    return [
        case.name,
        *map(figure, cells),
        figure(other),
        "half of the card" if away else figure(free / GIB),
        f"1 ({passes} by hand)" if away else str(passes),
        f"{keyframes(case, free, case.kept)} ({keyframes(case, free, case.narrow)})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", type=float, default=8, help="GiB")
    for name, default in (("frames", 400), ("steps", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    known = list(cases())
    print(f"\nA card of {figure(options.card)} GiB\n")
    columns = ["model, pixels", "weights, GiB", "a frame in a pass, MiB"]
    columns += ["a keyframe leaves, MiB", "the other propagation", "beside the weights, GiB"]
    columns += ["frames in a pass", "keyframes edited jointly, of 8"]
    table(columns, (row(case, options.card) for case in known))
    print(f"\n{options.frames} frames, {options.steps} steps, GiB\n")
    columns = ["model, pixels", "latents, each copy", "path to noise"]
    columns += ["checkpoints: inversion", "checkpoints: edit"]
    lines = []
    for case in known:
        one = case.latents(options.frames) / GIB
        calls = asked(options.steps, EXTRAPOLATED, case.flow)
        sizes = [one, one * (options.steps + 1), one * calls, one * options.steps * case.prompts]
        lines.append([case.name, *map(figure, sizes)])
    table(columns, lines)


if __name__ == "__main__":
    main()

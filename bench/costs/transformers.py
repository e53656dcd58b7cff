"""What sampling of an edit costs on a transformer, by arithmetic.

    python3 run.py bench transformers [--model sd3|embedded]
        [--size 1024 --frames 40 --steps 28 --interval 8]

As `bench cost` counts for UNets: nothing is timed, the linear layers of the host's own network are
counted on tensors without memory, and attention's products by its tokens.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.model_sampling import ModelSamplingDiscreteFlow
from comfy.samplers import calculate_sigmas
from tokenflow_pack.host.files.demo_model import TRANSFORMER, load_demo_model
from tokenflow_pack.nodes.presets import (
    BALANCED,
    BY_PRESET,
    NUMBER_BY_PRESET,
    PRESETS,
)
from tokenflow_pack.tokenflow_ops import Injection
from tokenflow_pack.tokenflow_ops.editing.step import MERGED_FROM
from tokenflow_pack.tokenflow_ops.parameterization import Parameterization
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.costs.cost import LEAN, Edit, Parts, merged_of
from bench.tools.markdown import figure, table
from bench.tools.models import TOKENS, sd3_layout

SD3, EMBEDDED = "sd3", "embedded"
SIZES, PIXELS_A_SIDE = {SD3: 1024, EMBEDDED: 128}, {SD3: 8, EMBEDDED: 4}
# The prompt's tokens: of SD 3 those of CLIP and as many of T5.
WORDS = {SD3: 2 * TOKENS, EMBEDDED: TOKENS}
SD3_BLOCKS, SD3_SHIFT = 24, 3.0


@dataclass(frozen=True)
class Joint(Parts):
    """Of a transformer. image: of every attention tokens of the image, tokens of the prompt beside
    them, and their width. merged_from: of so many tokens a keyframe sees the others' merged.
    """

    image: tuple[tuple[int, int, int], ...]
    merged_from: float = MERGED_FROM

    def merged(self, keyframes: int) -> float:
        # Text counts for as many frames as the image tokens make.
        more = (
            4.0 * (tokens + words) * self.seen(tokens) * (tokens + words) / tokens * width
            for tokens, words, width in self.image
        )
        return self.all + (keyframes - 1) * sum(more)

    def seen(self, tokens: int) -> int:
        """What a keyframe sees of another one's."""
        return merged_of(tokens) if tokens >= self.merged_from else tokens


def count(net: Any, size: int, words: int) -> Joint:
    """net: on the meta device. size: of the latents, square. words: tokens of the prompt."""
    seen: list[tuple[int, int]] = []

    def attend(function: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        flat = q.transpose(1, 2).flatten(2) if kwargs.get("skip_reshape") else q.flatten(2)
        seen.append((flat.shape[1], flat.shape[2]))
        return flat

    pooled = None
    if net.y_embedder is not None:
        pooled = torch.empty(1, net.y_embedder.mlp[0].in_features, device="meta")
    with FlopCounterMode(display=False) as counter:
        net(
            torch.empty(1, net.in_channels, size, size, device="meta"),
            torch.ones(1, device="meta"),
            context=torch.empty(1, words, net.context_embedder.in_features, device="meta"),
            y=pooled,
            transformer_options={"optimized_attention_override": attend},
        )
    products = sum(4.0 * tokens**2 * width for tokens, width in seen)
    own = (size // net.patch_size) ** 2
    image = tuple((own, tokens - own, width) for tokens, width in seen)
    return Joint(counter.get_total_flops() + products, products, 0.0, 0.0, 0.0, {}, image)


def made(model: str) -> tuple[Any, Any]:
    """A network without memory, and its noise levels."""
    if model == EMBEDDED:
        loaded = load_demo_model(TRANSFORMER)[0]
        net = copy.deepcopy(loaded.model.diffusion_model).to("meta").float()
        return net, loaded.get_model_object("model_sampling")
    layout = sd3_layout(SD3_BLOCKS)
    sampling = ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=SD3_SHIFT)
    net = OpenAISignatureMMDITWrapper(
        **layout, device="meta", operations=comfy.ops.disable_weight_init
    )
    return net, sampling


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(SIZES), default=SD3)
    parser.add_argument("--size", type=int, help="pixels")
    for name, default in (("frames", 40), ("steps", 28), ("interval", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    size = options.size or SIZES[options.model]
    net, sampling = made(options.model)
    side = size // PIXELS_A_SIDE[options.model]
    levels = calculate_sigmas(sampling, "simple", options.steps)[:-1].tolist()
    over_signal = Parameterization(flow=True).noise_over_signal
    edit = Edit(
        options.frames,
        options.interval,
        count(net, side, WORDS[options.model]),
        net.in_channels * side**2,
        tuple(over_signal(level) for level in levels),
        injection=Injection(features_until=0.0),  # there are no ResBlocks
    )
    schedule = f"{edit.frames} frames, {edit.keyframes} keyframes, {edit.steps} steps"
    print(f"\n{options.model}, {size} x {size} pixels, {schedule}\n")
    report(edit)


def report(edit: Edit) -> None:
    """Prints the table."""
    chosen, lean = (
        PRESETS[name].on_transformers().but(BY_PRESET, NUMBER_BY_PRESET, NUMBER_BY_PRESET)
        for name in (BALANCED, LEAN)
    )
    every = replace(chosen, repeats=None)
    whole = replace(edit, parts=replace(edit.parts, merged_from=math.inf))
    ways = {
        "": (edit, chosen),
        ", preset lean": (edit, lean),
        ", all steps alike": (edit, every),
        ", keyframes see all of each other's tokens": (whole, chosen),
    }
    stages = {"plain sampling": edit.plain} | {
        f"sampling{what}{way}": one.sampling(preset, injected)
        for what, injected in (("", False), (" with Plug-and-Play", True))
        for way, (one, preset) in ways.items()
    }
    rows = (
        [name, figure(x / edit.parts.all), figure(x / 1e12), figure(x / edit.plain)]
        for name, x in stages.items()
    )
    table(["stage", "frame-forwards", "TFLOP", "to plain"], rows)


if __name__ == "__main__":
    main()

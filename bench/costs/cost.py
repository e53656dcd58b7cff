"""What an edit costs by arithmetic.

    python3 run.py bench cost [--model sd15|sdxl|embedded]
        [--size 512 --frames 40 --steps 50 --interval 8] [--keyframes 2]

Nothing is timed: the UNet's layers are counted on tensors without memory (multiply-adds twice, by
torch's own counter) and put together as the pack runs them. First table: one frame through the
model, and its parts. Second: every stage of an edit in such frame-forwards, as TFLOP, and as a
share of the host's plain sampling of the same frames, beside the public code's schedule. Third:
what a frame leaves behind.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import ModelSamplingDiscrete
from tokenflow_pack.host.families.unet import deep_layers, self_attention_layers
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.nodes.inversion import EVERY_OTHER, EXTRAPOLATED
from tokenflow_pack.nodes.presets import BALANCED, PRESETS, Preset
from tokenflow_pack.tokenflow_ops import JOINT_KEYFRAMES, Injection, Windows
from tokenflow_pack.tokenflow_ops.editing.step import MERGED_FROM
from tokenflow_pack.tokenflow_ops.propagation import carries_pictures
from torch.utils.flop_counter import FlopCounterMode

from bench.tools.costs.steps import INJECTION, Steps, asked, levels_of
from bench.tools.markdown import figure, table
from bench.tools.models import COMMON, LAYOUTS, TOKENS

SIZES = {"embedded": 128, "sd15": 512, "sdxl": 1024}
HALVED, LEAN = "inversion, every other step", "lean"
# Bytes of a number: of what is computed on a GPU, and of the path to noise.
HALF, FULL = 2, 4


@dataclass(frozen=True)
class Parts:
    """Operations of one frame of one conditioning. products: self-attention's of queries, keys and
    values; projections: its linear layers.

    deep: all below the UNet's full resolution, deep_attention its self-attention. tokens: (P, C) of
    every self-attention layer.
    """

    all: float
    products: float
    projections: float
    deep: float
    deep_attention: float
    tokens: Mapping[str, tuple[int, int]]

    @property
    def propagated(self) -> float:
        """A frame whose self-attention is the keyframes'."""
        return self.all - self.products - self.projections

    @property
    def shallow(self) -> float:
        """A frame whose features from below full resolution are the keyframes'; what is left has
        self-attention as propagated frames.
        """
        return self.propagated - (self.deep - self.deep_attention)

    def joint(self, keyframes: int) -> float:
        """A keyframe that attends to so many."""
        return self.all + (keyframes - 1) * self.products

    def merged(self, keyframes: int) -> float:
        """A keyframe that attends to so many, of which it sees the others' tokens merged."""
        many = [sizes for sizes in self.tokens.values() if sizes[0] >= MERGED_FROM]
        saved = sum(4.0 * rows * (rows - merged_of(rows)) * width for rows, width in many)
        # Merged tokens are projected to keys and values beside all the others.
        more = sum(4.0 * merged_of(rows) * width**2 for rows, width in many)
        return self.joint(keyframes) - (keyframes - 1) * saved + more


def merged_of(tokens: int) -> int:
    """How many are left where 2 x 2 tokens become one."""
    return tokens // 4


def count(unet: Any, size: int) -> Parts:
    """unet: on the meta device. size: of the latents, square."""
    layers, deep = self_attention_layers(unet), deep_layers(unet)
    tokens: dict[str, tuple[int, int]] = {}

    def see(path: str) -> Any:
        return lambda module, args, kwargs: tokens.update(
            {path: tuple((*args, *kwargs.values())[0].shape[1:])}
        )

    hooks = [
        unet.get_submodule(path).register_forward_pre_hook(see(path), with_kwargs=True)
        for path in layers
    ]
    cross = next(module for path, module in unet.named_modules() if path.endswith("attn2.to_k"))
    vector = (
        None
        if unet.num_classes is None
        else torch.empty(1, unet.label_emb[0][0].in_features, device="meta")
    )
    latents = torch.empty(1, unet.in_channels, size, size, device="meta")
    with FlopCounterMode(display=False) as counter:
        unet(
            latents,
            torch.ones(1, device="meta"),
            context=torch.empty(1, TOKENS, cross.in_features, device="meta"),
            y=vector,
        )
    for hook in hooks:
        hook.remove()
    by_module = {
        name.partition(".")[2]: sum(found.values())
        for name, found in counter.get_flop_counts().items()
    }
    products = {path: 4.0 * rows * rows * width for path, (rows, width) in tokens.items()}
    projections = {path: 8.0 * rows * width * width for path, (rows, width) in tokens.items()}
    return Parts(
        all=float(counter.get_total_flops()),
        products=sum(products.values()),
        projections=sum(projections.values()),
        deep=float(sum(by_module.get(path, 0) for path in deep)),
        deep_attention=sum(
            products[path] + projections[path]
            for path in layers
            if path.startswith(tuple(f"{one}." for one in deep))
        ),
        tokens=tokens,
    )


@dataclass(frozen=True)
class Edit:
    """What is to be edited. latents: numbers in a frame's. levels: noise over signal where steps
    begin. few: keyframes of every step; None for even intervals. injection: Plug-and-Play's.
    """

    frames: int
    interval: int
    parts: Parts
    latents: int
    levels: tuple[float, ...]
    few: int | None = None
    injection: Injection = INJECTION

    @property
    def steps(self) -> int:
        return len(self.levels)

    def steps_of(self, chosen: Preset) -> Steps:
        """What runs in which steps."""
        return Steps.of(self.levels, chosen, self.injection)

    @property
    def keyframes(self) -> int:
        """Of every step."""
        return self.few or -(-self.frames // self.interval)

    @property
    def plain(self) -> float:
        """The host's sampling, prompt and negative prompt, frame by frame."""
        return 2 * self.frames * self.steps * self.parts.all

    def search(self, pairs: float, width: float) -> float:
        """Matches of so many pairs of frames at the finest tokens, features of this width."""
        return pairs * 2.0 * max(rows for rows, _ in self.parts.tokens.values()) ** 2 * width

    def windowed(self, keyframe: Callable[[int], float]) -> float:
        """All keyframes once, one prompt: in windows if there are many,
        and the anchors before them. keyframe: one that attends to so many.
        """
        windows = Windows.of(self.keyframes, JOINT_KEYFRAMES)
        few = len(windows.anchors)
        attended = {
            own: int(windows.elsewhere(own).sum()) + len(windows.before(own)) + len(own)
            for own in windows.own
        }
        return few * keyframe(few) + sum(
            len(own) * keyframe(count) for own, count in attended.items()
        )

    def of_frames(self, chosen: Preset) -> float:
        """Operations of the steps that run frames with what keyframes have left, of one prompt."""
        steps, rest = self.steps_of(chosen), self.frames - self.keyframes
        return (steps.between * rest + steps.again * self.frames) * self.parts.shallow

    def sampling(self, chosen: Preset, injected: bool) -> float:
        """Operations of an edit's steps. injected: with Plug-and-Play."""
        steps, together = self.steps_of(chosen), 2 * self.windowed(self.parts.merged)
        source = self.keyframes * self.parts.all if injected else 0.0
        return steps.keyframes * together + self.of_frames(chosen) + steps.injected * source

    def stages(self) -> dict[str, float]:
        """Operations of every stage."""
        parts, steps = self.parts, self.steps
        keyframes, rest = self.keyframes, self.frames - self.keyframes
        unmerged = 2 * self.windowed(parts.joint)
        all_together = 2 * keyframes * parts.joint(keyframes)
        carried = PRESETS[BALANCED].carry_until
        later = sum(not carries_pictures(carried, *step) for step in pairwise([*self.levels, 0.0]))
        # Keyframes that are drawn again are not searched again.
        pairs = self.frames * min(2.0 * steps, 2.5 * self.interval)
        widths = dict(parts.tokens.values())
        one_pass = self.frames * parts.all
        every_layer = sum(2.0 * rows * rows * width for rows, width in parts.tokens.values())
        return {
            "inversion": one_pass * asked(steps, EXTRAPOLATED),
            HALVED: one_pass * asked(steps, EVERY_OTHER),
            "features": one_pass,
            "matches": self.search(pairs, sum(widths.values())),
            "sampling": self.sampling(PRESETS[BALANCED], injected=False),
            "sampling, propagation of attention": steps * unmerged
            + later * 2 * rest * parts.propagated,
            "sampling with Plug-and-Play": self.sampling(PRESETS[BALANCED], injected=True),
            "sampling, lean": self.sampling(PRESETS[LEAN], injected=False),
            "sampling, lean, with Plug-and-Play": self.sampling(PRESETS[LEAN], injected=True),
            "public code: inversion": one_pass * steps,
            "public code: sampling": steps
            * (
                keyframes * parts.all
                + all_together
                + 3 * self.frames * parts.propagated
                + 2 * self.frames * every_layer
            ),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(SIZES), default="sd15")
    parser.add_argument("--size", type=int, help="pixels")
    for name, default in (("frames", 40), ("steps", 50), ("interval", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keyframes", type=int, help="of every step, if intervals are not even")
    options = parser.parse_args()
    size = options.size or SIZES[options.model]
    world = options.model == "embedded"
    unet, side = made_unet(options.model), size // (4 if world else 8)
    edit = Edit(
        options.frames,
        options.interval,
        count(unet, side),
        unet.in_channels * side**2,
        levels_of(sampling_of(options.model), options.steps),
        options.keyframes,
    )
    schedule = f"{edit.frames} frames, {edit.keyframes} keyframes, {edit.steps} steps"
    print(f"\n{options.model}, {size} x {size} pixels, {schedule}\n")
    report(edit, left_by_a_keyframe(unet, edit))


def sampling_of(model: str) -> Any:
    """A model's noise levels."""
    if model == "embedded":
        return load_demo_model()[0].get_model_object("model_sampling")
    return ModelSamplingDiscrete()


def made_unet(model: str) -> Any:
    if model == "embedded":
        return copy.deepcopy(load_demo_model()[0].model.diffusion_model).to("meta").float()
    family, blocks = LAYOUTS[model]
    config = family({**COMMON, **family.unet_config, **blocks})
    return UNetModel(**config.unet_config, device="meta", operations=comfy.ops.disable_weight_init)


def left_by_a_keyframe(unet: Any, edit: Edit) -> int:
    """Numbers that a frame asks a keyframe for: self-attention's output at full resolution, and
    what comes up from below it.
    """
    below = tuple(f"{path}." for path in deep_layers(unet))
    shallow = {
        path: shape for path, shape in edit.parts.tokens.items() if not path.startswith(below)
    }
    last = unet.get_submodule(deep_layers(unet)[-1])
    pixels = edit.latents // unet.in_channels
    return sum(rows * width for rows, width in shallow.values()) + pixels * last.out_channels


def report(edit: Edit, left: int) -> None:
    """Prints the tables. left: by `left_by_a_keyframe`."""
    parts = edit.parts
    windowed = f"a keyframe among {edit.keyframes}, in windows of {JOINT_KEYFRAMES} if it is more"
    lines = {
        "whole": parts.all,
        "self-attention: products": parts.products,
        "self-attention: projections": parts.projections,
        "below full resolution": parts.deep,
        "a frame that takes attention's output": parts.propagated,
        "a frame that takes deep features": parts.shallow,
        windowed: edit.windowed(parts.merged) / edit.keyframes,
    }
    table(
        ["one frame, one prompt", "TFLOP", "frame-forwards"],
        ([name, figure(x / 1e12), figure(x / parts.all)] for name, x in lines.items()),
    )
    print()
    stages = {"plain sampling": edit.plain, **edit.stages()}
    rows = (
        [name, figure(x / parts.all), figure(x / 1e12), figure(x / edit.plain)]
        for name, x in stages.items()
    )
    table(["stage", "frame-forwards", "TFLOP", "to plain"], rows)
    ours = sum(
        stages[name] for name in ("inversion", "features", "matches", "sampling with Plug-and-Play")
    )
    theirs = stages["public code: inversion"] + stages["public code: sampling"]
    second = stages["sampling with Plug-and-Play"]
    print()
    halved = ours - stages["inversion"] + stages[HALVED]
    shares = {
        "first edit to its first": ours / theirs,
        f"first edit to its first, {HALVED}": halved / theirs,
    }
    shares |= {
        "second edit to its first": second / theirs,
        "second edit to its sampling alone": second / stages["public code: sampling"],
    }
    table(["to the public code", "share"], ([name, figure(x)] for name, x in shares.items()))
    print()
    by_rows = dict(parts.tokens.values())
    kept = {
        "path to noise": (edit.steps + 1) * edit.latents * FULL,
        "features, where they are stored": sum(rows * width for rows, width in by_rows.items())
        * HALF,
        "matches": min(2.0 * edit.steps, 2.5 * edit.interval) * sum(by_rows) * 2,
        "on the device, for each keyframe of a window": left * HALF,
        "the same, propagation of attention, both prompts": 2
        * sum(rows * width for rows, width in parts.tokens.values())
        * HALF,
    }
    table(["a frame leaves", "MiB"], ([name, figure(x / 2**20)] for name, x in kept.items()))


if __name__ == "__main__":
    main()

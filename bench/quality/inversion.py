"""How much of a clip each inversion keeps.

    python3 run.py bench inversion [--steps 50] [--frames 4] [--clip PATH --prompt TEXT]

First table: frames spread over a clip, inverted and sampled back. PSNR to the source, and how far
below the autoencoder's own; the embedded clip by default, any other one cut and scaled to the
embedded model's 128 x 128 pixels. Second table (not with --clip), --edited clips of the embedded
model's world, each to two surfaces that are drawn: means over the edits after each inversion. Warp
error x1e-3 along DIS flow of the source and the world's true flow; fidelity: how sure a classifier
of this world's surfaces is of the prompt's; sharpness.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from comfy.utils import common_upscale
from tokenflow_pack.host.files.demo_model import MODELS, UNET
from tokenflow_pack.host.measuring.reconstruction import reconstruct_frames
from tokenflow_pack.nodes.inversion import (
    EVERY_OTHER,
    EXTRAPOLATED,
    FIXED_POINT,
    PLAIN,
    InvertVideo,
)
from tokenflow_pack.tokenflow_ops.measuring.metrics import psnr
from torch import Tensor

import nodes
from bench.tools.case import ROOT, Case, Settings, World, demo_clip, read_video

SIZE = 128
# Refinement and iterations.
INVERSIONS = (
    (PLAIN, 0),
    (FIXED_POINT, 1),
    (FIXED_POINT, 2),
    (EXTRAPOLATED, 0),
    (EXTRAPOLATED, 1),
    (EXTRAPOLATED, 2),
    (EVERY_OTHER, 0),
)
EDITED_AFTER = (PLAIN, EXTRAPOLATED, EVERY_OTHER)
EDITED_FRAMES, SURFACES_EACH = 8, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--clip", type=Path, default=ROOT / "demo" / "tokenflow_star.mp4")
    parser.add_argument("--prompt", default=demo_clip()[0].caption())
    parser.add_argument("--model", choices=MODELS, default=UNET)
    parser.add_argument("--scheduler", help="what suits the model if not given")
    parser.add_argument("--edited", type=int, default=3, help="clips of the second table")
    options = parser.parse_args()
    world = World(options.model)
    options.scheduler = options.scheduler or world.scheduler
    with torch.inference_mode():
        reconstructions(world, options)
        if options.edited and options.clip == parser.get_default("clip"):
            edits(world, options)


def reconstructions(world: World, options: argparse.Namespace) -> None:
    """Prints the first table."""
    model, vae = world.model, world.vae
    source = spread(options.clip, options.frames)
    latents = nodes.VAEEncode().encode(vae, source)[0]
    prompt = world.encode(options.prompt)

    def quality(latents: Tensor) -> float:
        return float(
            psnr(vae.decode(latents).clamp(0, 1).movedim(-1, 1), source.movedim(-1, 1)).mean()
        )

    calls: list[int] = []

    def count(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        calls.append(1)
        return apply_model(args["input"], args["timestep"], **args["c"])

    counted = model.clone()
    counted.set_model_unet_function_wrapper(count)
    best = quality(latents["samples"])
    schedule = f"{options.frames} frames, {options.steps} steps, {options.scheduler}"
    print(f"\n{options.clip.name}, {schedule}: autoencoder {best:.2f} dB\n")
    print("| refinement | iterations | model calls a step | PSNR | below the autoencoder |")
    print("|---|---|---|---|---|", flush=True)
    for refinement, iterations in INVERSIONS:
        calls.clear()
        choice = {
            "scheduler": options.scheduler,
            "refinement": refinement,
            "iterations": iterations,
        }
        inversion = InvertVideo.execute(
            counted, latents, prompt, steps=options.steps, check_reconstruction=False, **choice
        ).args[0]
        cost = len(calls) / options.steps
        found = reconstruct_frames(
            "bench", model, inversion, [], 1.0, latents["samples"], torch.arange(options.frames)
        )
        reached = quality(model.model.process_latent_out(found))
        told = f"{cost:.2f} | {reached:.2f} dB | {best - reached:.2f} dB"
        print(f"| {refinement} | {iterations} | {told} |", flush=True)


def spread(path: Path, count: int) -> Tensor:
    """Evenly spread frames of a video, cut to a square and scaled.

    Returns: (count, SIZE, SIZE, 3) in [0, 1].
    """
    frames = read_video(path)
    chosen = frames[torch.arange(count) * len(frames) // count]
    return common_upscale(chosen.movedim(-1, 1), SIZE, SIZE, "area", "center").movedim(1, -1)


def edits(world: World, options: argparse.Namespace) -> None:
    """Prints the second table."""
    settings = Settings(frames=EDITED_FRAMES, steps=options.steps, model=options.model)
    cases = [Case.numbered(world, settings, number) for number in range(options.edited)]
    columns = "warp error | true flow | fidelity | sharpness"
    print(f"\n{settings}, {options.edited} clips\n\n| edited after | {columns} |")
    print("|---|---|---|---|---|", flush=True)
    for refinement in EDITED_AFTER:
        found = []
        for number, case in enumerate(cases):
            matched = case.match(case.features(case.invert(refinement=refinement)))
            surfaces = case.other_surfaces(SURFACES_EACH, seed=number)
            found += [case.figures(case.edit(matched, surface), surface) for surface in surfaces]
        warp, true, fidelity, sharp = (
            mean(getattr(one, name) for one in found)
            for name in ("warp", "true", "fidelity", "sharpness")
        )
        told = f"{warp:.2f} | {true:.2f} | {fidelity:.3f} | {sharp:.4f}"
        print(f"| {refinement} | {told} |", flush=True)


if __name__ == "__main__":
    main()

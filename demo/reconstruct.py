"""Measures what inversion loses on the demo clip.

python demo/reconstruct.py [--frames 4] [--steps 50]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import WEIGHTS, Tensor, invert, load, sample
from scenes import demo_clip


def psnr(found: Tensor, wanted: Tensor) -> float:
    return -10 * torch.log10((found - wanted).square().mean()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--frames", type=int, default=4, help="how many of the clip's frames, evenly spread"
    )
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    model, (scene, times) = load(options.weights), demo_clip()
    pictures = torch.stack(
        [scene.render(times[i * len(times) // options.frames]) for i in range(options.frames)]
    )
    prompts = [scene.caption()] * len(pictures)
    print(f"autoencoder {psnr(model.decode(model.encode(pictures)), pictures):.2f} dB", flush=True)
    latents = invert(model, pictures, prompts, options.steps)
    again = sample(model, prompts, options.steps, cfg=1, latents=latents)
    print(f"inversion and sampling, {options.steps} steps each, {psnr(again, pictures):.2f} dB")


if __name__ == "__main__":
    main()

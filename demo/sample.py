"""Looks at the demo model.

python demo/sample.py PICTURE.png "a gold star on sand" "a red box on grass" ...
"""

from __future__ import annotations

import argparse
from itertools import cycle
from pathlib import Path

import torch
from model import WEIGHTS, Tensor, load, sample
from PIL import Image
from scenes import GROUNDS, SHAPES, SURFACES


def save_sheet(pictures: Tensor, path: Path, columns: int = 8) -> None:
    """Pictures (B, 3, H, W) side by side, row after row."""
    rows = [torch.cat(list(row), 2) for row in pictures.split(columns)]
    rows[-1] = torch.nn.functional.pad(rows[-1], (0, rows[0].shape[2] - rows[-1].shape[2]))
    Image.fromarray((torch.cat(rows, 1).movedim(0, -1) * 255).byte().numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("prompts", nargs="*")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    every = [
        f"a {surface} {shape} on {ground}"
        for surface, shape, ground in zip(SURFACES, cycle(SHAPES), cycle(GROUNDS), strict=False)
    ]
    save_sheet(
        sample(
            load(options.weights),
            options.prompts or every,
            options.steps,
            options.cfg,
            options.seed,
        ),
        options.picture,
    )


if __name__ == "__main__":
    main()

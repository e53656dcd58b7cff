"""How well Find Edit Mask finds what an edit changes.

    python3 run.py bench masks [--kinds plain enter ...] [--clips 2] [--edits 1] [--frames 8]

Clips of every kind (demo/clips.py) are drawn by number, and edits to other surfaces. Overlap (IoU)
of the node's mask, without grow, with the object's true outline, mean over the frames; what another
object hides is left out. A frame in which the object is not seen counts as 1 with an empty mask,
else as 0. worst: of a single edit.
"""

from __future__ import annotations

import argparse

import torch
from clips import KINDS, Clip
from torch import Tensor

from bench.quality.truth import numbers
from bench.tools.case import Settings, World
from bench.tools.known import Known
from bench.tools.markdown import table
from bench.tools.truth import TruthCase

UNSEEN = 0.002  # share of the picture up to which an object counts as not seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND"
    )
    parser.add_argument("--clips", type=int, default=2, help="of each kind")
    parser.add_argument("--first", type=int, default=1, help="the first clip's number")
    parser.add_argument("--edits", type=int, default=1, help="of each clip")
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    found = {}
    with torch.inference_mode():
        world = World()
        for kind in options.kinds:
            found[kind] = [
                overlap
                for number in numbers(kind, options.first, options.clips)
                for overlap in overlaps(world, Clip(kind, number, options.frames), options.edits)
            ]
            print(f"{kind}: {', '.join(f'{value:.2f}' for value in found[kind])}", flush=True)
    found["all"] = [value for values in found.values() for value in values]
    print()
    table(
        ["clips", "edits", "overlap", "worst"],
        (
            [kind, str(len(values)), f"{sum(values) / len(values):.3f}", f"{min(values):.2f}"]
            for kind, values in found.items()
        ),
    )


def overlaps(world: World, clip: Clip, edits: int) -> list[float]:
    """The overlap of each edit's mask, mean over a clip's frames."""
    # Of the path to noise the node takes the clean end alone.
    case = TruthCase(world, Settings(clip.count, steps=1), clip)
    path = case.invert()
    return [
        float(overlap(case.edit_mask(path, surface, grow=0)[0] > 0.5, case.known).mean())
        for surface in clip.surfaces(edits)
    ]


def overlap(found: Tensor, known: Known) -> Tensor:
    """Of masks (N, H, W) with the object's, (N,)."""
    found, true = found & ~known.hidden, known.masks & ~known.hidden
    both, either = (found & true).flatten(1).sum(1), (found | true).flatten(1).sum(1)
    unseen = true.flatten(1).float().mean(1) <= UNSEEN
    empty = found.flatten(1).float().mean(1) <= UNSEEN
    return torch.where(unseen, empty.float(), both / either.clamp(min=1))


if __name__ == "__main__":
    main()

"""How surely cuts are told from motion.

    python3 run.py bench cuts [--clips 10] [--kinds cut turn ...] [--frames 16]

On clips of the embedded model's world, whose shots have the same object and ground: of each kind
how far frames break with those before, at cuts and within shots, by latents (Build NN
Correspondences) and by small pictures (Pick Keyframes, Carry Keyframes). Above BROKEN of
tokenflow_ops/matching/cuts.py a frame begins a shot. Missed: cuts that do not, of all.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from clips import KINDS, Clip
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.host.video.clips import Clip as Pictures
from tokenflow_pack.nodes.keyframes.numbers import shrunk
from tokenflow_pack.tokenflow_ops.matching.cuts import BROKEN, breaks

from bench.tools.markdown import figure, table

HOWS = LATENTS, PICTURES = "latents", "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=10, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--frames", type=int, default=16)
    options = parser.parse_args()
    rows = []
    with torch.inference_mode():
        _, _, vae = load_demo_model()
        for kind in options.kinds:
            clips = [Clip(kind, number, options.frames) for number in range(1, 1 + options.clips)]
            seen = [ways(clip, vae) for clip in clips]
            for how in HOWS:
                rows.append([kind, how, *told(clips, [one[how] for one in seen])])
                print(rows[-1], flush=True)
    print(f"\na cut above {BROKEN}")
    table(["clips", "seen as", "least at cuts", "missed", "most within shots"], rows)


def ways(clip: Clip, vae: Any) -> dict[str, list[float]]:
    """How far each frame breaks with those before."""
    frames = clip.pictures().movedim(1, -1)
    return {
        LATENTS: breaks(vae.encode(frames)),
        PICTURES: breaks(shrunk(Pictures.of("bench", "frames", frames))),
    }


def told(clips: list[Clip], found: list[list[float]]) -> list[str]:
    """The cells of a row."""
    at_cuts = [
        broken.pop(clip.cut_at)
        for clip, broken in zip(clips, found, strict=True)
        if clip.kind == "cut"
    ]
    least = figure(min(at_cuts)) if at_cuts else ""
    missed = str(sum(one <= BROKEN for one in at_cuts)) if at_cuts else ""
    return [least, missed, figure(max(map(max, found)))]


if __name__ == "__main__":
    main()

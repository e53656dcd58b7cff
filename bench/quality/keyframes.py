"""How right clips are that are made of a few edited keyframes.

    python3 run.py bench keyframes [--clips 3] [--kinds plain turn ...] [--keyframes 1 2 3 5]
        [--frames 16 48] [--sampled 1] [--quick] [--json FILE]

On the embedded model's world the ideal edit of a clip is known (demo/clips.py): the keyframes are
taken from it, and every frame between them has a true answer. Keyframes lie in the middle of as
many equal parts of each shot. Ours is Carry Keyframes with its defaults.

flow_warp: the two nearest keyframes warped by optical flow (DIS) straight to the frame and
    cross-faded. flow_chain: the same by flow added up from frame to frame. nearest_patches: patches
    copied from where the source is most alike. hold: the nearest keyframe.
sampled, per_frame: of the first clips of each kind, with one and three keyframes: what TokenFlow
    Sampler makes of ours where nothing was to be seen, and the per-frame edit by words.

psnr.object, psnr.band, psnr.ground: PSNR to the ideal in the object, 5 pixels on both sides of its
    outline, and away from it, in dB, keyframes left out. psnr.near, psnr.far: in the object, up to
    2 frames and from 5 frames on from a keyframe.
structure: overlap (IoU) of the pixels of the asked surface with the true outline.
excess: warp error x1e-3 along the true flow above the ideal's.
disturbed: the same with keyframes as editors make them, each with another texture of the surface,
    colours 5/255 off and an outline 5 % larger.
hidden: share of the object's pixels that no keyframe shows, as ours says.
gain_over_flow: ours less the better one of flow_warp and flow_chain in the object, in dB.
at_keyframes: ours at the keyframes, through the autoencoder as the sampler gives them, less the
    autoencoder's own PSNR, in dB.

Intervals hold 95 % of 2,000 resamplings of clips.

--json FILE: one flat object, <figure>.<group> for ours, <row>.<figure>.<group> for others, with
.low and .high. Groups are the kinds, keyframes_1 and so on, frames_16 and so on, and all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from clips import KINDS, Clip
from tokenflow_pack.nodes.keyframes.carry import CarryKeyframes
from tokenflow_pack.tokenflow_ops.carrying import pictures
from tokenflow_pack.tokenflow_ops.measuring.metrics import warp_errors
from torch import Tensor

from bench.tools.case import Settings, World, channels_first
from bench.tools.intervals import interval, resampled
from bench.tools.keyframes.carried import FLOWS, ROWS, Fading, Remembered, disturbed, placed
from bench.tools.known import decibels, mean_over
from bench.tools.truth import TruthCase

OURS = "ours"
NEAR, FAR = 2, 5
START = 0.5  # of the sampler
SAMPLED = (1, 3)  # keyframes of the clips that the model sees
QUICK: dict[str, Any] = {"clips": 1, "keyframes": [1, 3], "frames": [16], "sampled": 0}
Figures = dict[str, float | None]
SHOWN = ("psnr.object", "psnr.band", "psnr.ground", "structure", "excess", "disturbed")
OWN = ("gain_over_flow", "hidden", "at_keyframes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=3, help="of each kind")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND"
    )
    parser.add_argument("--keyframes", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 48])
    parser.add_argument("--sampled", type=int, default=1, help="clips of each kind")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("output/keyframes"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--quick", action="store_true", help="one clip of each kind, without the model: minutes"
    )
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    options.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for groups in run(options):
            found = flat(groups)
            told = table(found, list(groups))
            (options.out / "keyframes.md").write_text(told)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))
    print(told)


# Of each group its cases: the clip, and of each row its figures.
Cases = list[tuple[tuple[str, int], dict[str, Figures]]]


def run(options: argparse.Namespace) -> Iterator[dict[str, Cases]]:
    """The cases so far by group, after every clip."""
    world, groups = World(), dict[str, Cases]()
    for kind in options.kinds:
        for number in range(options.clips):
            for frames in options.frames:
                clip = Clip(kind, 1 + list(KINDS).index(kind) + len(KINDS) * number, frames)
                case = TruthCase(world, Settings(frames=frames, steps=options.steps), clip)
                motion = mock.patch.object(pictures, "find_motion", Remembered())
                for count in options.keyframes:
                    sampled = number < options.sampled and count in SAMPLED and frames == 16
                    with motion:
                        found = figures_of(case, count, sampled)
                    entry = (case.key, found)
                    for group in (kind, f"keyframes_{count}", f"frames_{frames}", "all"):
                        groups.setdefault(group, []).append(entry)
                    told = {row: round(one["psnr.object"] or 0, 1) for row, one in found.items()}
                    print(f"{kind} {clip.number}, {frames} frames, {count}: {told}", flush=True)
                yield groups


def figures_of(case: TruthCase, count: int, sampled: bool) -> dict[str, Figures]:
    """Of every row what was measured on a clip with so many keyframes in each shot."""
    clip = case.clip
    (surface,) = clip.surfaces(1)
    shots = (0, clip.cut_at) if clip.kind == "cut" else (0,)
    numbers = placed(shots, clip.count, count)
    source, ideal = channels_first(case.source), channels_first(case.ideal(surface))
    odd = disturbed(clip, surface, numbers)
    found: dict[str, Figures] = {}
    for row in ROWS:
        fading = Fading(row, source, numbers, shots)
        found[row] = measured(case, surface, fading.made(ideal[numbers]), numbers)
        found[row]["disturbed"] = excess(case, surface, fading.made(odd))
    given, carried, hidden = carry(case, ideal[numbers], numbers)
    ours = found[OURS] = measured(case, surface, carried, numbers)
    ours["disturbed"] = excess(case, surface, carry(case, odd, numbers)[1])
    ours["hidden"] = mean_over(hidden, case.known.masks)
    flows = [one for one in (found[row]["psnr.object"] for row in FLOWS) if one is not None]
    if flows and ours["psnr.object"] is not None:
        ours["gain_over_flow"] = ours["psnr.object"] - max(flows)
    everywhere = torch.ones_like(case.known.masks[numbers])
    through = channels_first(case.world.reconstruct(case.ideal(surface)[numbers]))
    kept = channels_first(case.world.decode({"samples": given.latents[numbers]}))
    ours["at_keyframes"] = (decibels(kept - ideal[numbers], everywhere) or 0) - (
        decibels(through - ideal[numbers], everywhere) or 0
    )
    if sampled:
        matches = case.match(case.features(case.invert(), storage="recompute"))
        filled = channels_first(case.edit(matches, surface, keyframes=given, start=START))
        clips = {
            "sampled": torch.where(hidden[:, None] > 0, filled, carried),
            "per_frame": channels_first(case.edit(matches, surface, "per frame")),
        }
        found |= {row: measured(case, surface, made, numbers) for row, made in clips.items()}
    return found


def carry(case: TruthCase, edited: Tensor, numbers: list[int]) -> Any:
    """What Carry Keyframes makes: keyframes for the sampler, the clip and what is hidden."""
    given, clip, hidden = CarryKeyframes.execute(
        frames=case.source,
        keyframes=edited.movedim(1, -1),
        numbers=", ".join(map(str, numbers)),
        vae=case.world.vae,
    ).args
    return given, channels_first(clip), hidden


def measured(case: TruthCase, surface: str, clip: Tensor, numbers: list[int]) -> Figures:
    """The figures of a clip (N, 3, H, W) made of these keyframes."""
    known, frames = case.known, range(len(clip))
    error = clip - channels_first(case.ideal(surface))
    between = [frame for frame in frames if frame not in numbers]
    distance = {frame: min(abs(frame - number) for number in numbers) for frame in between}
    seen = known.masks & ~known.hidden

    def psnr(where: Tensor, chosen: list[int]) -> float | None:
        return decibels(error[chosen], where[chosen]) if chosen else None

    return {
        "psnr.object": psnr(seen, between),
        "psnr.band": psnr(known.band, between),
        "psnr.ground": psnr(known.away, between),
        "psnr.near": psnr(seen, [frame for frame in between if distance[frame] <= NEAR]),
        "psnr.far": psnr(seen, [frame for frame in between if distance[frame] >= FAR]),
        "structure": float(known.overlaps(clip, surface).mean()),
        "excess": excess(case, surface, clip),
    }


def excess(case: TruthCase, surface: str, clip: Tensor) -> float:
    """Warp error x1e-3 along the true flow above the ideal's."""
    ideal = channels_first(case.ideal(surface))
    return float(
        warp_errors(clip, case.motion).nanmean() - warp_errors(ideal, case.motion).nanmean()
    )


def flat(groups: dict[str, Cases]) -> dict[str, float]:
    """Every figure with its interval, by <row>.<figure>.<group>, without the row for ours."""
    found = {}
    for group, cases in groups.items():
        for row in dict.fromkeys(row for _, rows in cases for row in rows):
            of_row = [(clip, rows[row]) for clip, rows in cases if row in rows]
            drawn = resampled([clip for clip, _ in of_row])
            for figure in of_row[0][1]:
                values = [figures.get(figure) for _, figures in of_row]
                column = torch.tensor(
                    [float("nan") if value is None else value for value in values],
                    dtype=torch.float64,
                )
                value, low, high = interval(column, None, drawn)
                key = f"{'' if row == OURS else row + '.'}{figure}.{group}"
                found |= {key: value, f"{key}.low": low, f"{key}.high": high}
    return {key: value for key, value in found.items() if value == value}


def table(found: dict[str, float], groups: list[str]) -> str:
    """The figures of each group and row, without their intervals."""
    figures = [*SHOWN, *OWN]
    lines = [["clips", "row", *figures], ["---"] * (len(figures) + 2)]
    for group in groups:
        for row in ("", *(f"{name}." for name in (*ROWS, "sampled", "per_frame"))):
            cells = [found.get(f"{row}{figure}.{group}") for figure in figures]
            if any(cell is not None for cell in cells):
                told = ["–" if cell is None else f"{cell:.3g}" for cell in cells]
                lines.append([group, row.rstrip(".").replace("_", " ") or OURS, *told])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()

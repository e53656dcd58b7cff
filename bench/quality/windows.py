"""Whether the windows of a long clip can be seen.

    python3 run.py bench windows [--frames 96] [--interval 4] [--limits 0 16 8 4]

The embedded clip's scene, slowed down to so many frames, edited with all keyframes attending to
each other (limit 0) and with at most so many, in windows. Warp error x1e-3 along DIS flow: mean of
all pairs of neighbouring frames; of those between two windows, which is where keyframes on both
sides were edited in different ones; and of the same pairs when all attend to each other, so that
what lies there anyway does not count. Also the true flow's mean, fidelity (how sure a classifier of
this world's surfaces is of the prompt's) and sharpness.
"""

from __future__ import annotations

import argparse

import torch
from tokenflow_pack.nodes.correspondences import EVEN
from tokenflow_pack.tokenflow_ops import Windows
from tokenflow_pack.tokenflow_ops.measuring.metrics import warp_errors
from torch import Tensor

from bench.tools.case import Case, Settings, World, channels_first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--interval", type=int, default=4)
    parser.add_argument("--limits", type=int, nargs="+", default=[0, 16, 8, 4])
    parser.add_argument("--surfaces", nargs="+", default=["gold", "marble"])
    options = parser.parse_args()
    with torch.inference_mode():
        compare(
            Case.numbered(
                World(), Settings(frames=options.frames, interval=options.interval), slowed=True
            ),
            options,
        )


def compare(case: Case, options: argparse.Namespace) -> None:
    """Prints the table in Markdown."""
    found = case.match(case.features(case.invert(), storage="memory"), intervals=EVEN)
    count = len(found.steps[0].keyframes)
    print(f"\n{case.settings}, {count} keyframes a step\n")
    print(
        "| to | attended keyframes | warp error | between windows | there, if all attend | true "
        "flow | fidelity | sharpness |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for surface in options.surfaces:
        joint = torch.empty(0)
        for limit in options.limits:
            clip = case.edit(found, surface, attended_keyframes=limit or count)
            errors = warp_errors(channels_first(clip), case.motion)
            joint = joint if len(joint) else errors
            seams = between_windows(
                Windows.of(count, limit or count), options.interval, len(errors)
            )
            apart = " | ".join(
                f"{float(of[seams].nanmean()):.2f}" if seams.any() else "" for of in (errors, joint)
            )
            figures = case.figures(clip, surface)
            print(
                f"| {surface} | {limit or 'all'} | {figures.warp:.2f} | {apart} "
                f"| {figures.true:.2f} | {figures.fidelity:.3f} | {figures.sharpness:.4f} |",
                flush=True,
            )


def between_windows(windows: Windows, interval: int, pairs: int) -> Tensor:
    """(pairs,) bool: pairs of frames in the two intervals on both sides of a window's border,
    between which keyframes are drawn.
    """
    first = torch.arange(pairs)
    borders = [own.start * interval for own in windows.own[1:]]
    return torch.stack(
        [(first >= border - interval) & (first < border + interval) for border in borders]
        or [first < 0]
    ).any(0)


if __name__ == "__main__":
    main()

"""Time and memory over the number of frames.

    python3 run.py bench length [--frames 8 16 32 64 128] [--steps 4] [--size 128] [--interval 8]

The stages of an edit of the embedded clip, led to and fro until it is long enough, with the
embedded model; the VAE is left out. --frames 40 400 tells whether time grows faster than the clip.

First table, of every stage: seconds and seconds a frame; the most MiB that were held at once beyond
what was held before, by the process and on the device; MiB of tensors in what the stage hands on,
beyond what it was given. Second table, of all stages: seconds a frame, and as a multiple of the
shortest clip's; the most that was held at once beyond what was held before the first stage; MiB of
tensors kept, by what they are. --rounds: medians of seconds and the highest peaks over so many.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from bench.tools.markdown import figure, middle, table
from bench.tools.memory import Held, Spent, highest, kept, spent_on
from bench.tools.models import Subject, make_subject

STAGES = ("inversion", "features", "matches", "sampling")
KEPT = ("inverted path", "features", "matches", "edit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--interval", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    lengths = sorted(set(options.frames))
    with torch.inference_mode():
        longest = make_subject("embedded", lengths[-1], options.size)
        # Loads the model, and times the searches once and for all.
        make_edit(longest, lengths[0], options)
        edits: dict[int, list[Edit]] = {frames: [] for frames in lengths}
        for number in range(options.rounds):
            for frames in lengths:
                edits[frames].append(make_edit(longest, frames, options))
                print(
                    f"round {number + 1}, {frames} frames: {edits[frames][-1].seconds:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
    size = f"{options.size} x {options.size} pixels"
    print(f"\nembedded model, {size}, {options.steps} steps, interval {options.interval}\n")
    report(edits)


@dataclass(frozen=True)
class Edit:
    """What an edit took.

    spent: what each of STAGES took. kept: MiB of what each hands on, beyond what it was given.
    """

    spent: list[Spent]
    kept: list[float]

    @property
    def seconds(self) -> float:
        return sum(spent.seconds for spent in self.spent)

    @property
    def process(self) -> Held | None:
        """Of all stages together."""
        return _together([spent.peak.process for spent in self.spent])

    @property
    def device(self) -> Held | None:
        return _together([spent.peak.device for spent in self.spent])


def _together(stages: list[Held | None]) -> Held | None:
    held = [stage for stage in stages if stage is not None]
    return Held(held[0].before, max(stage.most for stage in held)) if held else None


def make_edit(longest: Subject, frames: int, options: argparse.Namespace) -> Edit:
    """An edit of the first frames, of which nothing is left."""
    subject = replace(longest, clip={"samples": longest.clip["samples"][:frames]})
    inversion, inverting = spent_on(lambda: subject.invert(options.steps))
    features, extracting = spent_on(lambda: subject.extract(inversion))
    found, building = spent_on(lambda: subject.build(features, options.interval))
    edited, sampling = spent_on(lambda: subject.sample(found))
    held = [
        0.0,
        kept(inversion),
        kept(inversion, features),
        kept(features, found),
        kept(found, edited),
    ]
    return Edit(
        [inverting, extracting, building, sampling],
        [after - before for before, after in pairwise(held)],
    )


def report(edits: dict[int, list[Edit]]) -> None:
    """Prints the tables. edits: by number of frames."""
    memory = ["process MiB", "device MiB"]
    rows = (
        _stage(frames, made, number)
        for frames, made in edits.items()
        for number in range(len(STAGES))
    )
    table(["frames", "stage", "seconds", "seconds a frame", *memory, "kept MiB"], rows)
    print()
    shortest = min(edits)
    rows = (
        _whole(frames, made, edits[shortest], frames / shortest) for frames, made in edits.items()
    )
    multiples = [f"to {shortest} frames", "a frame"]
    table(
        [
            "frames",
            "seconds",
            "seconds a frame",
            *multiples,
            *memory,
            *(f"{kind} MiB" for kind in KEPT),
        ],
        rows,
    )


def _stage(frames: int, edits: list[Edit], number: int) -> list[str]:
    spent = [edit.spent[number] for edit in edits]
    seconds = [one.seconds for one in spent]
    memory = [
        highest([one.peak.process for one in spent]),
        highest([one.peak.device for one in spent]),
    ]
    per_frame = middle([each / frames for each in seconds])
    return [
        str(frames),
        STAGES[number],
        middle(seconds),
        per_frame,
        *memory,
        figure(edits[0].kept[number]),
    ]


def _whole(frames: int, edits: list[Edit], shortest: list[Edit], times: float) -> list[str]:
    """times: how often the shortest clip goes into this one."""
    seconds = [edit.seconds for edit in edits]
    per_frame = middle([each / frames for each in seconds])
    ratios = [edit.seconds / short.seconds for edit, short in zip(edits, shortest, strict=True)]
    multiples = [middle(ratios), middle([ratio / times for ratio in ratios])]
    memory = [highest([edit.process for edit in edits]), highest([edit.device for edit in edits])]
    return [
        str(frames),
        middle(seconds),
        per_frame,
        *multiples,
        *memory,
        *map(figure, edits[0].kept),
    ]


if __name__ == "__main__":
    main()

"""The table of the paper on the embedded model.

    python3 run.py bench table [--clips 3] [--edits 2] [--frames 16] [--out output/table]

Every way of keeping frames together edits the same clips with the same prompts and seeds: the
embedded clip and others of its world, to surfaces that are drawn, not picked. Each edit is a line
in OUT/cases.csv as soon as it is done; what is there already is not run again, so that a stopped
run goes on and a longer one adds to a shorter. From these lines come OUT/table.md, .csv and .png.

Warp error is x1e-3. Excess: warp error above the autoencoder's own; its mean over the edits, and
the share of per frame's. Intervals are those that hold 95 % of 2,000 resamplings of clips and of
their edits. Fidelity: how sure a classifier of this world's surfaces is of the prompt's. Sharpness,
seconds of sampling and peak memory of sampling are shares of per frame's.

Against the ideal edit, the same scene drawn with the other surface. Structure: overlap (IoU) of
the asked surface with the object's true outline. Distance: PSNR of all but the object's inside, in
dB. Drift: how far the ground's mean colour moves from the first quarter of the frames to the last,
in 1/255.

The public code is as its authors run it: with its own inversion and noise levels. Rerender-A-Video
is whole: keyframes with fused pixels, and the frames between them by guided patches; with all
frames sampled it is the mode of TokenFlow Sampler.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import torch

from bench.tools.case import Case, Settings, World
from bench.tools.memory import peak_memory
from bench.tools.paper.rows import ROWS, Prepared
from bench.tools.paper.summary import COLUMNS, FLOOR, Line, summarize, write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=3, help="the embedded clip and others")
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="the first clip's number: two processes may share the work and the output",
    )
    parser.add_argument("--edits", type=int, default=2, help="of every clip")
    Settings.add_to(parser)
    parser.add_argument(
        "--tuning",
        type=int,
        default=0,
        help="steps of Tune-A-Video's training on every clip; 0 leaves its row out",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[row.name for row in ROWS],
        choices=[row.name for row in ROWS],
        metavar="ROW",
    )
    parser.add_argument("--out", type=Path, default=Path("output/table"))
    options = parser.parse_args()
    settings = Settings.of(options)
    lines = Lines.read(options.out / "cases.csv", str(settings))
    with torch.inference_mode():
        run(options, settings, lines)
    write(options.out, summarize(lines.all), str(settings))
    print((options.out / "table.md").read_text())


class Lines:
    """The finished lines of a file, those of the same settings."""

    def __init__(self, path: Path, settings: str, lines: list[Line]) -> None:
        self.path, self.settings, self.all = path, settings, lines

    @classmethod
    def read(cls, path: Path, settings: str) -> Lines:
        if not path.exists():
            return cls(path, settings, [])
        with path.open(newline="") as file:
            records = csv.DictReader(file)
            if records.fieldnames != ["settings", *COLUMNS]:
                sys.exit(f"{path} has other columns: it is of an older version. Move it away.")
            lines = [Line.read(record) for record in records if record["settings"] == settings]
        return cls(path, settings, lines)

    def has(self, clip: int, surface: str, row: str) -> bool:
        return any((line.clip, line.surface, line.row) == (clip, surface, row) for line in self.all)

    def add(self, line: Line) -> None:
        self.all.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, ["settings", *COLUMNS])
            if new:
                writer.writeheader()
            writer.writerow({"settings": self.settings, **line.record()})
        took = "" if line.seconds is None else f", {line.seconds:.0f} s"
        right = "" if line.structure is None else f", structure {line.structure:.2f}"
        edit = f"clip {line.clip}, to {line.surface or 'itself'}, {line.row}"
        print(f"{edit}: warp error {line.warp:.2f}{right}{took}", flush=True)


def run(options: argparse.Namespace, settings: Settings, lines: Lines) -> None:
    """Every edit that is not done yet."""
    world = World(settings.model)
    for number in range(options.first, options.first + options.clips):
        case = Case.numbered(world, settings, number)
        surfaces = case.other_surfaces(options.edits, seed=number)
        chosen = [
            row
            for row in ROWS
            if row.name in options.rows
            and (options.tuning or not row.tuned)
            and world.takes(row.mode)
        ]
        missing = [
            (surface, row)
            for surface in surfaces
            for row in chosen
            if not lines.has(number, surface, row.name)
        ]
        if not missing:
            continue
        if not lines.has(number, "", FLOOR):
            lines.add(Line.of(number, "", FLOOR, case.figures(world.decode(case.latents))))
        prepared = Prepared(case, number + 1, options.tuning)
        for surface, row in missing:
            found = prepared.correspondences(row)
            with peak_memory() as peak:
                start = time.perf_counter()
                clip = prepared.edit(row, found, surface)
                seconds = time.perf_counter() - start
            lines.add(
                Line.of(number, surface, row.name, case.figures(clip, surface), seconds, peak.mib)
            )


if __name__ == "__main__":
    main()

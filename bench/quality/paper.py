"""The table of the paper on a checkpoint and clips of yours.

    python3 run.py bench paper --checkpoint FILE --clips FOLDER [--out output/paper]

Every way of keeping frames together makes every edit of a table of prompts. FOLDER holds videos or
folders of frames, and prompts.csv with the columns clip, source and prompt; or it is laid out as
DAVIS, TGVE 2023 or the public code's data are (bench/tools/paper/pairs.py).

Warp error is x1e-3, by RAFT where torchvision's weights are in ComfyUI's models/optical_flow, else
by DIS, on pixels that are visible in both frames. CLIP prompt and CLIP frames are the means of the
paper's CLIP score and of the likeness of neighbouring frames, where models/clip_vision has a CLIP
(ViT-H or ViT-bigG) and models/text_encoders the other half of it, or the checkpoint itself. Excess:
warp error above the autoencoder's own, as a share of per frame's. Seconds and memory are those of
sampling: without a GPU the processor's seconds. Intervals hold 95 % of 2,000 resamplings of clips.

What an edit leaves is in OUT/edits as soon as it is made: the same command goes on from there,
with other rows or more clips as well. From it come OUT/table.md, .csv and .png, OUT/edits.csv
with a line for each edit, and OUT/index.html, which shows the clips side by side.

A model of which the checkpoint is only a part (Flux) takes --text-encoders, --text-kind and --vae,
names in ComfyUI's folders. --workers N: N processes by Ray, one for each GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench.tools.case import Settings
from bench.tools.paper.jobs import Size, fitting, make_jobs
from bench.tools.paper.models import Judges, find_judges, part_files
from bench.tools.paper.outcome import Outcome
from bench.tools.paper.page import write_page
from bench.tools.paper.pairs import PairsError, read_pairs
from bench.tools.paper.rows import ROWS
from bench.tools.paper.running import run_here, run_on_ray
from bench.tools.paper.summary import BASE, TUNED
from cluster.manifest import OutputError, opened
from launch.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from launch.commands import positive

NAMES = [row.name for row in ROWS]


def main() -> None:
    options = parsed()
    try:
        pairs = read_pairs(options.clips, options.prompts)[: options.edits]
        checkpoint = find_checkpoint(options.checkpoint, Path(os.environ["COMFYUI_PATH"]))
        files = part_files(checkpoint, options.text_encoders, options.text_kind, options.vae)
        judges = find_judges(options.flow, options.clip_vision, options.clip_text)
        with opened(options.out / "edits") as results:
            size = Size.of(checkpoint.family, options.width, options.height)
            rows = fitting(options.rows, checkpoint.family)
            if left := [row for row in options.rows if row not in rows]:
                print(f"left out, as they are made for UNets alone: {'; '.join(left)}")
            jobs = make_jobs(
                pairs,
                rows,
                files,
                judges,
                settings(options, checkpoint),
                size,
                options.tuning,
            )
            run = run_on_ray if options.workers else run_here
            run(jobs, results, options.workers)
            outcome = Outcome.of(jobs, results.records)
    except (PairsError, CheckpointError, OutputError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
    about = described(options, checkpoint, judges, size)
    write_page(options.out, outcome, about)
    outcome.write(options.out, about)
    print((options.out / "table.md").read_text())
    print(f"{options.out / 'index.html'} shows the clips side by side.{outcome.failures()}")
    sys.exit(1 if outcome.failed else 0)


def settings(options: argparse.Namespace, checkpoint: Checkpoint) -> Settings:
    """What edits are made with; cfg by the model's family unless it is given."""
    cfg = Size.of(checkpoint.family).cfg if options.cfg is None else options.cfg
    return Settings(options.frames, options.steps, cfg, options.interval)


def described(
    options: argparse.Namespace, checkpoint: Checkpoint, judges: Judges, size: Size
) -> str:
    """A line for the table: what it was made with."""
    words = [checkpoint.path.name, f"{size.width} x {size.height}"]
    return ", ".join([*words, str(settings(options, checkpoint)), str(judges)])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True, help="the folder")
    parser.add_argument("--prompts", type=Path, help="the table, if the folder has several")
    parser.add_argument("--out", type=Path, default=Path("output/paper"))
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[name for name in NAMES if name != TUNED],
        choices=NAMES,
        metavar="ROW",
        help="of the table, per frame among them; by itself all but Tune-A-Video, which trains",
    )
    parser.add_argument("--edits", type=positive, help="how many of the table's first rows")
    usual = Settings(frames=40, steps=50, interval=8)
    parser.add_argument("--frames", type=positive, default=usual.frames, help="first of each clip")
    parser.add_argument("--steps", type=positive, default=usual.steps)
    parser.add_argument("--interval", type=positive, default=usual.interval)
    parser.add_argument("--cfg", type=float, help="by itself what suits the model's family")
    parser.add_argument("--width", type=positive, help="in pixels; by itself the model's own")
    parser.add_argument("--height", type=positive)
    parser.add_argument("--tuning", type=positive, default=100, help="steps of Tune-A-Video's row")
    parser.add_argument("--flow", default="", help="DIS, or a file in models/optical_flow")
    parser.add_argument("--clip-vision", default="", help="a file in models/clip_vision")
    parser.add_argument("--clip-text", default="", help="a file in models/text_encoders")
    parser.add_argument("--text-encoders", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--text-kind", default="stable_diffusion", help="flux, sd3, ...")
    parser.add_argument("--vae", default="", metavar="NAME")
    parser.add_argument("--workers", type=positive, help="how many processes, by Ray")
    options = parser.parse_args()
    if BASE not in options.rows:
        parser.error(f"--rows: {BASE!r} must be one of them, all others are measured against it")
    return options


if __name__ == "__main__":
    main()

"""How right edits are.

    python3 run.py bench truth [--clips 4] [--edits 2] [--kinds plain enter
        ...] [--size 128 192] [--quick] [--json FILE]

On the embedded model's world every edit has a true answer: the same scene drawn with another
surface. Clips of every kind (demo/clips.py) are drawn by number and edited by every row with the
same prompts and seeds. Each edit is a line in OUT/cases.csv as soon as it is done; what is there
already is not run again. From these lines come OUT/truth.md, truth.csv and worst.png: of each kind
the frame that ours got most wrong, beside its ideal.

Plug-and-Play takes the source's features in one block of every resolution; in one_block in the
paper's alone. Ours is the defaults with Find Edit Mask, used as its help page says: the mask grown
by a latent's side, the average of the source prompt and an empty one as negative prompt, cfg 4,
and the edit laid over the source by the host's ImageCompositeMasked. without_mask is the defaults
alone.

structure: overlap (IoU) of the pixels of the asked surface (bench/tools/materials.py) with the
    object's true outline, mean over the frames; what another object hides is left out.
ghosts: share of pixels away from the object that are of the asked surface.
ground, outline: PSNR to the ideal of the ground, and of a band of 5 pixels on both sides of the
    outline, in dB.
excess: warp error x1e-3 along the true flow above the ideal's through the autoencoder; in tables a
    share of per frame's.
drift: how far the ground's mean colour moves against the ideal's from the first quarter of the
    frames to the last, in 1/255.
fidelity: how sure the judge is of the asked surface.
sharpness, cost: shares of per frame's; cost is the processor time of sampling.
Intervals hold 95 % of 2,000 resamplings of clips and of their edits.

--json FILE: one flat object, <figure>.<group> for ours, <row>.<figure>.<group> for others, with
.low and .high. Groups are the kinds, "hard" for all but plain, and "all". judge.* are the shares of
the model's samples that show what the prompt says.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from clips import KINDS, Clip
from tokenflow_pack.reporting.grid import captioned_grid
from torch import Tensor

from bench.tools.case import Settings, World
from bench.tools.intervals import interval, resampled
from bench.tools.truth import Figures, TruthCase
from bench.tools.truth_rows import ASKED, BASE, IDEAL, OURS, ROWS, Row, Stages


@dataclass(frozen=True)
class Line:
    """One edit and what was measured on it; None where there is nothing to measure. seconds: of
    sampling, processor time.
    """

    kind: str
    number: int
    surface: str
    row: str
    seconds: float
    structure: float | None
    ghosts: float | None
    ground: float | None
    outline: float | None
    excess: float | None
    drift: float | None
    fidelity: float | None
    sharpness: float | None

    @classmethod
    def of(cls, clip: Clip, surface: str, row: str, seconds: float, figures: Figures) -> Line:
        return cls(clip.kind, clip.number, surface, row, seconds, **asdict(figures))

    @classmethod
    def read(cls, record: dict[str, str]) -> Line:
        values: list[Any] = [float(record[name]) if record[name] else None for name in MEASURED]
        return cls(record["kind"], int(record["number"]), record["surface"], record["row"], *values)

    @property
    def edit(self) -> tuple[str, int, str]:
        return self.kind, self.number, self.surface


MEASURED = [field.name for field in fields(Line)][4:]
# Of per frame's, and what they are called then.
SHARES = {"excess": "excess", "sharpness": "sharpness", "seconds": "cost"}

USUAL = (128, 128)  # height and width in pixels, as the model was trained

# Eleven clips of as few frames as every kind needs: about 300 s of one core.
QUICK = {
    "clips": 1,
    "edits": 1,
    "rows": [BASE, OURS],
    "samples": 2,
    "frames": 6,
    "steps": 4,
    "interval": 4,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--clips", type=int, default=4, help="of each kind")
    parser.add_argument("--first", type=int, default=1, help="the first clip's number")
    parser.add_argument("--edits", type=int, default=2, help="of each clip")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND"
    )
    usual = [name for name in names if name not in ASKED]
    parser.add_argument("--rows", nargs="+", default=usual, choices=names, metavar="ROW")
    parser.add_argument(
        "--samples",
        type=int,
        default=400,
        help="of the model, for the judge's rates; 0 leaves them out",
    )
    Settings.add_to(parser)
    parser.add_argument(
        "--size", type=int, nargs=2, default=USUAL, metavar=("HEIGHT", "WIDTH"), help="in pixels"
    )
    parser.add_argument("--out", type=Path, default=Path("output/truth"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one edit of one short clip of each kind, two rows: minutes, and no intervals",
    )
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK, out=options.out / "quick")
    if BASE not in options.rows:  # others are told as shares of it
        options.rows = [BASE, *options.rows]
    settings = Settings.of(options)
    with torch.inference_mode():
        world = World(settings.model)
        lines = run(world, options, settings)
        rates = world.rates(options.samples) if options.samples else {}
    groups = groups_of(lines)
    write(options.out, groups, told(settings, options.size))
    if options.json:
        options.json.write_text(
            json.dumps(
                flat(groups) | {f"judge.{kind}": rate for kind, rate in rates.items()}, indent=1
            )
        )
    print((options.out / "truth.md").read_text())
    print(
        "the model's samples as prompted: "
        + ", ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items())
    )


def run(world: World, options: argparse.Namespace, settings: Settings) -> list[Line]:
    """Every edit that is not done yet.

    Returns: all lines of these settings, the wanted rows and clips.
    """
    path, head = options.out / "cases.csv", ["settings", *(field.name for field in fields(Line))]
    done: list[Line] = []
    if path.exists():
        with path.open(newline="") as file:
            done = [
                Line.read(record)
                for record in csv.DictReader(file)
                if record["settings"] == told(settings, options.size)
            ]
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(head) + "\n")
    rows = [
        row
        for row in ROWS
        if row.name in options.rows and world.takes(row.sampling.get("consistency", "tokenflow"))
    ]
    known = {(*line.edit, line.row) for line in done}
    wanted = []
    for kind in options.kinds:
        for number in numbers(kind, options.first, options.clips):
            clip = Clip(kind, number, settings.frames, tuple(options.size))
            surfaces = clip.surfaces(options.edits)
            wanted += [
                (kind, number, surface, name)
                for surface in surfaces
                for name in [IDEAL, *(row.name for row in rows)]
            ]
            missing = [key for key in wanted if key[:2] == (kind, number) and key not in known]
            if not missing:
                continue
            with path.open("a", newline="") as file:
                writer = csv.writer(file)
                for line in edits_of(
                    TruthCase(world, settings, clip), surfaces, rows, known, options.out
                ):
                    done.append(line)
                    writer.writerow([told(settings, options.size), *astuple(line)])
                    file.flush()
                    seen = f"structure {line.structure:.2f}" if line.structure is not None else ""
                    edit = f"{kind} {number} to {line.surface}, {line.row}"
                    print(f"{edit}: {seen}, {line.seconds:.0f} s", flush=True)
    return [line for line in done if (*line.edit, line.row) in set(wanted)]


def numbers(kind: str, first: int, count: int) -> range:
    """Which clips of a kind are edited: other ones than of other kinds, which have other words."""
    start = first + list(KINDS).index(kind)
    return range(start, start + count * len(KINDS), len(KINDS))


def edits_of(
    case: TruthCase, surfaces: list[str], rows: list[Row], known: set[Any], out: Path
) -> Iterator[Line]:
    """The lines of a clip that are not known yet, as they are made."""
    stages = Stages(case)
    for surface in surfaces:
        pictures = {"source": case.source, "ideal": case.ideal(surface)}
        if (*case.key, surface, IDEAL) not in known:
            figures = case.figures(case.world.reconstruct(pictures["ideal"]), surface)
            yield Line.of(case.clip, surface, IDEAL, 0.0, figures)
        for row in rows:
            if (*case.key, surface, row.name) in known:
                continue
            edited, seconds = stages.edit(row, surface)
            line = Line.of(case.clip, surface, row.name, seconds, case.figures(edited, surface))
            pictures[row.name] = edited
            if row.name == OURS:
                keep_worst(out, case, surface, pictures, line)
            yield line


def keep_worst(
    out: Path, case: TruthCase, surface: str, clips: dict[str, Tensor], line: Line
) -> None:
    """Keeps the frame that an edit got most wrong, if it is the kind's worst so far.

    It is a picture, with the ideal beside it.
    """
    from PIL import Image

    folder = out / "worst"
    folder.mkdir(parents=True, exist_ok=True)
    before = [float(path.stem.rsplit(" ", 1)[1]) for path in folder.glob(f"{case.clip.kind} *.png")]
    overlap = 0.0 if line.structure is None else line.structure
    if before and min(before) <= overlap:
        return
    for path in folder.glob(f"{case.clip.kind} *.png"):
        path.unlink()
    worst = case.worst_frame(clips[OURS], surface)
    grid = captioned_grid(
        {name: clip[worst : worst + 1] for name, clip in clips.items()}, columns=len(clips)
    )[0]
    Image.fromarray((grid * 255).round().byte().numpy()).save(
        folder / f"{case.clip.kind} {overlap:.4f}.png"
    )


@dataclass(frozen=True)
class Group:
    """A group's edits: of each row the lines in the same order.

    clips: which clip each edit is of.
    """

    lines: dict[str, list[Line]]
    clips: list[tuple[str, int]]

    def column(self, row: str, name: str) -> Any:
        """(n,) float, NaN where nothing was measured."""
        values = [getattr(line, name) for line in self.lines[row]]
        return torch.tensor(
            [float("nan") if value is None else value for value in values], dtype=torch.float64
        )

    def figure(self, row: str, name: str, share: bool = False) -> tuple[float, float, float]:
        """The mean, or the share of per frame's mean, and its interval."""
        return interval(
            self.column(row, name),
            self.column(BASE, name) if share else None,
            resampled(self.clips),
        )


def groups_of(lines: list[Line]) -> dict[str, Group]:
    """Kinds, "hard" and "all", of the edits that all rows have."""
    rows = sorted(
        {line.row for line in lines},
        key=lambda name: [IDEAL, *(row.name for row in ROWS)].index(name),
    )
    found = {(line.row, line.edit): line for line in lines}
    edits = sorted({line.edit for line in lines if all((row, line.edit) in found for row in rows)})
    kinds = [kind for kind in KINDS if any(edit[0] == kind for edit in edits)]
    parts: dict[str, Callable[[str], bool]] = {kind: kind.__eq__ for kind in kinds}
    parts |= {"hard": lambda kind: kind != "plain", "all": lambda kind: True}
    groups = {}
    for name, belongs in parts.items():
        chosen = [edit for edit in edits if belongs(edit[0])]
        if chosen:
            groups[name] = Group(
                {row: [found[row, edit] for edit in chosen] for row in rows},
                [edit[:2] for edit in chosen],
            )
    return groups


def flat(groups: dict[str, Group]) -> dict[str, float]:
    """Every figure with its interval, by <row>.<figure>.<group>, without the row for ours."""
    found = {}
    for name, group in groups.items():
        for row in group.lines:
            for measured in MEASURED:
                key = ".".join(
                    [*([] if row == OURS else [row]), SHARES.get(measured, measured), name]
                )
                value, low, high = group.figure(row, measured, share=measured in SHARES)
                found |= {key: value, f"{key}.low": low, f"{key}.high": high}
    return {key: value for key, value in found.items() if value == value}


def told(settings: Settings, size: Sequence[int]) -> str:
    """The settings in words, by which lines are found again; the size where it is not the usual."""
    words = str(settings)
    return words if tuple(size) == USUAL else f"{words}, {size[0]} x {size[1]} pixels"


def write(folder: Path, groups: dict[str, Group], settings: str) -> None:
    """truth.md, truth.csv and worst.png. settings: in words."""
    head = ["clips", "row", "edits", *(SHARES.get(name, name) for name in MEASURED[1:]), "cost"]
    table = []
    for name, group in groups.items():
        for row in group.lines:
            cells = []
            for measured in [*MEASURED[1:], "seconds"]:
                value, low, high = group.figure(row, measured, share=measured in SHARES)
                cells.append("–" if value != value else f"{value:.3g} ({low:.3g} to {high:.3g})")
            table.append([name, row.replace("_", " "), str(len(group.clips)), *cells])
    rows = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *table)]
    (folder / "truth.md").write_text("\n".join([settings, "", *rows, ""]))
    with (folder / "truth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *table])
    draw_worst(folder)


def draw_worst(folder: Path) -> None:
    """The kinds' worst frames, one below the other."""
    from PIL import Image

    pictures = [Image.open(path) for path in sorted((folder / "worst").glob("*.png"))]
    if not pictures:
        return
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)))
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    sheet.save(folder / "worst.png")


if __name__ == "__main__":
    main()

"""From the lines of single edits to the table, as Markdown, CSV and a figure.

The table has means, shares of the per-frame edit, intervals.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tokenflow_pack.reporting.tables import DPI, MARGIN, ROW, draw_table

from bench.tools.case import Figures
from bench.tools.intervals import interval, resampled

FLOOR = "autoencoder"
BASE = "per frame (PnP-Diffusion)"
OURS = "TokenFlow"
NONE = "–"
# Pixels of the figure's right side, points of what is written beside the table.
INTERVALS, LETTERS = 420, 15
FLOOR_OF_PAPER, BASE_OF_PAPER = 2.0, 11.3


@dataclass(frozen=True)
class Paper:
    """Figures of the paper's table, for 40 frames and 50 steps. warp: warp error x1e-3. clip: CLIP
    score. preferred: share of users who preferred TokenFlow.
    """

    warp: float | None
    clip: float | None
    seconds: int | None = None
    preferred: str = ""


GEN_1 = "Gen-1 (closed: the paper's figures only)"
TUNED = "Tune-A-Video"
# The rows in their order, and what the paper has on them.
ORDER: dict[str, Paper | None] = {
    FLOOR: Paper(FLOOR_OF_PAPER, 0.23),
    BASE: Paper(BASE_OF_PAPER, 0.33, 208, "94 %"),
    "first frame (Text2Video-Zero)": Paper(12.5, 0.33, 198, "78 %"),
    "sparse-causal (Tune-A-Video, untrained)": None,
    TUNED: Paper(30.0, 0.31, 2684, "82 %"),
    "FateZero": Paper(6.9, 0.32, 349, "71 %"),
    GEN_1: Paper(None, 0.32, None, "70 %"),
    "Rerender-A-Video": Paper(1.8, 0.32, 285, "71 %"),
    "Rerender-A-Video, all frames sampled": None,
    "joint attention": Paper(5.9, 0.33, None, "90 %"),
    "TokenFlow, fixed keyframes": Paper(3.7, 0.33),
    "TokenFlow, public code": None,
    "TokenFlow, as in the paper, our weights": None,
    OURS: Paper(3.0, 0.33, 237),
}


@dataclass(frozen=True)
class Line:
    """One edit: the clip's number or name, the surface or the prompt asked for, row of the table,
    and what was measured; memory in MiB. prompt, frames: CLIP's similarities.
    """

    clip: int | str
    surface: str
    row: str
    warp: float
    true: float | None
    sharpness: float
    fidelity: float | None = None
    structure: float | None = None
    distance: float | None = None
    drift: float | None = None
    seconds: float | None = None
    memory: float | None = None
    prompt: float | None = None
    frames: float | None = None

    @classmethod
    def of(
        cls,
        clip: int,
        surface: str,
        row: str,
        figures: Figures,
        seconds: float | None = None,
        memory: float | None = None,
    ) -> Line:
        return cls(clip, surface, row, **asdict(figures), seconds=seconds, memory=memory)

    @classmethod
    def read(cls, record: Mapping[str, str]) -> Line:
        values: dict[str, float | None] = {
            name: float(record[name]) if record[name] else None for name in COLUMNS[3:]
        }
        return cls(int(record["clip"]), record["surface"], record["row"], **values)  # type: ignore[arg-type]

    def record(self) -> dict[str, object]:
        return asdict(self)


COLUMNS = [field.name for field in fields(Line)]


@dataclass(frozen=True)
class Share:
    """A figure and the interval that holds 95 % of its resamplings."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.format(".2f")

    def format(self, form: str) -> str:
        """Each number in this form."""
        value, low, high = (format(number, form) for number in (self.value, self.low, self.high))
        return NONE if np.isnan(self.value) else f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Summary:
    """A row of the table. warp: mean warp error. structure, distance, drift: means.

    prompt, frames: means of CLIP's similarities. took, held: means, in seconds and MiB.

    All else as shares of the per-frame edits' mean; excess: warp error above the floor.
    """

    row: str
    warp: float
    excess: Share
    true_excess: Share
    fidelity: Share
    sharpness: Share
    structure: Share
    distance: Share
    drift: Share
    seconds: float
    memory: float
    prompt: Share
    frames: Share
    took: float
    held: float


@dataclass(frozen=True)
class Table:
    """edits, clips: how many every row has. floor: the autoencoder's mean warp error."""

    rows: list[Summary]
    edits: int
    clips: int
    floor: float


Edit = tuple[int | str, str]


def summarize(lines: Sequence[Line]) -> Table:
    """Over the edits that all rows have.

    Raises: ValueError if there is none, or no per-frame edit.
    """
    floors = {line.clip: line for line in lines if line.row == FLOOR}
    rows: dict[str, dict[Edit, Line]] = {}
    for line in lines:
        if line.row != FLOOR:
            rows.setdefault(line.row, {})[line.clip, line.surface] = line
    edits = sorted(set.intersection(*(set(found) for found in rows.values()))) if rows else []
    if BASE not in rows or not edits:
        raise ValueError("no edit that all rows have; per frame must be one of them")
    drawn = resampled([clip for clip, _ in edits])

    def excess(name: str) -> Callable[[Line], float | None]:
        def above(line: Line) -> float | None:
            own, floor = getattr(line, name), getattr(floors[line.clip], name)
            return None if own is None or floor is None else own - floor

        return above

    def column(row: str, of: Callable[[Line], float | None]) -> np.ndarray:
        values = (of(rows[row][edit]) for edit in edits)
        return np.array([np.nan if value is None else value for value in values])

    def share(row: str, of: Callable[[Line], float | None]) -> Share:
        own, base = column(row, of), column(BASE, of)
        return Share(*interval(torch.from_numpy(own), torch.from_numpy(base), drawn))

    def mean(row: str, of: Callable[[Line], float | None]) -> Share:
        return Share(*interval(torch.from_numpy(column(row, of)), None, drawn))

    def summary(row: str) -> Summary:
        return Summary(
            row,
            mean(row, lambda line: line.warp).value,
            share(row, excess("warp")),
            share(row, excess("true")),
            share(row, lambda line: line.fidelity),
            share(row, lambda line: line.sharpness),
            mean(row, lambda line: line.structure),
            mean(row, lambda line: line.distance),
            mean(row, lambda line: line.drift),
            share(row, lambda line: line.seconds).value,
            share(row, lambda line: line.memory).value,
            mean(row, lambda line: line.prompt),
            mean(row, lambda line: line.frames),
            mean(row, lambda line: line.seconds).value,
            mean(row, lambda line: line.memory).value,
        )

    clips = {clip for clip, _ in edits}
    return Table(
        [summary(row) for row in ORDER if row in rows],
        len(edits),
        len(clips),
        float(np.nanmean([floors[clip].warp for clip in clips])),
    )


HEADINGS = (
    "",
    "warp error",
    "excess",
    "excess, true flow",
    "fidelity",
    "sharpness",
    "structure",
    "distance (dB)",
    "drift",
    "CLIP prompt",
    "CLIP frames",
    "seconds, share",
    "memory, share",
    "seconds",
    "MiB",
)
PAPER_HEADINGS = (
    "paper: warp error",
    "paper: excess",
    "paper: CLIP",
    "paper: seconds",
    "paper: users for TokenFlow",
)


# Columns that the figure leaves out.
UNDRAWN = ("excess, true flow", "paper: seconds", "paper: users for TokenFlow")


def cells(table: Table) -> list[list[str]]:
    """The table as text, the paper's figures at the end of each row."""
    found = {row.row: row for row in table.rows}
    shown = [name for name in ORDER if name in found or name in (FLOOR, GEN_1, TUNED)]
    return [
        [
            name,
            *(own(found[name]) if name in found else missing(name, table)),
            *published(ORDER[name]),
        ]
        for name in shown
    ]


def own(row: Summary) -> list[str]:
    shares = (row.excess, row.true_excess, row.fidelity, row.sharpness)
    means = (row.structure, row.distance, row.drift)
    return [
        number(row.warp, ".2f"),
        *map(str, (*shares, *means)),
        *(text.format(".3f") for text in (row.prompt, row.frames)),
        *(number(share, ".2f") for share in (row.seconds, row.memory)),
        number(row.took, ".1f"),
        number(row.held, ".0f"),
    ]


def missing(name: str, table: Table) -> list[str]:
    return [number(table.floor, ".2f") if name == FLOOR else NONE, *[NONE] * (len(HEADINGS) - 2)]


def published(paper: Paper | None) -> list[str]:
    if paper is None:
        return [NONE] * 5
    share = (
        None
        if paper.warp is None
        else (paper.warp - FLOOR_OF_PAPER) / (BASE_OF_PAPER - FLOOR_OF_PAPER)
    )
    return [
        number(paper.warp),
        number(share, ".2f"),
        number(paper.clip),
        number(paper.seconds),
        paper.preferred or NONE,
    ]


def number(value: float | None, form: str = "g") -> str:
    return NONE if value is None or np.isnan(value) else format(value, form)


def write(folder: Path, table: Table, settings: str) -> None:
    """table.md, table.csv and table.png in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    head, *text = laid_out(table)
    about = f"{table.edits} edits of {table.clips} clips, {settings}"
    rows = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *text)]
    (folder / "table.md").write_text("\n".join([about, "", *rows, ""]))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *text])
    draw([head, *text], table, about).savefig(folder / "table.png", bbox_inches="tight")


def laid_out(table: Table) -> list[list[str]]:
    """The head and the rows, without columns in which nothing was measured."""
    rows = [[*HEADINGS, *PAPER_HEADINGS], *cells(table)]
    own = [set(column) - {NONE} for column in zip(*rows[1:], strict=True)]
    kept = [i for i, found in enumerate(own) if found]
    return [[row[i] for i in kept] for row in rows]


def draw(rows: list[list[str]], table: Table, about: str) -> Figure:
    """The table as the metrics node draws it, without intervals and some columns, and every row's
    excess with its interval beside it.
    """
    kept = [i for i, heading in enumerate(rows[0]) if heading not in UNDRAWN]
    heads, text = [rows[0][i] for i in kept], rows[1:]
    shown = [[row[0], *(row[i].split(" (")[0] for i in kept[1:])] for row in text]
    picture = draw_table(heads, [[[(cell, row[0] == OURS) for cell in row] for row in shown]])[0]
    height, width = picture.shape[:2]
    figure = Figure(figsize=((width + INTERVALS) / DPI, height / DPI), dpi=DPI)
    left = figure.add_axes((0, 0, width / (width + INTERVALS), 1))
    left.imshow(picture)
    left.axis("off")
    right = figure.add_axes(
        (width / (width + INTERVALS), 0, 0.96 * INTERVALS / (width + INTERVALS), 1)
    )
    places = {row[0]: MARGIN + ROW * (i + 1.5) for i, row in enumerate(text)}
    for row in table.rows:
        excess = row.excess
        spread = [[excess.value - excess.low], [excess.high - excess.value]]
        right.errorbar(
            excess.value,
            places[row.row],
            xerr=spread,
            fmt="o",
            color="C3" if row.row == OURS else "C0",
            capsize=3,
        )
    right.set(xlim=(0, None), ylim=(height, 0), yticks=[])
    right.set_xlabel("excess and its interval", size=LETTERS)
    right.tick_params(labelsize=LETTERS)
    right.spines[["left", "right", "top"]].set_visible(False)
    right.grid(axis="x", alpha=0.3)
    figure.suptitle(about, y=1.04, size=LETTERS)
    return figure

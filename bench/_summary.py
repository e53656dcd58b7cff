"""From the lines of single edits to the table: means, shares of the per-frame edit, intervals; as Markdown, CSV and a figure."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np
from _case import Figures

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FLOOR = "autoencoder"
BASE = "per frame (PnP-Diffusion)"
RESAMPLINGS = 2000
NONE = "–"
FLOOR_OF_PAPER, BASE_OF_PAPER = 2.0, 11.3


@dataclass(frozen=True)
class Paper:
    """Figures of the paper's table, for 40 frames and 50 steps. warp: warp error x1e-3. clip: CLIP score. preferred: share of users who
    preferred TokenFlow."""

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
    "joint attention": Paper(5.9, 0.33, None, "90 %"),
    "TokenFlow, fixed keyframes": Paper(3.7, 0.33),
    "TokenFlow, public code": None,
    "TokenFlow, as in the paper": None,
    "TokenFlow": Paper(3.0, 0.33, 237),
}


@dataclass(frozen=True)
class Line:
    """One edit: clip number, surface asked for, row of the table, and what was measured; memory in MiB."""

    clip: int
    surface: str
    row: str
    warp: float
    true: float
    sharpness: float
    fidelity: float | None = None
    seconds: float | None = None
    memory: float | None = None

    @classmethod
    def of(cls, clip: int, surface: str, row: str, figures: Figures, seconds: float | None = None, memory: float | None = None) -> Line:
        return cls(clip, surface, row, **asdict(figures), seconds=seconds, memory=memory)

    @classmethod
    def read(cls, record: Mapping[str, str]) -> Line:
        values: dict[str, float | None] = {name: float(record[name]) if record[name] else None for name in COLUMNS[3:]}
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
        return NONE if np.isnan(self.value) else f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Summary:
    """A row of the table. warp: mean warp error. All else as shares of the per-frame edits' mean; excess: warp error above the floor."""

    row: str
    warp: float
    excess: Share
    true_excess: Share
    fidelity: Share
    sharpness: Share
    seconds: float
    memory: float


@dataclass(frozen=True)
class Table:
    """edits, clips: how many every row has. floor: the autoencoder's mean warp error."""

    rows: list[Summary]
    edits: int
    clips: int
    floor: float


Edit = tuple[int, str]


def summarize(lines: Sequence[Line]) -> Table:
    """Over the edits that all rows have. Raises: ValueError if there is none, or no per-frame edit."""
    floors = {line.clip: line for line in lines if line.row == FLOOR}
    rows: dict[str, dict[Edit, Line]] = {}
    for line in lines:
        if line.row != FLOOR:
            rows.setdefault(line.row, {})[line.clip, line.surface] = line
    edits = sorted(set.intersection(*(set(found) for found in rows.values()))) if rows else []
    if BASE not in rows or not edits:
        raise ValueError("no edit that all rows have; per frame must be one of them")
    drawn = resampled(edits)

    def excess(name: str) -> Callable[[Line], float]:
        return lambda line: getattr(line, name) - getattr(floors[line.clip], name)

    def column(row: str, of: Callable[[Line], float | None]) -> np.ndarray:
        values = (of(rows[row][edit]) for edit in edits)
        return np.array([np.nan if value is None else value for value in values])

    def share(row: str, of: Callable[[Line], float | None]) -> Share:
        own, base = column(row, of), column(BASE, of)
        spread = np.percentile(own[drawn].mean(1) / base[drawn].mean(1), [2.5, 97.5])
        return Share(own.mean() / base.mean(), *spread)

    def summary(row: str) -> Summary:
        return Summary(
            row,
            column(row, lambda line: line.warp).mean(),
            share(row, excess("warp")),
            share(row, excess("true")),
            share(row, lambda line: line.fidelity),
            share(row, lambda line: line.sharpness),
            share(row, lambda line: line.seconds).value,
            share(row, lambda line: line.memory).value,
        )

    clips = {clip for clip, _ in edits}
    return Table(
        [summary(row) for row in ORDER if row in rows], len(edits), len(clips), float(np.mean([floors[clip].warp for clip in clips]))
    )


def resampled(edits: Sequence[Edit]) -> np.ndarray:
    """Positions of edits, (RESAMPLINGS, n): clips drawn with replacement, then as many of each clip's edits: edits of a clip are alike."""
    draw = np.random.default_rng(0)
    of_clip = [[i for i, edit in enumerate(edits) if edit[0] == clip] for clip in sorted({clip for clip, _ in edits})]
    each = len(edits) // len(of_clip)

    def resample() -> list[int]:
        return [draw.choice(of_clip[clip]) for clip in draw.integers(len(of_clip), size=len(of_clip)) for _ in range(each)]

    return np.array([resample() for _ in range(RESAMPLINGS)])


HEADINGS = ("", "warp error", "excess", "excess, true flow", "fidelity", "sharpness", "seconds", "memory")
PAPER_HEADINGS = ("paper: warp error", "excess", "CLIP score", "seconds", "users for TokenFlow")


def cells(table: Table) -> list[list[str]]:
    """The table as text, the paper's figures at the end of each row."""
    found = {row.row: row for row in table.rows}
    shown = [name for name in ORDER if name in found or name in (FLOOR, GEN_1, TUNED)]
    return [[name, *(own(found[name]) if name in found else missing(name, table)), *published(ORDER[name])] for name in shown]


def own(row: Summary) -> list[str]:
    shares = (row.excess, row.true_excess, row.fidelity, row.sharpness)
    return [number(row.warp, ".2f"), *map(str, shares), number(row.seconds, ".2f"), number(row.memory, ".2f")]


def missing(name: str, table: Table) -> list[str]:
    return [number(table.floor, ".2f") if name == FLOOR else NONE, *[NONE] * 6]


def published(paper: Paper | None) -> list[str]:
    if paper is None:
        return [NONE] * 5
    share = None if paper.warp is None else (paper.warp - FLOOR_OF_PAPER) / (BASE_OF_PAPER - FLOOR_OF_PAPER)
    return [number(paper.warp), number(share, ".2f"), number(paper.clip), number(paper.seconds), paper.preferred or NONE]


def number(value: float | None, form: str = "g") -> str:
    return NONE if value is None or np.isnan(value) else format(value, form)


def write(folder: Path, table: Table, settings: str) -> None:
    """table.md, table.csv and table.png in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text, head = cells(table), [*HEADINGS, *PAPER_HEADINGS]
    about = f"{table.edits} edits of {table.clips} clips, {settings}"
    rows = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *text)]
    (folder / "table.md").write_text("\n".join([about, "", *rows, ""]))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *text])
    draw(text, table, about).savefig(folder / "table.png", dpi=150, bbox_inches="tight")


def draw(text: list[list[str]], table: Table, about: str) -> plt.Figure:
    """The table as in the paper, and the excess of every row with its interval beside it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 0.36 * len(text) + 1.2), width_ratios=[3.2, 1])
    plain = [[row[0], row[1], row[2].split(" ")[0], *(cell.split(" ")[0] for cell in row[4:8]), *row[8:11]] for row in text]
    heads = ["", "warp error\nx1e-3", "excess\nshare", "fidelity\nshare", "sharpness\nshare", "seconds\nshare", "memory\nshare"]
    heads += ["paper:\nwarp error", "paper:\nexcess", "paper:\nCLIP score"]
    drawn = left.table(plain, colLabels=heads, bbox=[0, 0, 1, 1], colWidths=[4.2, *[1] * 9], cellLoc="center", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_linewidth(0.4)
        if column == 0:
            cell.set_text_props(ha="left")
        if row > 0 and plain[row - 1][0] == "TokenFlow":
            cell.set_text_props(weight="bold")
    left.axis("off")
    height = len(text) + 2  # the heading's row is as high as two would be, as matplotlib's table draws all rows alike
    found = {row.row: row for row in table.rows}
    for i, line in enumerate(text):
        if line[0] in found:
            excess = found[line[0]].excess
            y = len(text) - i - 0.5
            spread = [[excess.value - excess.low], [excess.high - excess.value]]
            right.errorbar(excess.value, y, xerr=spread, fmt="o", color="C3" if line[0] == "TokenFlow" else "C0", capsize=3)
    right.set_ylim(0, height - 1)
    right.set_xlim(left=0)
    right.set_yticks([])
    right.set_xlabel("warp error above the autoencoder's, per frame = 1")
    right.spines[["left", "right", "top"]].set_visible(False)
    right.grid(axis="x", alpha=0.3)
    figure.suptitle(about, fontsize=9)
    figure.subplots_adjust(wspace=0.03)
    return figure

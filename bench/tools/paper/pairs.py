"""Clips and prompts of a folder, in the layouts that are in use.

A table of prompts, .csv, .tsv or .jsonl, as of `run.py batch`: columns clip (a video, or a folder
    of frames), source (what it shows; may be empty) and prompt or edit (what is asked for), a row
    for every edit.
TGVE 2023 (the LOVEU challenge): its CSV, one clip and four edits a row, beside DAVIS_480p,
    youtube_480p and videvo_480p.
The public code's pairs: YAML files with data_path, prompt and, if need be, inversion_prompt.

Clips are looked for in the folder, where DAVIS has its frames (JPEGImages/480p/NAME), where TGVE
has them, and in videos/ and data/; the ending of a video's name may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.jobs.table import READERS, look_over, problem

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TGVE_CLIP, TGVE_SOURCE = "Video name", "Our GT caption"
TGVE_EDITS = (
    "Style Change Caption",
    "Object Change Caption",
    "Background Change Caption",
    "Multiple Changes Caption",
)
PLACES = (
    ".",
    "JPEGImages/480p",
    "JPEGImages/Full-Resolution",
    "JPEGImages/1080p",
    "DAVIS/JPEGImages/480p",
    *(
        f"{part}/{kind}"
        for part in ("DAVIS_480p", "youtube_480p", "videvo_480p")
        for kind in ("480p_frames", "480p_videos", ".")
    ),
    "videos",
    "data",
)
CONFIGS = (".", "configs")
REMEDY = "Write a prompts.csv with the columns clip, source and prompt"


class PairsError(ValueError):
    """What is wrong with a folder of clips, a line for each."""


@dataclass(frozen=True)
class Pair:
    """An edit to be made. clip: its name. path: a video, or a folder of frames. source: what it
    shows. edit: what is asked for.
    """

    clip: str
    path: Path
    source: str
    edit: str


def read_pairs(folder: Path, table: Path | None = None) -> list[Pair]:
    """All edits of a folder, in the table's order. table: of the prompts; by itself the only one in
    the folder.

    Raises: PairsError with all that is wrong.
    """
    if not folder.is_dir():
        raise PairsError(f"{folder} is no folder.")
    if table is not None and not table.is_file():
        raise PairsError(f"there is no table {table}.")
    table = table or _only_table(folder)
    written = _of_table(table) if table else _of_configs(folder)
    pairs: list[Pair] = []
    wrong: list[str] = []
    for where, clip, source, edit in written:
        path = find_clip(folder, clip)
        if not clip or not edit:
            wrong.append(f"{where}: no {'prompt' if clip else 'clip'} in it. {REMEDY}.")
        elif path is None:
            wrong.append(f"{where}: there is no clip {clip!r} in {folder}.")
        elif any((pair.path, pair.edit) == (path, edit) for pair in pairs):
            wrong.append(f"{where}: {clip!r} to {edit!r} is there twice. Leave one out.")
        else:
            pairs.append(Pair(_name(clip), path, source, edit))
    if not pairs and not wrong:
        wrong.append(f"there is no edit in {table or folder}. {REMEDY}.")
    if wrong:
        raise PairsError("\n".join(wrong))
    return pairs


def find_clip(folder: Path, name: str) -> Path | None:
    """The video or the folder of frames of a name, None if there is none."""
    for place in PLACES:
        path = folder / place / name
        if path.is_dir() and frame_files(path):
            return path
        for file in (path, *(path.with_name(path.name + ending) for ending in VIDEOS)):
            if file.suffix.lower() in VIDEOS and file.is_file():
                return file
    return None


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, numbers by their value."""

    def order(path: Path) -> tuple[int, str]:
        digits = "".join(letter for letter in path.stem if letter.isdigit())
        return int(digits or 0), path.name

    found = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    return sorted(found, key=order)


def _only_table(folder: Path) -> Path | None:
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS)
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise PairsError(f"{folder} has several tables: {names}. Name one by --prompts.")
    return tables[0] if tables else None


# Where it is written, the clip's name, what it shows, what is asked for.
Written = tuple[str, str, str, str]


def _of_table(table: Path) -> list[Written]:
    rows, problems = look_over(table)
    problems = [found for found in problems if "column 'name'" not in found]
    if problems:
        raise PairsError("\n".join(problems))
    columns = {column for row in rows for column in row.cells}
    if TGVE_CLIP in columns:
        return list(_of_tgve(table, [row.cells for row in rows]))
    if "clip" not in columns or not columns & {"prompt", "edit"}:
        found = f"its columns are {', '.join(sorted(columns))}"
        raise PairsError(problem(table, "its header", found, REMEDY))
    return [
        (
            f"{table.name}, row {row.number}",
            *(str(row.cells.get(column, "")).strip() for column in ("clip", "source")),
            str(row.cells.get("prompt", row.cells.get("edit", ""))).strip(),
        )
        for row in rows
    ]


def _of_tgve(table: Path, rows: Iterable[dict[str, str]]) -> Iterator[Written]:
    """Rows without a caption are headings: "DAVIS Videos:"."""
    for number, cells in enumerate(rows, 1):
        if TGVE_SOURCE in cells:
            for column in TGVE_EDITS:
                if column in cells:
                    where = f"{table.name}, row {number}, {column}"
                    yield where, cells.get(TGVE_CLIP, ""), cells[TGVE_SOURCE], cells[column]


def _of_configs(folder: Path) -> list[Written]:
    """Of YAML files that name a clip and a prompt; others are left alone."""
    found = []
    paths = [path for place in CONFIGS for path in sorted((folder / place).glob("*.y*ml"))]
    for path in paths:
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PairsError(f"{path} is no YAML ({' '.join(str(error).split())}).") from error
        if isinstance(config, dict) and {"data_path", "prompt"} <= config.keys():
            words = (config.get(key) or "" for key in ("data_path", "inversion_prompt", "prompt"))
            found.append((path.name, *(str(word).strip() for word in words)))
    return found


def _name(clip: str) -> str:
    """A clip's name in the results."""
    path = Path(clip)
    return path.stem if path.suffix.lower() in VIDEOS else path.name

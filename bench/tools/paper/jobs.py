"""From pairs of clip and prompt to jobs, an edit each, as the batches of Ray take them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenflow_pack.modes import MODES

from bench.tools.case import Settings
from bench.tools.paper.summary import FLOOR
from cluster.jobs import Job, content_digest
from launch.checkpoint import EMBEDDED, FLUX, SD1, SD2, SD3, SDXL

from .editor import Task
from .models import Files, Judges
from .pairs import Pair, frame_files
from .rows import ROWS

# By a model's family: the side of its pictures in pixels, and guidance.
FAMILIES: Mapping[str, tuple[int, float]] = {
    SD1: (512, 7.5),
    SD2: (512, 7.5),
    SDXL: (1024, 6.0),
    SD3: (1024, 4.5),
    FLUX: (768, 1.0),
    EMBEDDED: (128, 5.0),
}
OTHERS = (512, 7.5)
MULTIPLE = 16  # pixels of what models take
LETTERS = 40  # of a name's parts


@dataclass(frozen=True)
class Size:
    """Of the frames, in pixels. cfg: guidance of the family."""

    width: int
    height: int
    cfg: float

    @classmethod
    def of(cls, family: str, width: int | None = None, height: int | None = None) -> Size:
        """A family's unless it is given. Raises: ValueError for what no model takes."""
        side, cfg = FAMILIES.get(family, OTHERS)
        found = cls(width or height or side, height or width or side, cfg)
        if found.width % MULTIPLE or found.height % MULTIPLE:
            raise ValueError(f"--width and --height: give multiples of {MULTIPLE}")
        return found


def fitting(rows: Iterable[str], family: str) -> list[str]:
    """The rows that are made for a family."""
    transformer = family in (SD3, FLUX)
    of_unets = {row.name for row in ROWS if MODES[row.mode].of_unets}
    return [row for row in rows if not (transformer and row in of_unets)]


def make_jobs(
    pairs: Sequence[Pair],
    rows: Iterable[str],
    files: Files,
    judges: Judges,
    settings: Settings,
    size: Size,
    tuning: int,
) -> list[Job]:
    """All edits, clip by clip; those of a clip that need the same features stand together, and what
    they are measured against before them.
    """
    chosen = [row for row in ROWS if row.name in set(rows)]
    sources = list(dict.fromkeys(row.source for row in chosen))
    shared = {
        "files": files.record(),
        "judges": vars(judges),
        "settings": vars(settings),
        "width": size.width,
        "height": size.height,
        "tuning": tuning,
    }
    jobs = []
    for path, source_prompt in dict.fromkeys((pair.path, pair.source) for pair in pairs):
        own = [pair for pair in pairs if (pair.path, pair.source) == (path, source_prompt)]
        start = slug(own[0].clip, f"{path}{source_prompt}" if _shared_name(own[0], pairs) else "")
        jobs.append(_job(f"{start} {FLOOR}", own[0], "", FLOOR, shared))
        for source in sources:
            for pair in own:
                for row in chosen:
                    if row.source == source:
                        name = f"{start} {slug(pair.edit)} {slug(row.name)}"
                        jobs.append(_job(name, pair, pair.edit, row.name, shared))
    return jobs


def _job(name: str, pair: Pair, edit: str, row: str, shared: Mapping[str, Any]) -> Job:
    task = Task(str(pair.path), pair.source, edit, row, **shared).record()
    cells = {"clip": pair.clip, "source": pair.source, "edit": edit, "row": row}
    # Which worker takes it: a clip's edits share its inversion.
    group = _digest([str(pair.path), pair.source])
    key = _digest([{**task, "clip": ""}, clip_digest(pair.path), _stamp(task["files"])])
    prompt: Any = task
    return Job(name, cells, prompt, key, group, (), {})


def clip_digest(path: Path) -> str:
    """Of a clip's content: a video's bytes, or names, sizes and times of frames."""
    if path.is_file():
        return content_digest(path)
    stats = [(file.name, file.stat()) for file in frame_files(path)]
    return _digest([[name, found.st_size, found.st_mtime_ns] for name, found in stats])


def _stamp(files: Mapping[str, Any]) -> list[Any]:
    """Of a checkpoint, too large to be read for it: size and time."""
    found = Path(files["checkpoint"]).stat()
    return [found.st_size, found.st_mtime_ns]


def _digest(thing: Any) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()


def slug(text: str, more: str = "") -> str:
    """A part of a folder's name, the same in every run. What it leaves out of the text, and what
    else shall tell it from others, is in its last letters.
    """
    words = re.sub(r"\W+", "-", text).strip("-")
    short = words[:LETTERS].rstrip("-")
    if not more and short == text.replace(" ", "-"):
        return short
    return f"{short}-{_digest([text, more])[:6]}"


def _shared_name(pair: Pair, pairs: Iterable[Pair]) -> bool:
    """Whether the name stands for another clip as well, or for another prompt of the source."""
    others = {(other.path, other.source) for other in pairs if other.clip == pair.clip}
    return len(others) > 1

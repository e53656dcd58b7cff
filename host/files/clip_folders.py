"""Folders of clips below the host's input folder, and the table of prompts that may lie in one."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..validation.errors import NodeError
from .folders import check_inside, check_name

HERE = "."  # the input folder itself
TABLE = "prompts.csv"
CLIP, SOURCE, PROMPTS = "clip", "source", ("prompt", "edit")
LARGEST = 1 << 22  # bytes of a table


@dataclass(frozen=True)
class FolderClip:
    """A clip, and what is to be made of it.

    Attributes:
        path: The video.
        source: What it shows; empty where no table says it.
        prompt: What the edit is to show; empty where no table says it.
    """

    path: Path
    source: str = ""
    prompt: str = ""


def clip_folders() -> list[str]:
    """Lists the folders that hold videos, relative to the input folder, which itself is "."."""
    root = Path(folder_paths.get_input_directory())
    found = [Path(folder).relative_to(root) for folder, _, names in os.walk(root) if _videos(names)]
    return sorted(path.as_posix() for path in found)


def folder_clips(node: str, socket: str, folder: str) -> list[FolderClip]:
    """Lists what there is to be edited in a folder.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        folder: As `clip_folders` gives it.

    Returns:
        The rows of its table if it has one, else its videos in the order of their names.

    Raises:
        NodeError: If it is not there, lies by its name or through links outside the input folder,
            or holds no video, or if its table cannot be read or names a video that is not there.
    """
    folder = str(folder)  # prompts of the API may hold anything
    root = folder_paths.get_input_directory()
    place = Path(root)
    if folder != HERE:
        check_name(node, socket, folder)
        place = Path(root, folder)
        check_inside(node, socket, folder, place, root)
    if not place.is_dir():
        remedy = "Press R to read the folders again, and choose one from the list."
        raise NodeError(node, socket, f"there is no folder {folder!r} in the input folder.", remedy)
    with os.scandir(place) as entries:
        names = sorted(_videos([entry.name for entry in entries if entry.is_file()]))
    for name in names:
        check_inside(node, socket, name, place / name, root)
    if not names:
        raise NodeError(
            node, socket, f"no video in {folder!r}.", "Put videos there, or choose another folder."
        )
    table = place / TABLE
    if not table.is_file():
        return [FolderClip(place / name) for name in names]
    check_inside(node, socket, TABLE, table, root)
    return list(_rows(node, socket, table, names))


def _videos(names: Sequence[str]) -> list[str]:
    shown = [name for name in names if not name.startswith(".")]
    found: list[str] = folder_paths.filter_files_content_types(shown, ["video"])
    return found


def _rows(node: str, socket: str, table: Path, names: Sequence[str]) -> Iterator[FolderClip]:
    """The rows of a table; a video's name may go without its ending."""

    def wrong(found: str) -> NodeError:
        remedy = f"Write {TABLE} with the columns {CLIP}, {SOURCE} and {PROMPTS[0]}, a row an edit."
        return NodeError(node, socket, f"{TABLE}: {found}", remedy)

    if table.stat().st_size > LARGEST:
        raise wrong("it is too large.")
    try:
        text = table.read_text(encoding="utf-8-sig")
        head, *lines = csv.reader(io.StringIO(text), delimiter=_delimiter(text), strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise wrong("it is no CSV in UTF-8.") from error
    columns = [cell.strip().lower() for cell in head]
    prompt = next((name for name in PROMPTS if name in columns), None)
    if CLIP not in columns or prompt is None:
        raise wrong("it lacks columns.")
    by_name = {Path(name).stem: name for name in names} | {name: name for name in names}
    found = 0
    for number, line in enumerate(lines, 1):
        cells = dict(zip(columns, (cell.strip() for cell in line), strict=False))
        if not any(cells.values()):
            continue
        if cells[CLIP] not in by_name:
            raise wrong(f"row {number} names {cells[CLIP][:80]!r}, which is no video beside it.")
        found += 1
        path = table.with_name(by_name[cells[CLIP]])
        yield FolderClip(path, cells.get(SOURCE, ""), cells.get(prompt, ""))
    if not found:
        raise wrong("no row in it.")


def _delimiter(text: str) -> str:
    """What parts the cells of the header: spreadsheets have their own."""
    head = text.partition("\n")[0]
    return max(",;\t", key=head.count)

"""From rows of the table to jobs: a prompt of its own for each, with the files that it loads."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from launch.comfyui.workflow import Json, Prompt
from launch.environment import ROOT
from launch.graphs.columns import KEYFRAMES, ColumnError, Columns, Place
from launch.graphs.graph import STAGE_1, is_upload, label, of_types, upstream

from .pictures import carrying, pictures_of, take_pictures
from .table import Row, TableError, problem
from .values import converted

PREFIX = "filename_prefix"
LISTED = 8  # rows that one problem names
# The column if it is one's, what was found, what to do.
Problem = tuple[str | None, str, str]


@dataclass(frozen=True)
class Job:
    """A prompt to run. What its nodes save goes to a folder with the job's name.

    Attributes:
        name: Of the job.
        cells: The row as written.
        prompt: The API prompt.
        key: Names the prompt, its files by their content.
        group: Names that part of the prompt which is the same for all edits of a clip.
        seeds: Of the samplers, each once.
        files: {name in the input folder: file}.
    """

    name: str
    cells: dict[str, Any]
    prompt: Prompt
    key: str
    group: str
    seeds: tuple[int, ...]
    files: dict[str, Path]


def make_jobs(
    table: Path, rows: Iterable[Row], prompt: Prompt, info: Json, inputs: Path
) -> list[Job]:
    """Makes the jobs of all rows, see `draft_jobs`.

    Args:
        table: The table's file.
        rows: The table's rows.
        prompt: The API prompt that every row fills.
        info: The server's node definitions.
        inputs: The folder of the files that the workflow names.

    Returns:
        A job for each row.

    Raises:
        TableError: With every problem of every row.
    """
    jobs, problems = draft_jobs(table, rows, prompt, info, inputs)
    if problems:
        raise TableError(problems)
    return jobs


def draft_jobs(
    table: Path, rows: Iterable[Row], prompt: Prompt, info: Json, inputs: Path
) -> tuple[list[Job], list[str]]:
    """Makes the jobs of the rows that fit a workflow, and says what is wrong with the others.

    Files that the table names are relative to it. What is wrong in several rows alike is told once.

    Args:
        table: The table's file.
        rows: The table's rows.
        prompt: The API prompt that every row fills.
        info: The server's node definitions.
        inputs: The folder of the workflow's files; the embedded clip need not be in it.

    Returns:
        The jobs, and a line for each problem.
    """
    columns = Columns(
        {node: {**entry, "inputs": entry.get("inputs", {})} for node, entry in prompt.items()}, info
    )
    jobs: list[Job] = []
    wrong: dict[Problem, list[int]] = {}
    for row in rows:
        draft = Draft(table, row, columns, inputs)
        draft.fill()
        for found in draft.problems:
            wrong.setdefault(found, []).append(row.number)
        if not draft.problems:
            jobs.append(draft.job())
    return jobs, [
        problem(table, place(numbers, column), found, remedy)
        for (column, found, remedy), numbers in wrong.items()
    ]


def place(numbers: list[int], column: str | None) -> str:
    """Says where the same is wrong.

    Args:
        numbers: Of the rows, counted from 1.
        column: The column if it is one's.

    Returns:
        Rows and column in words.
    """
    few = [str(number) for number in numbers[:LISTED]]
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(few)}{more}" + (
        "" if column is None else f", column {column!r}"
    )


class Draft:
    """One row's prompt while it is filled, with what was wrong."""

    def __init__(self, table: Path, row: Row, columns: Columns, inputs: Path) -> None:
        self.table, self.row, self.columns, self.inputs = table, row, columns, inputs
        self.prompt = copy.deepcopy(columns.prompt)
        self.files: dict[str, Path] = {}
        self.set_by: dict[tuple[str, str], str] = {}
        self.problems: list[Problem] = []

    def fill(self) -> None:
        """Sets what the row sets, and finds the files."""
        for column, cell in self.row.cells.items():
            if column == KEYFRAMES:
                self._take_keyframes(self.table.parent / str(cell))
                continue
            try:
                for place in self.columns.places(column):
                    self._set(column, place, cell)
            except ColumnError as error:
                self._wrong(column, str(error), error.remedy)
        for place in self.columns.uploads():
            if (place.node, place.input) not in self.set_by:
                self._adopt(place)

    def job(self) -> Job:
        """Makes the job of a row without problems."""
        try:
            seeds = [
                self.prompt[place.node]["inputs"].get(place.input, 0)
                for place in self.columns.places("seed")
            ]
        except ColumnError:
            seeds = []  # other workflows may have none
        stage_1 = upstream(self.prompt, of_types(self.prompt, STAGE_1))
        key, group = digest(self.prompt, self.prompt), digest(self.prompt, stage_1 or self.prompt)
        prompt = copy.deepcopy(self.prompt)
        for entry in prompt.values():
            if isinstance(entry["inputs"].get(PREFIX), str):
                entry["inputs"][PREFIX] = f"{self.row.name}/{entry['inputs'][PREFIX]}"
        return Job(
            self.row.name,
            self.row.cells,
            prompt,
            key,
            group,
            tuple(dict.fromkeys(seeds)),
            self.files,
        )

    def _set(self, column: str, place: Place, cell: Any) -> None:
        """Sets one input, unless another column has said something else."""
        other = self.set_by.setdefault((place.node, place.input), column)
        if self.row.cells[other] != cell:
            where = f"{label(self.prompt, place.node)}, input {place.input}"
            found = f"{where}, is set by column {other!r} too, to another value"
            self._wrong(
                column,
                found,
                "Give each a node of its own in the workflow, or both columns the same value",
            )
            return
        try:
            value = (
                self._file(self.table.parent / str(cell))
                if is_upload(place.options)
                else converted(place, cell)
            )
        except ValueError as error:
            self._wrong(
                column,
                repr(cell),
                f"{label(self.prompt, place.node)}, input {place.input}, {error}",
            )
        else:
            self.prompt[place.node]["inputs"][place.input] = value

    def _take_keyframes(self, folder: Path) -> None:
        """Has Carry Keyframes take the pictures of a folder."""
        try:
            node = carrying(self.prompt)
        except ValueError as error:
            remedy = "Give it a workflow with one Carry Keyframes, such as the template keyframes"
            self._wrong(KEYFRAMES, f"the workflow has {error}", remedy)
            return
        try:
            files = pictures_of(folder)
            names = {number: self._file(file) for number, file in files.items()}
        except ValueError as error:
            remedy = "Name pictures by the numbers of their frames, counted from 0, such as 012.png"
            self._wrong(KEYFRAMES, f"it {error}", remedy)
        else:
            take_pictures(self.prompt, node, names)

    def _adopt(self, place: Place) -> None:
        """Takes a file that the workflow itself names, as the editor means it.

        It is in ComfyUI's input folder and nowhere else.
        """
        name = str(self.prompt[place.node]["inputs"].get(place.input, "")).removesuffix(" [input]")
        for folder in (self.inputs, ROOT / "demo"):
            path = (folder / name).resolve()
            if path.is_file() and path.is_relative_to(folder.resolve()):
                self.prompt[place.node]["inputs"][place.input] = self._file(path)
                return
        where = f"{label(self.prompt, place.node)}, input {place.input}"
        self._wrong(
            None, f"no file for {where}: {name!r} is not in {self.inputs}", "Give it a column"
        )

    def _file(self, path: Path) -> str:
        """The name that a file gets in the input folder.

        It is made of its content: two clips called alike are two. Raises ValueError.
        """
        if not path.is_file():
            raise ValueError(f"takes a file, and there is none at {path}")
        suffix = path.suffix if re.fullmatch(r"\.\w{1,9}", path.suffix) else ""
        name = content_digest(path)[:32] + suffix
        self.files[name] = path
        return name

    def _wrong(self, column: str | None, found: str, remedy: str) -> None:
        self.problems.append((column, found, remedy))


def digest(prompt: Prompt, nodes: Iterable[str]) -> str:
    """Computes the SHA-256 of what nodes of a prompt are asked for.

    Args:
        prompt: The API prompt.
        nodes: Ids of the nodes.

    Returns:
        The digest in hexadecimal digits.
    """
    asked = {node: [prompt[node]["class_type"], prompt[node]["inputs"]] for node in nodes}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@cache
def content_digest(path: Path) -> str:
    """Computes the SHA-256 of a file. Each is read once a run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

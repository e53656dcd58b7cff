"""The table of jobs: a CSV or JSONL file, one job a row, as people and spreadsheets write it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.graphs.columns import HEADS

NAME = re.compile(r"\w[\w .+=,@-]{0,99}(?<![ .])")
MANIFEST = "manifest.jsonl"  # lies beside the jobs' folders
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


class TableError(ValueError):
    """Wrong rows of a table.

    `problems` has a line for each, which names table, row, column, what was found and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


# What a file holds, row by row, and what is wrong with it.
Records = tuple[list[dict[str, Any]], list[str]]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        number: Of the row below the header, counted from 1.
        name: Of the job.
        cells: {column: value} of the cells that are not empty.
    """

    number: int
    name: str
    cells: dict[str, Any]


def problem(table: Path, place: str, found: str, remedy: str) -> str:
    """Makes one line of a TableError.

    Args:
        table: The table's file.
        place: Where it is, in words: row, column.
        found: What was found.
        remedy: What to do.

    Returns:
        The line.
    """
    return f"{table.name}, {place}: {found}. {remedy}."


def read_table(table: Path) -> list[Row]:
    """Reads the rows of a table.

    Raises TableError for what is wrong with it, or OSError if there is no such file.
    """
    rows, problems = look_over(table)
    if problems:
        raise TableError(problems)
    return rows


def look_over(table: Path) -> tuple[list[Row], list[str]]:
    """Reads the rows of a .csv, .tsv or .jsonl file, and says what is wrong with them.

    The file is UTF-8, a .csv or .tsv with a header. Rows that say nothing are left out, and not
    counted. Raises OSError if there is no such file.
    """
    content = table.read_bytes()
    read = READERS.get(table.suffix.lower())
    if read is None:
        return [], [
            problem(
                table,
                "its name",
                f"it ends in {table.suffix!r}",
                f"Give a {', '.join(READERS)} file",
            )
        ]
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text:  # UTF-16 without a mark
            raise UnicodeDecodeError(
                "utf-8", content, content.index(0), content.index(0) + 1, "NUL"
            )
    except UnicodeDecodeError as error:
        return [], [
            problem(table, f"byte {error.start}", "this is no UTF-8", "Save the table as UTF-8")
        ]
    rows = []
    records, problems = read(table, text)
    for number, found in enumerate(records, 1):
        cells = {column: value for column, value in found.items() if not _is_empty(value)}
        rows.append(Row(number, str(cells.pop("name", f"{number:03}")).strip(), cells))
    if not rows and not problems:
        problems = [problem(table, "its end", "no job in it", "Write one job a row")]
    return rows, problems + _wrong_names(table, rows)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _head(text: str) -> str:
    """A column's name.

    Those that are known may be in any letters, as spreadsheets begin them with capitals.
    """
    name = text.strip()
    return name.lower() if name.lower() in HEADS else name


def _csv(table: Path, text: str) -> Records:
    text = text.lstrip("\r\n")
    delimiter, text = _delimiter(text)
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        written = [_without_end([cell.strip() for cell in line]) for line in lines]
    except csv.Error as error:
        place, found = f"line {lines.line_num}", f"this is no CSV ({error})"
        return [], [problem(table, place, found, "Close its quotes")]
    problems = []
    header, *rows = [row for row in written if row] or [[]]
    columns = [_head(cell) for cell in header]
    for column in sorted({column for column in columns if column and columns.count(column) > 1}):
        problems.append(
            problem(
                table,
                "its header",
                f"{column!r} in {columns.count(column)} columns",
                "Give every column a name of its own",
            )
        )
    for number, row in enumerate(rows, 1):
        nameless = [cell for column, cell in zip(columns, row, strict=False) if cell and not column]
        if len(row) > len(columns):
            found = f"{len(row)} cells below {len(columns)} columns"
            remedy = f"Put cells with {SEPARATORS[delimiter]} in quotes"
            problems.append(problem(table, f"row {number}", found, remedy))
        elif nameless:
            problems.append(
                problem(
                    table,
                    f"row {number}",
                    f"{nameless[0]!r} in a column without a name",
                    "Give the column a name",
                )
            )
    records: list[dict[str, Any]] = [
        {column: cell for column, cell in zip(columns, row, strict=False) if column} for row in rows
    ]
    return records, problems


def _delimiter(text: str) -> tuple[str, str]:
    """What stands between a CSV's cells, and its text without the line by which Excel says so.

    Without such a line it is what parts the header most.
    """
    first, _, rest = text.partition("\n")
    told = re.fullmatch(r"sep=([,;\t])\s*", first)
    if told:
        return told[1], rest
    return max(
        SEPARATORS, key=lambda delimiter: len(next(csv.reader([first], delimiter=delimiter), []))
    ), text


def _without_end(cells: list[str]) -> list[str]:
    """Cells without the empty ones at the end, which spreadsheets write."""
    while cells and not cells[-1]:
        cells.pop()
    return cells


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands, names that come twice too."""


def _jsonl(table: Path, text: str) -> Records:
    rows: list[dict[str, Any]] = []
    problems = []
    # JSON has other line ends in its texts.
    for line in (line for line in text.split("\n") if line.strip()):
        number = len(rows) + 1
        try:
            found = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            found, said = None, f"this is no JSON ({error})"
        else:
            said = "this is no object"
        if not isinstance(found, _Pairs):
            problems.append(problem(table, f"row {number}", said, 'Write {"column": value, ...}'))
            rows.append({})
            continue
        row = {_head(column): value for column, value in found}
        if all(_is_empty(value) for value in row.values()):
            continue
        columns = [_head(column) for column, _ in found]
        for column in sorted({column for column in columns if columns.count(column) > 1}):
            problems.append(
                problem(
                    table,
                    f"row {number}, column {column!r}",
                    "it comes more than once",
                    "Give every column once",
                )
            )
        for column, value in row.items():
            if isinstance(value, list):
                place, shown = f"row {number}, column {column!r}", json.dumps(value)[:60]
                problems.append(
                    problem(
                        table,
                        place,
                        f"{shown} is no single value",
                        "Give text, a number, true or false",
                    )
                )
        rows.append(row)
    return rows, problems


READERS: dict[str, Callable[[Path, str], Records]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
}


def _wrong_names(table: Path, rows: list[Row]) -> list[str]:
    """Names become folders, on disks too that do not tell capitals apart."""
    problems = []
    before: dict[str, int] = {}
    for row in rows:
        place = f"row {row.number}, column 'name'"
        first = before.setdefault(row.name.casefold(), row.number)
        if not NAME.fullmatch(row.name) or row.name.casefold() == MANIFEST:
            remedy = "Give letters, digits and any of _ . + = , @ - between them, 100 at most"
            problems.append(
                problem(table, place, f"{row.name!r} cannot name a folder of results", remedy)
            )
        elif first != row.number:
            problems.append(
                problem(
                    table,
                    place,
                    f"{row.name!r} is the name of row {first} too",
                    "Give every job a name of its own",
                )
            )
    return problems

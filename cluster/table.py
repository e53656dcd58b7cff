"""The table of jobs: a CSV or JSONL file with one job a row."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = re.compile(r"\w[\w .+=,@-]{0,99}(?<![ .])")
MANIFEST = "manifest.jsonl"  # lies beside the jobs' folders


class TableError(ValueError):
    """Wrong rows of a table: `problems` has a line for each, which names table, row, column, what was found and what to do."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Row:
    """One row: its number below the header, counted from 1, the job's name, and {column: value} of the cells that are not empty."""

    number: int
    name: str
    cells: dict[str, Any]


def problem(table: Path, place: str, found: str, remedy: str) -> str:
    """One line of a TableError."""
    return f"{table.name}, {place}: {found}. {remedy}."


def read_table(table: Path) -> list[Row]:
    """Reads a .csv (UTF-8, with a header) or .jsonl file. Raises TableError, or OSError if there is no such file."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError([problem(table, f"byte {error.start}", "this is no UTF-8", "Save the table as UTF-8")]) from error
    if table.suffix.lower() not in (".csv", ".jsonl"):
        raise TableError([problem(table, "its name", f"it ends in {table.suffix!r}", "Give a .csv or .jsonl file")])
    problems: list[str] = []
    read = _csv if table.suffix.lower() == ".csv" else _jsonl
    rows = [
        Row(number, str(cells.pop("name", f"{number:03}")).strip(), cells)
        for number, found in enumerate(read(table, text, problems), 1)
        for cells in [{column: value for column, value in found.items() if value not in ("", None)}]
    ]
    if not rows and not problems:
        problems.append(problem(table, "its end", "no job in it", "Write one job a row"))
    problems += _wrong_names(table, rows)
    if problems:
        raise TableError(problems)
    return rows


def _csv(table: Path, text: str, problems: list[str]) -> list[dict[str, Any]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header, *rows = [[cell.strip() for cell in line] for line in lines if line] or [[]]
    except csv.Error as error:
        problems.append(problem(table, f"line {lines.line_num}", f"this is no CSV ({error})", "Close its quotes"))
        return []
    for column in sorted({column for column in header if not column or header.count(column) > 1}):
        problems.append(
            problem(table, "its header", f"{column!r} in {header.count(column)} columns", "Give every column a name of its own")
        )
    for number, row in enumerate(rows, 1):
        if len(row) > len(header):
            found = f"{len(row)} cells below {len(header)} columns"
            problems.append(problem(table, f"row {number}", found, "Put cells with commas in quotes"))
    return [dict(zip(header, row, strict=False)) for row in rows]


def _jsonl(table: Path, text: str, problems: list[str]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate((line for line in text.splitlines() if line.strip()), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            row, said = None, f"this is no JSON ({error})"
        else:
            said = "this is no object"
        if not isinstance(row, dict):
            problems.append(problem(table, f"row {number}", said, 'Write {"column": value, ...}'))
        elif nested := [column for column, value in row.items() if isinstance(value, (list, dict))]:
            found = f"{row[nested[0]]!r} is no single value"
            problems.append(problem(table, f"row {number}, column {nested[0]!r}", found, "Give text, a number, true or false"))
        rows.append(row if isinstance(row, dict) else {})
    return rows


def _wrong_names(table: Path, rows: list[Row]) -> list[str]:
    """Names become folders, on disks too that do not tell capitals apart."""
    problems = []
    before: dict[str, int] = {}
    for row in rows:
        place = f"row {row.number}, column 'name'"
        first = before.setdefault(row.name.casefold(), row.number)
        if not NAME.fullmatch(row.name) or row.name.casefold() == MANIFEST:
            remedy = "Give letters, digits and any of _ . + = , @ - between them, 100 at most"
            problems.append(problem(table, place, f"{row.name!r} cannot name a folder of results", remedy))
        elif first != row.number:
            problems.append(problem(table, place, f"{row.name!r} is the name of row {first} too", "Give every job a name of its own"))
    return problems

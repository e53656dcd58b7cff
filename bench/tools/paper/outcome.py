"""What came of all edits: the table, its figure, and a line for each edit."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tools.paper.summary import FLOOR, Line, Table, laid_out, summarize, write
from cluster.jobs import Job

FIGURES = ("warp", "sharpness", "prompt", "frames", "sampling", "memory", "preparing")


@dataclass(frozen=True)
class Edit:
    """name: its folder. state: done, failed or empty. error: what was wrong."""

    name: str
    clip: str
    source: str
    prompt: str
    row: str
    state: str
    error: str
    figures: Mapping[str, float | None]

    @classmethod
    def of(cls, job: Job, record: Mapping[str, Any]) -> Edit:
        """record: of the job, empty if it was not run."""
        cells = job.cells
        same = record.get("key") == job.key
        attempts = record.get("attempts") or [{"error": ""}]
        return cls(
            job.name,
            cells["clip"],
            cells["source"],
            cells["edit"],
            cells["row"],
            record["state"] if same else "",
            attempts[-1]["error"] if same else "",
            record.get("figures", {}) if same else {},
        )

    @property
    def group(self) -> str:
        """Of the clip: what the names of its own edits begin with."""
        return self.name.split(" ")[0]

    def line(self) -> Line:
        found = self.figures.get
        return Line(
            self.group,
            self.prompt,
            self.row,
            _number(found("warp")),
            None,
            _number(found("sharpness")),
            seconds=found("sampling"),
            memory=found("memory"),
            prompt=found("prompt"),
            frames=found("frames"),
        )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


@dataclass(frozen=True)
class Outcome:
    """edits: all that were asked for. table: None where there is none."""

    edits: Sequence[Edit]
    table: Table | None

    @classmethod
    def of(cls, jobs: Sequence[Job], records: Mapping[str, Mapping[str, Any]]) -> Outcome:
        edits = [Edit.of(job, records.get(job.name, {})) for job in jobs]
        done = [edit for edit in edits if edit.state == "done"]
        floors = {edit.group for edit in done if edit.row == FLOOR}
        try:
            table = summarize([edit.line() for edit in done if edit.group in floors])
        except ValueError:
            table = None
        return cls(edits, table)

    @property
    def failed(self) -> list[Edit]:
        return [edit for edit in self.edits if edit.state != "done"]

    def failures(self) -> str:
        """A line for each edit that was not made."""
        lines = [f"  {edit.name}: {edit.error or 'not run'}" for edit in self.failed]
        return "\n" + "\n".join([f"{len(lines)} not made:", *lines]) if lines else ""

    def rows(self) -> list[list[str]]:
        """The table's head and rows; empty where there is no table."""
        return laid_out(self.table) if self.table else []

    def write(self, folder: Path, about: str) -> None:
        """edits.csv, and the table where there is one.

        Raises: SystemExit where there is none, with what failed.
        """
        with (folder / "edits.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", "source", "prompt", "row", "state", *FIGURES])
            for edit in self.edits:
                said = (edit.clip, edit.source, edit.prompt, edit.row, edit.state)
                writer.writerow([*said, *(edit.figures.get(name) for name in FIGURES)])
        if self.table is None:
            raise SystemExit(f"error: no edit was made by all rows.{self.failures()}")
        write(folder, self.table, about)

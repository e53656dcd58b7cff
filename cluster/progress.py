"""What a run says: lines in the terminal, and counts for Ray's dashboard.

There is a line per event, and below them a line that changes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from ray.util.metrics import Gauge

from .manifest import Record

STATES = ("waiting", "running", "done", "failed")


class Progress:
    """The state of all jobs, told as it changes.

    On a terminal the last line shows every worker's step.
    """

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self.stream, self.live = stream, stream.isatty()
        self.counts: Counter[str] = Counter()
        # Of every worker: job, node, steps done, steps.
        self.steps: dict[str, tuple[str, str, float, float]] = {}
        self.gauge = Gauge("tokenflow_jobs", "Jobs of the batch by state.", tag_keys=("state",))

    def count(self, **changes: int) -> None:
        """Changes the numbers of jobs in these states."""
        self.counts.update(changes)
        for state in STATES:
            self.gauge.set(self.counts[state], tags={"state": state})
        self.show()

    def line(self, text: str) -> None:
        """Writes a line that stays."""
        self.stream.write(f"{self._clear()}{text}\n")
        self.show()

    def step(self, worker: str, job: str, node: str, value: float, most: float) -> None:
        """Tells a node's step. Its first is a line that stays.

        Args:
            worker: The worker's name.
            job: The job's name.
            node: The node's title.
            value: Steps done.
            most: Steps of the node.
        """
        known = self.steps.get(worker, ("", "", 0, 0))[:2] == (job, node)
        self.steps[worker] = job, node, value, most
        if known:
            self.show()
        else:
            self.line(f"{job}: {node}, {most:g} steps, {worker}")

    def end(self, worker: str) -> None:
        """Forgets a worker's step: it has no job any more."""
        self.steps.pop(worker, None)

    def show(self) -> None:
        """Draws the line that changes."""
        if self.live:
            done, total = self.counts["done"] + self.counts["failed"], sum(self.counts.values())
            filled = 20 * done // max(total, 1)
            steps = "; ".join(
                f"{job} {node} {value:g}/{most:g}" for job, node, value, most in self.steps.values()
            )
            bar = f"[{'#' * filled}{'.' * (20 - filled)}]"
            self.stream.write(f"{self._clear()}{bar} {done}/{total}  {steps}"[:160])
        self.stream.flush()

    def _clear(self) -> str:
        return "\r\033[K" if self.live else ""


def table(records: Iterable[Record]) -> str:
    """Lists the jobs, a line each: name, state, seconds, the error's first line."""
    rows = [("job", "state", "seconds", "")]
    for record in records:
        error = (
            record["attempts"][-1]["error"].splitlines()[0] if record["state"] == "failed" else ""
        )
        rows.append(
            (record["job"], record["state"], f"{record['figures'].get('seconds', 0):.1f}", error)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]
        ).rstrip()
        for row in rows
    )

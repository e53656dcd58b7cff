"""A batch: all jobs of a table on a pool of workers, and what came of them on the disk.

A job that fails is tried again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone

import ray
from ray import ObjectRef

from .jobs import Job
from .manifest import OutputError, Record, Results
from .progress import Progress
from .workers.events import About, Done, Saved, Step
from .workers.pool import Event, Failed, Pool, Slot
from .workers.schedule import Queue


@dataclass
class Attempt:
    """A job on a worker: the files that have come, and what was wrong with one."""

    job: Job
    about: About | None
    began: float = field(default_factory=time.monotonic)
    files: list[Record] = field(default_factory=list)
    error: str = ""


class Batch:
    """One run.

    Args:
        pool: The workers.
        results: Where files and records go.
        progress: What is told of the run.
        retries: How often a job that failed is tried again, behind the others of its clip.
    """

    def __init__(self, pool: Pool, results: Results, progress: Progress, retries: int = 2) -> None:
        self.pool, self.results, self.progress, self.retries = pool, results, progress, retries
        self.queue = Queue()
        self.left: dict[str, Job] = {}
        self.running: dict[Slot, Attempt] = {}
        self.attempts: dict[str, list[Record]] = {}
        self.contents: dict[str, ObjectRef] = {}

    def run(self, jobs: list[Job]) -> bool:
        """Runs what is not done yet.

        Args:
            jobs: All jobs of the table.

        Returns:
            Whether all of them are done in the end.

        Raises:
            PoolError: When no worker is left.
        """
        for job in jobs:
            if not self.results.is_done(job):
                self.queue.put(job)
                self.left[job.name] = job
        before = len(jobs) - len(self.left)
        self.progress.count(waiting=len(self.left), done=before)
        self.progress.line(
            f"{len(jobs)} jobs, {before} done before; {len(self.pool.slots)} workers"
        )
        for slot in self.pool.slots:
            if slot.about:
                self._ready(slot.name, slot.about)
        while self.left:
            for slot in list(self.pool.idle):
                taken = self.queue.take(slot.name)
                if taken:
                    self._begin(slot, taken)
            for slot, event in self.pool.events():
                self._heed(slot, event)
        return all(self.results.is_done(job) for job in jobs)

    def _ready(self, name: str, about: About) -> None:
        self.progress.line(
            f"{name}: ready after {about.seconds:.0f} s, {about.device} on {about.machine}"
        )

    def _begin(self, slot: Slot, job: Job) -> None:
        for name, path in job.files.items():
            if name not in self.contents:
                self.contents[name] = ray.put(path.read_bytes())
        self.running[slot] = Attempt(job, slot.about)
        self.pool.submit(slot, job, {name: self.contents[name] for name in job.files})
        self.progress.count(waiting=-1, running=1)
        self.progress.line(f"{job.name}: begins, {slot.name}")

    def _heed(self, slot: Slot, event: Event) -> None:
        """What follows from an event."""
        if isinstance(event, About):
            self._ready(slot.name, event)
            return
        attempt = self.running[slot]
        if isinstance(event, Step):
            self.progress.step(slot.name, attempt.job.name, event.node, event.value, event.most)
        elif isinstance(event, Saved):
            try:
                attempt.files.append(self.results.save(attempt.job, event.name, event.content))
            except OutputError as error:
                attempt.error = str(error)
        elif isinstance(event, Done) and not attempt.error:
            self._done(slot, event)
        else:
            self._failed(slot, event if isinstance(event, Failed) else Failed(attempt.error))

    def _done(self, slot: Slot, event: Done) -> None:
        attempt = self.running[slot]
        figures = event.figures
        self._tell(slot, "")
        self._record(
            attempt, "done", {"figures": figures, "texts": event.texts, "files": attempt.files}
        )
        shares = f"{figures['nodes_run']} nodes run, {figures['nodes_cached']} known from before"
        self.progress.count(running=-1, done=1)
        took = f"done in {figures['seconds']:.0f} s"
        self.progress.line(f"{attempt.job.name}: {took}, {shares}; {len(self.left)} left")

    def _failed(self, slot: Slot, event: Failed) -> None:
        """Puts the job back while it may be tried again, and writes it down as failed when not."""
        attempt = self.running[slot]
        self._tell(slot, event.error)
        self.results.discard(attempt.job)
        if event.lost:
            self.queue.release(slot.name)
        tried = len(self.attempts[attempt.job.name])
        again = tried <= self.retries
        told = "tried again" if again else f"given up after {tried} attempts"
        self.progress.count(running=-1, **{"waiting" if again else "failed": 1})
        self.progress.line(f"{attempt.job.name}: {event.error.splitlines()[0]}; {told}")
        if again:
            self.queue.put(attempt.job)
        else:
            self._record(attempt, "failed", {"figures": {}, "texts": {}, "files": []})

    def _tell(self, slot: Slot, error: str) -> None:
        """Notes how an attempt ended."""
        attempt = self.running.pop(slot)
        self.progress.end(slot.name)
        seconds = round(time.monotonic() - attempt.began, 3)
        machine = attempt.about.machine if attempt.about else ""
        said = {"worker": slot.name, "machine": machine, "seconds": seconds, "error": error}
        self.attempts.setdefault(attempt.job.name, []).append(said)

    def _record(self, attempt: Attempt, state: str, more: Record) -> None:
        """Writes down how a job ended, and frees clips that no other one needs."""
        job, about = attempt.job, attempt.about
        del self.left[job.name]
        said = {
            "job": job.name,
            "state": state,
            "key": job.key,
            "inputs": job.cells,
            "seeds": list(job.seeds),
        }
        said |= {
            "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "attempts": self.attempts[job.name],
        }
        said |= {"device": about.device, "versions": about.versions} if about else {}
        self.results.finish(job, said | more)
        needed = {name for other in self.left.values() for name in other.files}
        self.contents = {name: content for name, content in self.contents.items() if name in needed}

"""Which worker takes which job.

Those of a clip go to one worker one after the other, whose server still knows what they share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..jobs import Job


class Queue:
    """Jobs that wait, by group.

    A group belongs to the worker that took its first job, until it is empty or the worker is lost.
    """

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self.groups: dict[str, deque[Job]] = {}
        self.owners: dict[str, str] = {}
        for job in jobs:
            self.put(job)

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def put(self, job: Job) -> None:
        """Adds a job behind those of its group."""
        self.groups.setdefault(job.group, deque()).append(job)

    def release(self, worker: str) -> None:
        """Gives a lost worker's group to anybody: the server that knew its clip is gone."""
        self.owners.pop(worker, None)

    def take(self, worker: str) -> Job | None:
        """Takes a worker's next job, None if none waits.

        It is of its own group, of the first that is nobody's, or else the last of the largest one.
        """
        group = self.owners.get(worker)
        if group not in self.groups:
            group = next((free for free in self.groups if free not in self.owners.values()), None)
        if group is not None:
            self.owners[worker] = group
            return self._pop(group, first=True)
        self.owners.pop(worker, None)
        largest = max(self.groups, key=lambda name: len(self.groups[name]), default=None)
        return None if largest is None else self._pop(largest, first=False)

    def _pop(self, group: str, first: bool) -> Job:
        jobs = self.groups[group]
        job = jobs.popleft() if first else jobs.pop()
        if not jobs:
            del self.groups[group]
        return job

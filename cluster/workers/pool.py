"""Workers as Ray's actors: started, waited for together, started again when they are lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef, ObjectRefGenerator
from ray.exceptions import RayError, RayTaskError

from launch.comfyui.server import ServerError
from launch.comfyui.workflow import Json

from ..jobs import Job
from ..shares.sharded import Sharded
from .events import About, Done, Saved, Step
from .worker import HostLost, Worker

# Of a worker without a GPU, unless asked for: more servers do more than more threads.
MOST_CORES = 4
STARTS = 3
ENDING = 15.0  # seconds


class PoolError(RuntimeError):
    """There are no workers; the message says why."""


@dataclass(eq=False)
class Slot:
    """A worker's place.

    Attributes:
        name: Of the worker.
        actor: Ray's actor.
        about: What it said of itself when it was ready.
        failures: How often it has not become ready since.
    """

    name: str
    actor: Any
    about: About | None = None
    failures: int = 0


@dataclass(frozen=True)
class Failed:
    """A job's attempt has ended with an error.

    Attributes:
        error: What was wrong, in words.
        lost: Whether the worker or its ComfyUI is lost; else a node has failed.
    """

    error: str
    lost: bool = False


Event = About | Step | Saved | Done | Failed


class Pool:
    """Workers, one per GPU of the cluster, or one per so many cores where there is none.

    Args:
        slots: The workers.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self.idle: list[Slot] = []
        self.waiting: dict[ObjectRef | ObjectRefGenerator, Slot] = {}

    @classmethod
    def start(
        cls,
        comfyui: Path,
        workers: int | None = None,
        cores: int | None = None,
        share: int = 1,
        kind: type = Worker,
    ) -> Pool:
        """Starts the workers.

        Args:
            comfyui: The folder of ComfyUI, for machines without a COMFYUI_PATH of their own.
            workers: How many; None for as many as there is room for.
            cores: CPU cores of each; None for MOST_CORES, or all where a machine has fewer.
            share: How many ComfyUIs are a worker together.
            kind: What a worker is: `Worker`, or anything else that can be started, runs jobs and
                can be stopped.

        Returns:
            The pool.

        Raises:
            PoolError: If the cluster is too small; also later, when no worker is left.
        """
        machines: list[dict[str, Any]] = ray.nodes()
        count, cores, resources = shares(
            [machine["Resources"] for machine in machines if machine["Alive"]], cores
        )
        if count < share:
            raise PoolError(
                f"{share} ComfyUIs are to share every clip, and the cluster has room for {count}."
            )
        names = [f"worker {number}" for number in range(1, (workers or count // share) + 1)]
        made, more = (kind, ()) if share == 1 else (Sharded, (share, resources))
        actor: Any = ray.remote(made)
        # Two calls at once: a job, and what stops it.
        options = {"max_restarts": -1, "max_concurrency": 2, **resources}
        pool = cls(
            [
                Slot(name, actor.options(name=name, **options).remote(comfyui, cores, *more))
                for name in names
            ]
        )
        for slot in pool.slots:
            pool._start(slot)
        return pool

    def close(self) -> None:
        """Ends the servers and the workers, also in the middle of a job."""
        ray.wait(
            [slot.actor.stop.remote() for slot in self.slots],
            num_returns=len(self.slots),
            timeout=ENDING,
        )
        for slot in self.slots:
            ray.kill(slot.actor)

    def object_info(self) -> Json:
        """Asks the first worker that is ready for its node definitions."""
        while not self.idle:
            for _ in self.events():
                pass
        found: Json = ray.get(self.idle[0].actor.object_info.remote())
        return found

    def submit(self, slot: Slot, job: Job, files: Mapping[str, ObjectRef]) -> None:
        """Gives a job to a worker that is idle.

        Args:
            slot: The worker's place.
            job: The job.
            files: References to the contents of the files that its nodes load, by name.
        """
        self.idle.remove(slot)
        run = slot.actor.run.options(num_returns="streaming", name=f"job {job.name}")
        self.waiting[run.remote(job.name, job.prompt, dict(files))] = slot

    def events(self, patience: float = 0.2) -> Iterator[tuple[Slot, Event]]:
        """Yields what has happened since the last call, waiting up to `patience` seconds.

        After Done and Failed the worker is idle, unless it is lost: then after its next About.
        Raises PoolError when no worker is left.
        """
        ready, _ = ray.wait(list(self.waiting), num_returns=len(self.waiting), timeout=patience)
        for item in ready:
            slot = self.waiting[item]
            event = self._event(slot, item)
            if event:
                yield slot, event

    def _event(self, slot: Slot, item: ObjectRef | ObjectRefGenerator) -> Event | None:
        """The next event of a worker that has one, and what becomes of the worker."""
        starting = isinstance(item, ObjectRef)
        try:
            event: Event = ray.get(item if isinstance(item, ObjectRef) else next(item))
        except RayTaskError as error:
            event = Failed(
                str(error.cause) or type(error.cause).__name__,
                isinstance(error.cause, (HostLost, ServerError)),
            )
        except RayError as error:
            event = Failed(f"{slot.name} was lost: {first_line(error)}", lost=True)
        if isinstance(event, (Step, Saved)):
            return event
        del self.waiting[item]
        if isinstance(event, About):
            slot.about, slot.failures = event, 0
        if starting and isinstance(event, Failed):
            self._again(slot, event)
            return None
        if isinstance(event, Failed) and event.lost:
            self._start(slot)
        else:
            self.idle.append(slot)
        return event

    def _start(self, slot: Slot) -> None:
        slot.about = None
        self.waiting[slot.actor.start.remote()] = slot

    def _again(self, slot: Slot, event: Failed) -> None:
        """Starts a worker once more that did not become ready, or gives it up."""
        slot.failures += 1
        if slot.failures < STARTS:
            self._start(slot)
        elif not self.waiting and not self.idle:
            raise PoolError(
                f"no worker is left. {slot.name} did not start {STARTS} times; "
                f"at last: {event.error}"
            )


def shares(
    machines: list[dict[str, float]], cores: int | None
) -> tuple[int, int, dict[str, float]]:
    """Shares the machines of a cluster out among workers.

    Args:
        machines: What Ray says of each machine's resources: GPU, CPU.
        cores: CPU cores of a worker; None for MOST_CORES, or all where a machine has fewer.

    Returns:
        (workers, cores of each, what Ray is asked for).

    Raises:
        PoolError: If the machines are too small.
    """
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    wanted = cores or max(
        1, min([MOST_CORES, *(int(machine.get("CPU", 1)) for machine in machines)])
    )
    if gpus:
        return gpus, wanted, {"num_gpus": 1}
    count = sum(int(machine.get("CPU", 0)) // wanted for machine in machines)
    if not count:
        raise PoolError(
            f"no machine of the cluster has a GPU or {wanted} free cores. Give fewer by --cores."
        )
    return count, wanted, {"num_cpus": wanted}


def first_line(error: object) -> str:
    """Puts an error into a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

"""Jobs of the table, run in this process one after another or by Ray on several GPUs."""

from __future__ import annotations

import os
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cluster.jobs import Job
from cluster.manifest import Record, Results
from cluster.workers.events import About, Done, Saved

from .editor import Editor
from .models import Files, load_model


def run_here(jobs: list[Job], results: Results, workers: int | None = None) -> None:
    """Runs what is not done yet. One that fails is written down, and the next one is run.

    Raises: ValueError if the model cannot be loaded.
    """
    left = [job for job in jobs if not results.is_done(job)]
    print(f"{len(jobs)} jobs, {len(jobs) - len(left)} done before", flush=True)
    editor = Editor(Path(os.environ["COMFYUI_PATH"]))
    about = editor.start()
    if left:
        files = _task(left[0])["files"]
        # Before anything else: what it cannot load it cannot edit with.
        editor.loaded["model"] = files, load_model(Files(**files))
    for number, job in enumerate(left, 1):
        start = time.monotonic()
        record = _run(job, results, editor)
        seconds = time.monotonic() - start
        error = record.pop("error")
        record["attempts"] = [{"worker": "here", "machine": about.machine, "seconds": seconds}]
        record["attempts"][0]["error"] = error
        results.finish(job, {**_head(job, about), **record})
        told = error.splitlines()[0] if error else f"warp error {record['figures']['warp']:.2f}"
        print(f"{number}/{len(left)} {job.name}: {told}, {seconds:.0f} s", flush=True)


def _run(job: Job, results: Results, editor: Editor) -> Record:
    """What came of a job."""
    files: list[Record] = []
    figures: dict[str, Any] = {}
    error = ""
    try:
        for event in editor.run(job.name, _task(job), {}):
            if isinstance(event, Saved):
                files.append(results.save(job, event.name, event.content))
            elif isinstance(event, Done):
                figures = event.figures
    except Exception as raised:  # of a model, a clip or a row: others may do
        error = f"{type(raised).__name__}: {raised}".strip()
        results.discard(job)
        editor.loaded.pop("clip", None)  # memory may be short
        files, figures = [], {}
    return {
        "state": "failed" if error else "done",
        "figures": figures,
        "texts": {},
        "files": files,
        "error": error,
    }


def _task(job: Job) -> dict[str, Any]:
    task: Any = job.prompt
    return dict(task)


def _head(job: Job, about: About) -> Record:
    ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
    said = {"job": job.name, "key": job.key, "inputs": job.cells, "seeds": [], "ended": ended}
    return {**said, "device": about.device, "versions": about.versions}


def run_on_ray(jobs: list[Job], results: Results, workers: int | None = None) -> None:
    """Runs what is not done yet on as many workers, as `run.py batch` does: each has a GPU of its
    own, a job that fails is tried again, a worker that is lost is started again.

    Raises: ValueError if there is no Ray, or no worker.
    """
    from cluster.local import ClusterError, connected

    try:
        with connected(None):
            from cluster.batch import Batch
            from cluster.progress import Progress
            from cluster.workers.pool import Pool, PoolError

            comfyui = Path(os.environ["COMFYUI_PATH"])
            try:
                with closing(Pool.start(comfyui, workers, kind=Editor)) as pool:
                    Batch(pool, results, Progress(), retries=1).run(jobs)
            except PoolError as error:
                raise ValueError(str(error)) from error
    except ClusterError as error:
        raise ValueError(str(error)) from error

"""Batches on two real workers of a Ray on this machine: what is shared, what fails, what is killed,
what a second run leaves alone.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cluster.jobs import Job, make_jobs
from cluster.jobs.table import read_table
from cluster.local import connected
from cluster.manifest import opened
from launch.environment import link_pack

from ..conftest import COMFYUI
from . import made

# Which Build NN Correspondences refuses when it runs.
BAD = {"build.backend": "faiss", "build.search_window": 1}
# More steps than a job takes until word of its first one has come.
LONG = {"invert.steps": 60}
STAGE_1 = {"TokenFlowInvertVideo", "TokenFlowExtractFeatures", "TokenFlowBuildCorrespondences"}


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    """Two workers with as many threads as this process."""
    from cluster.workers.pool import Pool

    link_pack(COMFYUI)
    cores = torch.get_num_threads()
    with (
        connected(None, num_cpus=2 * cores, num_gpus=0, include_dashboard=False),
        closing(Pool.start(COMFYUI, cores=cores)) as pool,
    ):
        assert len(pool.slots) == 2
        yield pool


@dataclass
class Night:
    """A batch that was run: its jobs, its folder, and what it said."""

    folder: Path
    jobs: list[Job]
    good: bool
    said: str

    def records(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (self.folder / "manifest.jsonl").read_text().splitlines()
        ]

    def record(self, name: str) -> dict[str, Any]:
        return next(record for record in reversed(self.records()) if record["job"] == name)


def run(
    pool: Any,
    table: Path,
    folder: Path,
    on_step: Callable[[str, str], None] = lambda worker, job: None,
    prompt: Any = None,
) -> Night:
    from cluster.batch import Batch
    from cluster.progress import Progress

    class Watched(Progress):
        def step(self, worker: str, job: str, *rest: Any) -> None:
            super().step(worker, job, *rest)
            on_step(worker, job)

    said = io.StringIO()
    rows, info = read_table(table), pool.object_info()
    jobs = make_jobs(table, rows, prompt or made.prompt(), info, folder)
    with opened(folder) as results:
        good = Batch(pool, results, Watched(said), retries=1).run(jobs)
    return Night(folder, jobs, good, said.getvalue())


def processes(slot: Any) -> tuple[int, int]:
    """Ids of a worker's process and of its server's."""
    import ray

    found: tuple[int, int] = ray.get(
        slot.actor.__ray_call__.remote(lambda worker: (os.getpid(), worker.server.process.pid))
    )
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    made.write_clip(folder / "one.mp4", 80)
    made.write_clip(folder / "two.mp4", 140)
    one, two = {"clip": "one.mp4"}, {"clip": "two.mp4"}
    rows = [
        {"name": "one gold", **one},
        {"name": "two gold", **two, **LONG},
        {"name": "one ice", **one, "prompt": "an ice ball on grass"},
    ]
    rows += [{"name": "two seven", **two, "seed": 7}, {"name": "one bad", **one, **BAD}]
    return made.write_table(folder / "jobs.csv", rows)


@pytest.fixture(scope="module")
def night(pool: Any, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """All jobs, with the worker of the second clip killed in the middle of its first."""
    pool.object_info()
    while any(slot.about is None for slot in pool.slots):
        list(pool.events())
    before = {slot.name: processes(slot) for slot in pool.slots}
    killed: list[int] = []

    def kill(worker: str, job: str) -> None:
        if job == "two gold" and not killed:
            killed.extend(before[worker])
            os.kill(killed[0], signal.SIGKILL)

    night = run(pool, table, tmp_path_factory.mktemp("night"), kill)
    assert killed
    for _ in range(100):
        if not any(psutil.pid_exists(process) for process in killed):
            return night
        time.sleep(0.1)
    raise AssertionError("the killed worker's ComfyUI is still there")


def test_every_job_ends_with_its_files_and_a_record(night: Night) -> None:
    assert not night.good
    assert sorted(record["job"] for record in night.records()) == sorted(
        job.name for job in night.jobs
    )
    for job in night.jobs[:4]:
        record = night.record(job.name)
        assert record["state"] == "done", record["attempts"]
        (file,) = record["files"]
        assert file["name"] == "edits/edited_00001_.latent"
        path = night.folder / job.name / file["name"]
        assert path.stat().st_size == file["bytes"]
        assert len(load_file(path)["latent_tensor"]) == made.FRAMES
        assert set(record["versions"]) == {"tokenflow", "comfyui", "torch", "ray", "python"}
        assert record["inputs"]["clip"].endswith(".mp4")
        assert record["seeds"] == [7 if job.name == "two seven" else 0]
        assert record["figures"]["peak_host_memory"] > 2**20


def test_jobs_of_a_clip_share_stage_1(night: Night) -> None:
    first, second = night.record("one gold")["figures"], night.record("one ice")["figures"]
    assert set(first["seconds_by_node_type"]) >= STAGE_1
    assert first["nodes_run"] == len(made.prompt())
    assert not set(second["seconds_by_node_type"]) & STAGE_1
    assert second["nodes_cached"] + second["nodes_run"] == len(made.prompt())


def test_a_killed_worker_loses_no_job(night: Night) -> None:
    attempts = night.record("two gold")["attempts"]
    assert "was lost" in attempts[0]["error"]
    assert [attempt["error"] for attempt in attempts[1:]] == [""]
    assert "two gold: worker" in night.said


def test_a_job_that_fails_is_tried_again_and_its_errors_are_kept(night: Night) -> None:
    record = night.record("one bad")
    assert record["state"] == "failed"
    assert len(record["attempts"]) == 2
    assert all(
        "input 'search_window': FAISS searches" in attempt["error"]
        for attempt in record["attempts"]
    )
    assert not (night.folder / "one bad").exists()


def test_the_bits_are_those_of_a_plain_server(
    night: Night, server: Any, queue: Callable[..., Any]
) -> None:
    job = next(job for job in night.jobs if job.name == "one ice")
    for name, path in job.files.items():
        shutil.copy(path, server.input / name)
    (file,) = queue(job.prompt).files()
    alone, ours = (
        load_file(path)["latent_tensor"]
        for path in (server.output / file, night.folder / "one ice" / "edits" / Path(file).name)
    )
    assert torch.equal(alone, ours)


def test_a_second_run_does_what_is_not_done(night: Night, pool: Any, table: Path) -> None:
    (night.folder / "two seven" / "edits" / "edited_00001_.latent").unlink()
    before = len(night.records())
    again = run(pool, table, night.folder)
    assert "5 jobs, 3 done before" in again.said
    assert {record["job"] for record in again.records()[before:]} == {"two seven", "one bad"}


def test_edited_keyframes_are_a_folder_beside_the_row(
    pool: Any, table: Path, tmp_path: Path
) -> None:
    painted = table.parent / "painted"
    for number in (0, 2):
        made.write_picture(painted / f"frame_{number}.png", 200 + 10 * number)
    rows = [{"name": "painted", "clip": "one.mp4", "keyframes": painted.name}]
    table = made.write_table(table.parent / "painted.csv", rows)
    night = run(pool, table, tmp_path, prompt=made.keyframes_prompt())
    assert night.good, night.said
    names = [file["name"] for file in night.record("painted")["files"]]
    (latents,) = (name for name in names if name.endswith(".latent"))
    shown = sorted(name for name in names if name.endswith(".png"))
    assert len(load_file(tmp_path / "painted" / latents)["latent_tensor"]) == made.FRAMES
    levels = [int(np.asarray(Image.open(tmp_path / "painted" / name)).mean()) for name in shown]
    assert levels[0] == 200
    assert 200 < levels[1] < 220
    assert levels[2] == 220


def test_a_server_that_died_is_started_again(pool: Any, table: Path, tmp_path: Path) -> None:
    servers = {slot.name: processes(slot)[1] for slot in pool.slots}
    killed: list[int] = []

    def kill(worker: str, job: str) -> None:
        if not killed:
            killed.append(servers[worker])
            os.kill(killed[0], signal.SIGKILL)

    rows = [{"name": "one", "clip": "one.mp4", "seed": 3, **LONG}]
    night = run(pool, made.write_table(table.parent / "long.csv", rows), tmp_path, kill)
    assert night.good
    lost, fine = night.record("one")["attempts"]
    assert "ComfyUI ended with exit code -9 in the middle of the job" in lost["error"]
    assert not fine["error"]

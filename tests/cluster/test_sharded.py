"""A clip on two real ComfyUIs that share it: the latents of one, also after one of them was killed
or has refused its input.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from cluster.jobs import make_jobs
from cluster.jobs.table import read_table
from cluster.local import connected
from launch.environment import link_pack

from ..conftest import COMFYUI
from . import made

FRAMES = 7
# Windows of keyframes, features that are computed when they are needed, Plug-and-Play,
# what the defaults carry.
WINDOWS = {
    "build.keyframe_interval": 2,
    "build.intervals": "even",
    "build.keyframes": "random at every step",
    "edit.attended_keyframes": 3,
}
ASKED = {
    "extract.storage": "recompute",
    "extract.layers": "coarse to fine",
    "extract.steps": "one noise level",
}
EDITS: dict[str, dict[str, Any]] = {
    "defaults": WINDOWS | ASKED,
    "attention": WINDOWS
    | {
        "build.intervals": "by content",
        "edit.propagation": "attention",
        "edit.carry_until": 0.0,
    },
    "per frame": ASKED | {"build.intervals": "by content", "edit.consistency": "per frame"},
}


def prompt() -> dict[str, Any]:
    graph = made.prompt()
    graph["inject"] = made.node(
        "TokenFlowPlugAndPlay", attention_until=0.5, features_until=0.8, layers="decoder"
    )
    graph["edit"]["inputs"] |= {
        "injection": ["inject", 0],
        "attended_keyframes": 0,
        "propagation": "deep features",
        "carry_until": 0.2,
    }
    return graph


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    """One worker of two ComfyUIs."""
    from cluster.workers.pool import Pool

    link_pack(COMFYUI)
    cores = torch.get_num_threads()
    with (
        connected(None, num_cpus=2 * cores, num_gpus=0, include_dashboard=False),
        closing(Pool.start(COMFYUI, cores=cores, share=2)) as pool,
    ):
        yield pool


@pytest.fixture(scope="module")
def make(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A job of the clip with some inputs."""
    folder = tmp_path_factory.mktemp("clips")
    made.write_clip(folder / "clip.mp4", 80, FRAMES)

    def job(**inputs: Any) -> Any:
        table = made.write_table(
            folder / "jobs.csv", [{"name": "one", "clip": "clip.mp4", **inputs}]
        )
        (found,) = make_jobs(table, read_table(table), prompt(), pool.object_info(), folder)
        return found

    return job


def run(pool: Any, job: Any, on_step: Callable[[Any], None] = lambda step: None) -> list[Any]:
    """The events of a job."""
    import ray

    from cluster.workers.events import Done, Step
    from cluster.workers.pool import Failed

    while not pool.idle:  # it may have to begin anew
        list(pool.events())
    pool.submit(
        pool.slots[0], job, {name: ray.put(path.read_bytes()) for name, path in job.files.items()}
    )
    seen: list[Any] = []
    while not seen or not isinstance(seen[-1], Done | Failed):
        for _, event in pool.events():
            seen.append(event)
            if isinstance(event, Step):
                on_step(event)
    return seen


def latents(events: list[Any]) -> Tensor:
    from cluster.workers.events import Saved

    (saved,) = [event for event in events if isinstance(event, Saved)]
    return load(saved.content)["latent_tensor"]


@pytest.mark.parametrize("edit", EDITS)
def test_the_latents_are_those_of_one_host(
    pool: Any,
    make: Callable[..., Any],
    server: Any,
    queue: Callable[..., Any],
    edit: str,
) -> None:
    job = make(**EDITS[edit])
    events = run(pool, job)
    assert not hasattr(events[-1], "error"), events[-1]
    shared = events[-1].figures["shared"]
    assert set(shared) == {"0", "1"}
    assert shared["0"]["calls"] == shared["1"]["calls"] > 0
    for name, path in job.files.items():
        shutil.copy(path, server.input / name)
    (file,) = queue(job.prompt).files()
    alone, found = load((server.output / file).read_bytes())["latent_tensor"], latents(events)
    assert len(found) == FRAMES
    assert float((found - alone).norm()) <= 1e-5 * float(alone.norm())


def test_what_one_host_refuses_ends_the_job_and_the_next_one_runs(
    pool: Any, make: Callable[..., Any]
) -> None:
    wanted = latents(run(pool, make(**EDITS["defaults"])))
    bad = run(pool, make(**{"build.backend": "faiss", "build.search_window": 1}))[-1]
    assert "input 'search_window': FAISS searches" in bad.error
    assert torch.equal(latents(run(pool, make(**EDITS["defaults"]))), wanted)


KEPT = {"invert.checkpoints": True, "edit.checkpoints": True}


def test_a_clip_whose_host_was_killed_goes_on_where_both_were(
    pool: Any, make: Callable[..., Any]
) -> None:
    """And nobody waits for it. What both write of an evaluation is the same."""
    import ray

    def other() -> Any:
        """The other ComfyUI's worker."""
        (found,) = ray.get(pool.slots[0].actor.__ray_call__.remote(lambda worker: worker.others))
        return found

    def process() -> int:
        found: int = ray.get(other().__ray_call__.remote(lambda worker: worker.server.process.pid))
        return found

    def logs() -> list[str]:
        return [
            ray.get(
                actor.__ray_call__.remote(lambda worker: (worker.folder / "server.log").read_text())
            )
            for actor in (pool.slots[0].actor, other())
        ]

    # More steps than the edit takes until word of its first one has come.
    long = EDITS["defaults"] | {"invert.steps": 8}
    job = make(**long, seed=5)
    wanted = latents(run(pool, job))
    running, killed = process(), list[int]()

    def kill(step: Any) -> None:
        if step.node == "The TokenFlowSampler" and step.value >= 1 and not killed:
            killed.append(running)
            os.kill(running, signal.SIGKILL)

    again = make(**long, **KEPT, seed=5)
    lost = run(pool, again, kill)[-1]
    assert killed
    assert "ComfyUI ended with exit code -9" in lost.error
    assert torch.equal(latents(run(pool, again)), wanted)
    for log in logs():  # of the ComfyUIs that were started anew
        assert "DDIM Invert Video goes on: " in log
        assert "TokenFlow Sampler goes on: " in log
    # Between two jobs: the first one is interrupted when it has hardly begun.
    os.kill(process(), signal.SIGKILL)
    assert "ended between two jobs" in run(pool, make(**EDITS["defaults"], seed=7))[-1].error

"""Workers without their ComfyUI: how many there are, when one is given up,
when one starts its server anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.workers import worker as worker_module
from cluster.workers.worker import FOLDERS, Worker, remove_leftovers
from launch.comfyui.client import PromptError
from launch.environment import ROOT


def test_there_is_a_worker_for_every_gpu_or_else_for_so_many_cores() -> None:
    from cluster.workers.pool import PoolError, shares

    two, many = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 33.0}
    assert shares([two, many], None) == (2, 4, {"num_gpus": 1})
    assert shares([many, {"CPU": 7.0}], None) == (9, 4, {"num_cpus": 4})
    assert shares([many, {"CPU": 2.0}], None) == (17, 2, {"num_cpus": 2})
    assert shares([many], 16) == (2, 16, {"num_cpus": 16})
    with pytest.raises(PoolError, match=r"or 64 free cores\. Give fewer by --cores"):
        shares([many], 64)


def test_a_worker_that_does_not_start_is_given_up_and_the_last_one_ends_the_run() -> None:
    from cluster.workers.pool import Failed, Pool, PoolError, Slot

    started: list[str] = []
    pool = Pool.__new__(Pool)
    pool.waiting, pool.idle = {}, []
    actor = SimpleNamespace(start=SimpleNamespace(remote=lambda: started.append("again")))
    slot = Slot("worker 1", actor)
    for _ in range(2):
        pool._again(slot, Failed("no such luck"))
    assert started == ["again", "again"]
    pool._again(slot, Failed("no such luck"))
    assert len(started) == 2
    pool.waiting = {}
    with pytest.raises(
        PoolError, match=r"no worker is left. worker 1 did not start 3 times; at last: no such luck"
    ):
        pool._again(slot, Failed("no such luck"))


class Stub:
    """A server that only counts its starts."""

    starts = 0

    def __init__(self, comfyui: Path, work: Path, *_: Any, **options: Any) -> None:
        self.input = work / "input"
        self.address = ""
        self.process = SimpleNamespace(
            pid=1, returncode=None, poll=lambda: self.process.returncode, wait=lambda seconds: None
        )

    def __enter__(self) -> None:
        type(self).starts += 1
        self.input.mkdir(exist_ok=True)

    def stop(self) -> None:
        self.process.returncode = 0

    def get(self, path: str) -> Any:
        return {
            "system": {"comfyui_version": "0", "pytorch_version": "0"},
            "devices": [{"name": "none"}],
        }


def test_comfyui_is_started_anew_after_failures_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise PromptError("node 1: CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker_module, "Server", Stub)
    monkeypatch.setattr(worker_module, "run_prompt", fail)
    monkeypatch.setattr(worker_module.tempfile, "tempdir", str(tmp_path))
    for name in ("WORKER_PID", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    worker = Worker(tmp_path, 1)
    for starts in (1, 1, 1, 2, 2):
        with pytest.raises(PromptError, match="illegal memory"):
            list(worker.run("wolf", {}, {}))
        assert Stub.starts == starts
    stopping = threading.Thread(target=worker.stop)  # as from Ray
    stopping.start()
    stopping.join()
    assert not list(tmp_path.glob(f"{FOLDERS}*"))


def test_folders_of_killed_workers_are_removed_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module.tempfile, "tempdir", str(tmp_path))
    for name in ("WORKER_PID", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    alive = Worker(tmp_path, 1)
    killed = tmp_path / f"{FOLDERS}killed"
    killed.mkdir()
    killed.with_suffix(".lock").touch()
    (killed / "big").touch()
    remove_leftovers()
    assert alive.folder.exists()
    assert not list(tmp_path.glob("*killed*"))
    alive.stop()


def test_a_server_ends_with_its_worker_whatever_ray_does() -> None:
    """Ray ends what its workers have started too, where the system lets it."""
    node = ROOT / "cluster" / "host_nodes" / "end_with_worker.py"
    server = f"import runpy, time; runpy.run_path({str(node)!r}); "
    server += "print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as worker:
        environment = {**os.environ, "WORKER_PID": str(worker.pid)}
        with subprocess.Popen(
            [sys.executable, "-c", server], env=environment, stdout=subprocess.PIPE
        ) as started:
            assert started.stdout
            assert started.stdout.readline() == b"up\n"
            assert started.poll() is None
            worker.kill()
            worker.wait()
            assert started.wait(20) == 1

"""What a worker that is lost has done of a job, the next one on the machine need not do again."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.workers.events import Saved, Step
from cluster.workers.worker import CHECKPOINTS, HostLost, Worker
from launch.environment import link_pack
from tests.conftest import COMFYUI
from tests.host.faults.tools.served import editing


def prompt() -> dict[str, dict[str, Any]]:
    made = editing()
    for node in ("invert", "edit"):
        made[node]["inputs"] |= {"checkpoints": True}
    made["invert"]["inputs"] |= {"steps": 20, "check_reconstruction": False}
    return made


def lose(worker: Worker) -> None:
    """Runs the prompt, and kills the worker's ComfyUI after two steps of the edit."""
    for event in worker.run("one", prompt(), {}):
        if isinstance(event, Step) and "Sampler" in event.node and event.value >= 2:
            worker._process().kill()


def kept() -> list[Path]:
    return list((COMFYUI / "output" / CHECKPOINTS).glob("*"))


def test_another_worker_goes_on_where_one_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKER_PID", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    link_pack(COMFYUI)
    before = set(kept())
    lost = Worker(COMFYUI, 1)
    try:
        with pytest.raises(HostLost):
            lose(lost)
    finally:
        lost.stop()
    assert len(set(kept()) - before) == 2
    other = Worker(COMFYUI, 1)
    try:
        events = list(other.run("one", prompt(), {}))
        log = (other.folder / "server.log").read_text()
        assert any(isinstance(event, Saved) for event in events)
        assert re.search(r"DDIM Invert Video goes on: (\d+) of \1 evaluations are known", log)
        assert "TokenFlow Sampler goes on: " in log
        end = time.monotonic() + 60
        while set(kept()) - before:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        other.stop()

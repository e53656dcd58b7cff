"""A disk that gets full while the pack writes: the user is told, and nothing half-written stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from tokenflow_pack.host import memory
from tokenflow_pack.tokenflow_ops.features import stores
from tokenflow_pack.tokenflow_ops.storage import whole

from launch.comfyui.inprocess import ROOT

from .tools.graph import edit, plain
from .tools.harness import Bench

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
FULL = os.strerror(errno.ENOSPC)


def can_mount(folder: Path) -> bool:
    """Whether a file system can be mounted here that nobody else sees."""
    try:
        return not subprocess.run(
            [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, timeout=60
        ).returncode
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["mounted", "limited"])
def test_a_disk_that_is_really_full_is_told(kind: str, tmp_path: Path) -> None:
    """The inverted path in a file, features, and a stored inversion."""
    if not sys.platform.startswith("linux") or (kind == "mounted" and not can_mount(tmp_path)):
        pytest.skip("no file system can be mounted here")
    command = [
        *(NAMESPACE if kind == "mounted" else []),
        sys.executable,
        "-m",
        "tests.host.faults.tools.full_disk",
        str(tmp_path),
        kind,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["refused"]), done.stderr[-2000:]


class Disk:
    """What writes to the disk, counted; the `full_at`-th of them finds it full."""

    def __init__(self) -> None:
        self.writes, self.full_at, self.reached = 0, 0, ""

    def _next(self, name: str) -> bool:
        self.writes += 1
        if self.writes == self.full_at:
            self.reached = name
        return self.writes == self.full_at

    def on(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._next(name):
                raise OSError(errno.ENOSPC, FULL)
            return function(*args, **kwargs)

        return wrapped

    def save_file(self, tensors: Any, path: Path, *rest: Any) -> None:
        """safetensors' own, which leaves half a file."""
        SAVE_FILE(tensors, path, *rest)
        if self._next("save_file"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise SafetensorError(f"Error while serializing: I/O error: {FULL}")

    @contextmanager
    def watched(self, full_at: int = 0) -> Iterator[None]:
        self.writes, self.full_at = 0, full_at
        with pytest.MonkeyPatch.context() as patched:
            for module in (whole, stores):
                patched.setattr(module, "save_file", self.save_file)
            for owner, names in (
                (os, ("fsync", "replace", "posix_fallocate")),
                (Path, ("touch", "chmod")),
                (tempfile, ("mkdtemp",)),
            ):
                for name in names:
                    if hasattr(owner, name):
                        patched.setattr(owner, name, self.on(name, getattr(owner, name)))
            yield


SAVE_FILE = whole.save_file


def test_a_disk_that_gets_full_at_any_write_is_told_and_keeps_no_half(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "fits_in_memory", lambda size: False)
    prompt, disk = edit(), Disk()
    bench.settle(prompt)
    with disk.watched():
        bench.run(prompt)
    bench.run(plain())
    reached = []
    for number in range(disk.writes):
        with disk.watched(number + 1):
            outcome = bench.run(prompt)
        reached.append(disk.reached)
        assert (outcome.error or "").endswith("NodeError"), (disk.reached, outcome)
        assert FULL in outcome.message
        bench.check_after(outcome, number)
    assert {"save_file", "fsync", "replace", "mkdtemp"} <= set(reached)
    assert not hasattr(os, "posix_fallocate") or "posix_fallocate" in reached

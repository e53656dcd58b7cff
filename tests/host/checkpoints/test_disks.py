"""What a disk may do to checkpoints: a power cut between any two writes, no room, damaged files."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenflow_pack.host.checkpoints.folders import BUSY, KEPT, STALE, remove_stale
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.tokenflow_ops.storage import whole
from tokenflow_pack.tokenflow_ops.storage.journal import Journal

from .counting import Counting, inverted, sampled

RUN = inverted(steps=3, refinement="none", checkpoints=True)
SAVE_FILE = whole.save_file


class PowerCut(BaseException):
    """Nothing more is written."""


class Disk:
    """What is written, counted. At the `cut_at`-th of it power is cut: names in folders that were
    not made sure of are lost, and of files that were not half is there.
    """

    def __init__(self, cut_at: int = 0, full_at: int = 0) -> None:
        self.writes, self.cut_at, self.full_at, self.dead = 0, cut_at, full_at, False
        self.torn: set[Path] = set()
        self.renamed: set[Path] = set()

    def _next(self) -> None:
        self.writes += 1
        if self.writes == self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.writes == self.cut_at:
            self.dead = True
            for path in self.torn:
                os.truncate(path, path.stat().st_size // 2)
            for path in self.renamed:
                path.unlink()
        if self.dead:
            raise PowerCut

    def save_file(self, tensors: Any, path: Path, metadata: Any) -> None:
        self._next()
        SAVE_FILE(tensors, path, metadata)
        self.torn.add(path)

    def fsync(self, descriptor: int) -> None:
        self._next()
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.torn.discard(path)
        self.renamed = {name for name in self.renamed if name.parent != path}

    def replace(self, part: Path, path: Path) -> None:
        self._next()
        assert part not in self.torn, "what is not on the disk may come out torn"
        os.rename(part, path)
        self.renamed.add(path)

    @contextmanager
    def used(self) -> Iterator[None]:
        clean = tempfile.TemporaryDirectory.cleanup
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(whole, "save_file", self.save_file)
            patched.setattr(os, "fsync", self.fsync)
            patched.setattr(os, "replace", self.replace)
            patched.setattr(
                tempfile.TemporaryDirectory, "cleanup", lambda one: self.dead or clean(one)
            )
            yield


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files")
def test_after_a_power_cut_between_any_two_writes_it_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, disk = Counting(), Disk()
    with disk.used():
        calls, wanted = counting.calls_of(RUN)
    assert disk.writes > 10
    written: list[int] = []
    write = Journal.write

    def count(self: Journal, *args: Any) -> None:
        write(self, *args)
        written.append(1)

    monkeypatch.setattr(Journal, "write", count)
    goes_on_at = set()
    for cut_at in range(1, disk.writes + 1):
        shutil.rmtree(root)
        written.clear()
        with Disk(cut_at).used(), pytest.raises(PowerCut):
            RUN(counting.model)
        kept = len(written)
        left, found = counting.calls_of(RUN)
        assert torch.equal(found, wanted), cut_at
        assert left <= calls - 2 * kept, "what was written is lost"  # two passes each
        goes_on_at.add(kept)
    assert goes_on_at == set(range(3))


def test_a_disk_that_gets_full_at_any_write_ends_no_run(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting, disk = Counting(), Disk()
    with disk.used():
        _, wanted = counting.calls_of(RUN)
    for full_at in range(1, disk.writes + 1):
        shutil.rmtree(root)
        caplog.clear()
        with Disk(full_at=full_at).used():
            assert torch.equal(RUN(counting.model), wanted)
        assert os.strerror(errno.ENOSPC) in caplog.text
        assert torch.equal(RUN(counting.model), wanted)


@pytest.mark.parametrize("run", [RUN, sampled(checkpoints=True)], ids=["inversion", "edit"])
def test_a_disk_without_room_is_told_before_anything_is_computed(
    run: Callable[[Any], Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    counting = Counting()
    with pytest.raises(NodeError, match=r"'checkpoints': they will take 0\.0 GiB more"):
        run(counting.model)
    assert counting.calls == 0
    assert not root.exists()


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def renumbered(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [torn, flipped, renumbered])
@pytest.mark.parametrize("number", range(3))
def test_damaged_files_and_what_follows_them_do_not_count(
    number: int, damage: Callable[[Path], None], root: Path
) -> None:
    counting = Counting()
    calls, wanted = counting.calls_of(RUN)
    (journal,) = root.iterdir()
    damage(sorted(journal.iterdir())[number])
    left, found = counting.calls_of(RUN)
    assert left == calls - 2 * number
    assert torch.equal(found, wanted)
    assert counting.calls_of(RUN)[0] == 0


def test_runs_that_nobody_goes_on_with_go(root: Path) -> None:
    def make(name: str, idle: float) -> None:
        (root / name).mkdir(parents=True)
        (root / name / "00000.safetensors").write_bytes(b"")
        for path in (root / name / "00000.safetensors", root / name):
            now = path.stat().st_mtime
            os.utime(path, (now - idle, now - idle))

    make("old", STALE + 10)
    make("old but needed", STALE + 10)
    for number in range(KEPT + 2):
        make(f"stopped {number}", BUSY + 10 * number + 10)
    remove_stale("old but needed")
    assert {path.name for path in root.iterdir()} == {
        "old but needed",
        *(f"stopped {number}" for number in range(KEPT)),
    }
    shutil.rmtree(root)
    remove_stale()

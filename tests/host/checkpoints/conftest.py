"""Checkpoints in a folder of every test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """Where checkpoints lie; sums are in one order."""
    import folder_paths
    from tokenflow_pack.host.checkpoints.folders import FOLDER

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / FOLDER

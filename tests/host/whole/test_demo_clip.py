"""The embedded clip in the host's input folder."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import folder_paths
import pytest
from tokenflow_pack import comfy_entrypoint
from tokenflow_pack.host.files.demo_clip import CLIP


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's input folder."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    return tmp_path


def load_pack() -> None:
    """What the host does with the pack when it starts."""
    assert asyncio.run(comfy_entrypoint())


def check_clip_alone(folder: Path) -> None:
    (found,) = folder.iterdir()
    assert (found.name, found.read_bytes()) == (CLIP.name, CLIP.read_bytes())


def test_it_is_there_when_the_pack_is_loaded_once_or_more(folder: Path) -> None:
    load_pack()
    check_clip_alone(folder)
    load_pack()
    check_clip_alone(folder)


def test_it_is_there_where_the_disk_has_no_hard_links(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    load_pack()
    check_clip_alone(folder)


def test_a_users_file_of_that_name_stays(folder: Path) -> None:
    (folder / CLIP.name).write_text("mine")
    load_pack()
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(CLIP.name, "mine")]


def test_a_users_link_of_that_name_stays_whatever_it_leads_to(folder: Path) -> None:
    (folder / CLIP.name).symlink_to(folder / "on another disk")
    load_pack()
    assert [file.is_symlink() for file in folder.iterdir()] == [True]


def test_a_file_that_comes_at_the_same_time_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    test_a_users_file_of_that_name_stays(folder)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_folder_that_cannot_be_written_is_a_line_in_the_log(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").touch()
    monkeypatch.setattr(folder_paths, "input_directory", str(folder / name))
    load_pack()
    (line,) = caplog.messages
    assert str(folder / name) in line
    assert str(CLIP) in line
    assert not (folder / "file").read_bytes()

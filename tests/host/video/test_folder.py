"""Load Video from Folder: which clip a run takes, and what its table says of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from tokenflow_pack.host.files.clip_folders import TABLE, clip_folders
from tokenflow_pack.nodes.video.folder import LoadFromFolder

from ..helpers import call

CLIP = Path(__file__).resolve().parents[3] / "demo" / "tokenflow_star.mp4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three clips and what is none, in an input folder of its own."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    place = tmp_path / "night" / "one"
    place.mkdir(parents=True)
    for name in ("c.mp4", "a.mp4", "b.MOV"):
        shutil.copy(CLIP, place / name)
    (place / "note.txt").write_text("no video")
    (place / "d.mp4").mkdir()
    (place / ".e.mp4").write_bytes(b"")
    return place


def names(count: int) -> list[tuple[Any, ...]]:
    return [call(LoadFromFolder.execute, "night/one", i)[1:] for i in range(count)]


def test_each_index_is_a_clip_and_behind_the_last_one_it_begins_anew(folder: Path) -> None:
    assert clip_folders() == ["night/one"]
    assert names(4) == [("a", "", ""), ("b", "", ""), ("c", "", ""), ("a", "", "")]
    out = LoadFromFolder.execute("night/one", 4)
    assert out.ui.as_dict()["text"] == ("2 of 3: b.MOV",)
    assert len(out.args[0].get_components().images) == 24
    shutil.copy(CLIP, folder.parent.parent / "here.mp4")
    assert clip_folders() == [".", "night/one"]
    assert call(LoadFromFolder.execute, ".", 7)[1] == "here"


@pytest.mark.parametrize(
    "start", ["Clip,source,prompt", "clip;source;prompt", "edit\tclip\tsource"]
)
def test_a_table_says_which_clips_there_are_and_what_is_made_of_them(
    start: str, folder: Path
) -> None:
    rows = [("b", "a ball, red", "gold"), ("", "", ""), ("a.mp4", "", "ice"), ("b", "x", "lava")]
    between = next(sign for sign in "\t;," if sign in start)
    order = [start.lower().replace("edit", "prompt").split(between).index(name) for name in NAMES]
    lines = [sorted(zip(order, row, strict=True)) for row in rows]
    text = [start, *(between.join(f'"{cell}"' for _, cell in line) for line in lines)]
    (folder / TABLE).write_bytes(("\ufeff" + "\r\n".join(text)).encode())
    assert names(3) == [("b", "a ball, red", "gold"), ("a", "", "ice"), ("b", "x", "lava")]


NAMES = "clip", "source", "prompt"


def test_what_has_changed_is_loaded_again_and_nothing_else(folder: Path) -> None:
    def seen(index: int = 0) -> Any:
        return LoadFromFolder.fingerprint_inputs("night/one", index)

    before = seen()
    assert seen() == seen(3) == before != seen(1)
    os.utime(folder / "a.mp4", ns=(1, 1))
    again = seen()
    assert again != before
    table = folder / TABLE
    table.write_text("clip,prompt\na,gold\n")
    with_prompt = seen()
    assert with_prompt != again
    table.write_text("clip,prompt\na,ice\n")
    assert seen() != with_prompt
    assert LoadFromFolder.fingerprint_inputs("none") == LoadFromFolder.fingerprint_inputs("..")


def test_the_host_is_told_before_anything_runs(folder: Path) -> None:
    assert LoadFromFolder.validate_inputs("night/one", 5) is True
    assert LoadFromFolder.validate_inputs(None, None) is True
    assert "no folder 'none'" in str(LoadFromFolder.validate_inputs("none", 0))
    assert "index" in str(LoadFromFolder.validate_inputs("night/one", -1))

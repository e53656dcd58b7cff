"""Bad input: files and their names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import torch
from safetensors.torch import save_file
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.host.files.folders import SUFFIX
from tokenflow_pack.nodes import demo_model

from ..small import inverted
from .bad_input import CLIP, DEMO, FOLDER, LOAD, SAVE, Row, clip_folder, run, stored, wrong


def place(name: str) -> Path:
    return Path(folder_paths.get_output_directory(), f"{name}{SUFFIX}")


def loaded(name: str, write: Callable[[Path], Any]) -> Callable[[], Any]:
    """Loads a file of the output folder that `write` makes."""

    def load() -> Any:
        write(place(name))
        return run(LOAD, file=f"{name}{SUFFIX} [output]")

    return load


def good_file() -> bytes:
    return Path(
        folder_paths.get_output_directory(), stored().removesuffix(" [output]")
    ).read_bytes()


def link(path: Path) -> None:
    """To a good file outside of the folder."""
    outside = path.parent.parent / path.name
    outside.write_bytes(good_file())
    path.unlink(missing_ok=True)
    path.symlink_to(outside)


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    """Writes the good file with other bytes."""
    return lambda path: path.write_bytes(change(good_file()))


def full_disk() -> Any:
    kept = os.fsync

    def full(_: int) -> None:
        raise OSError("No space left on device")

    os.fsync = full
    try:
        return run(SAVE)
    finally:
        os.fsync = kept


def of_another_host(path: Path) -> None:
    """A stored inversion with fields that this host cannot use."""
    written = run(
        SAVE,
        inversion=dataclasses.replace(inverted(*CLIP)[0], scheduler="of another pack\0"),
        filename_prefix="strange",
    )
    assert written is not None
    os.replace(next(path.parent.glob("strange_*")), path)


def demo(content: bytes | None) -> Callable[[], Any]:
    """Loads the embedded model where its file holds something else, or is not there."""

    def load() -> Any:
        path = Path(folder_paths.get_temp_directory(), "model.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        kept = demo_model.load_demo_model
        demo_model.load_demo_model = lambda kind: load_demo_model(kind, path)
        try:
            return run(DEMO)
        finally:
            demo_model.load_demo_model = kept

    return load


def tabled(text: str) -> Callable[[], str]:
    """A folder with this table."""
    return lambda: clip_folder("tabled", text)


def without_videos() -> str:
    Path(folder_paths.get_input_directory(), "bare").mkdir(exist_ok=True)
    return "bare"


def linked_folder() -> str:
    """A link to the output folder, which is not the input folder."""
    link = Path(folder_paths.get_input_directory(), "linked")
    link.unlink(missing_ok=True)
    link.symlink_to(folder_paths.get_output_directory(), target_is_directory=True)
    return link.name


def linked_video() -> str:
    clip = Path(folder_paths.get_input_directory(), clip_folder("links"), "a.mp4")
    outside = Path(folder_paths.get_output_directory(), "a.mp4")
    outside.write_bytes(clip.read_bytes())
    clip.unlink()
    clip.symlink_to(outside)
    return "links"


FROM_LIST_1, COLUMNS = "choose one from the list", "with the columns clip, source and prompt"
AGAIN, FROM_LIST, INSIDE = "Save the inversion again", "from the list", r"without '\.\.'"
ROWS = [
    wrong("a file that is not there", LOAD, "file", f"none{SUFFIX}", "is not there", FROM_LIST),
    wrong("a number as a file", LOAD, "file", 5, "5, which is no STRING", "STRING"),
    wrong(
        "a file outside of the folders",
        LOAD,
        "file",
        f"../x{SUFFIX}",
        "no name inside a folder",
        INSIDE,
    ),
    wrong(
        "a file from the root", LOAD, "file", f"/etc/x{SUFFIX}", "no name inside a folder", INSIDE
    ),
    wrong(
        "a file of the temp folder",
        LOAD,
        "file",
        f"x{SUFFIX} [temp]",
        "neither in the input nor",
        "Move the file",
    ),
    wrong(
        "a file of another kind",
        LOAD,
        "file",
        "model.safetensors",
        "does not end in",
        "Save Inversion wrote",
    ),
    wrong(
        "a NUL in a file's name",
        LOAD,
        "file",
        f"x\0{SUFFIX}",
        "characters that no file name",
        "letters",
    ),
    Row(
        "a link out of the folder",
        LOAD,
        "file",
        loaded("link", link),
        "through a link",
        "without links",
    ),
    Row(
        "an empty file",
        LOAD,
        "file",
        loaded("empty", lambda path: path.write_bytes(b"")),
        "not a whole safetensors file",
        AGAIN,
    ),
    Row(
        "a file that was cut off",
        LOAD,
        "file",
        loaded("cut", changed(lambda good: good[:-100])),
        "not a whole",
        AGAIN,
    ),
    Row(
        "a file with a wrong bit",
        LOAD,
        "file",
        loaded("bit", changed(lambda good: good[:-1] + b"\7")),
        "checksum",
        AGAIN,
    ),
    Row(
        "a header larger than the file",
        LOAD,
        "file",
        loaded("head", changed(lambda good: b"\xff" * 8 + good[8:])),
        "not a whole",
        AGAIN,
    ),
    Row(
        "a picture under that name",
        LOAD,
        "file",
        loaded("png", lambda path: path.write_bytes(b"\x89PNG" * 99)),
        "not a whole",
        AGAIN,
    ),
    Row(
        "weights under that name",
        LOAD,
        "file",
        loaded("lora", lambda path: save_file({"a": torch.zeros(2)}, path)),
        "without an inversion",
        "Save Inversion wrote",
    ),
    Row(
        "an unknown scheduler in a file",
        LOAD,
        "file",
        loaded("strange", of_another_host),
        r"pack\\x00', which this",
        "pack that",
    ),
    wrong(
        "a prefix outside of the folder",
        SAVE,
        "filename_prefix",
        "../x",
        "no name inside a folder",
        INSIDE,
    ),
    wrong(
        "a prefix from the root",
        SAVE,
        "filename_prefix",
        "/tmp/x",
        "no name inside a folder",
        INSIDE,
    ),
    wrong("no prefix", SAVE, "filename_prefix", "", "no name inside a folder", INSIDE),
    wrong(
        "a prefix with a NUL",
        SAVE,
        "filename_prefix",
        "a\0b",
        "characters that no file name",
        "letters",
    ),
    wrong(
        "a very long prefix",
        SAVE,
        "filename_prefix",
        "x" * 10**6,
        "a name of 1000000 characters",
        "shorter",
    ),
    wrong(
        "a list as a prefix",
        SAVE,
        "filename_prefix",
        ["a"],
        "type list, which is no STRING",
        "STRING",
    ),
    Row("a full disk", SAVE, "filename_prefix", full_disk, "No space left", "Make room"),
    Row(
        "no weights of the embedded model",
        DEMO,
        None,
        demo(None),
        "model.safetensors",
        "git lfs pull",
    ),
    Row(
        "a pointer in place of weights",
        DEMO,
        None,
        demo(b"version https://git-lfs.github.com/spec/v1\n"),
        "pointer",
        "git lfs pull",
    ),
    wrong("a folder that is not there", FOLDER, "folder", "none", "no folder 'none'", FROM_LIST_1),
    wrong("a number as a folder", FOLDER, "folder", 5, "5, which is no STRING", "STRING"),
    wrong("a folder above", FOLDER, "folder", "../input", "no name inside a folder", INSIDE),
    wrong("a folder from the root", FOLDER, "folder", "/etc", "no name inside a folder", INSIDE),
    wrong(
        "a NUL in a folder's name", FOLDER, "folder", "x\0", "characters that no file", "letters"
    ),
    wrong("a folder without a video", FOLDER, "folder", without_videos, "no video in", "another"),
    wrong(
        "a link to a folder outside", FOLDER, "folder", linked_folder, "leads out", "without links"
    ),
    wrong(
        "a link to a video outside", FOLDER, "folder", linked_video, "leads out", "without links"
    ),
    wrong("a table of other columns", FOLDER, "folder", tabled("a,b\n"), "lacks columns", COLUMNS),
    wrong(
        "a table without a row", FOLDER, "folder", tabled("clip,edit\n"), "no row in it", COLUMNS
    ),
    wrong(
        "a table that names no clip",
        FOLDER,
        "folder",
        tabled("clip,edit\nb,x\n"),
        "row 1 names 'b', which is no video",
        COLUMNS,
    ),
    wrong(
        "a table that leads out",
        FOLDER,
        "folder",
        tabled("clip,edit\n../good/a.mp4,x\n"),
        "which is no video beside it",
        COLUMNS,
    ),
    wrong(
        "a table in another code", FOLDER, "folder", tabled("clip,edit\na,\xe9"), "UTF-8", COLUMNS
    ),
    wrong("a table of no CSV", FOLDER, "folder", tabled('clip,edit\n"a,b'), "no CSV", COLUMNS),
    Row("weights that were cut off", DEMO, None, demo(b"\xff" * 100), ".", "git lfs pull"),
]
